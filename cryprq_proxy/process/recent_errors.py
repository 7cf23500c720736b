"""The last warnings and errors, for the status, the dashboard and doctor.

A second log handler keeps each record as one line of at most MAX_TEXT characters, without traceback and control
characters. A repeated line only raises its count, so that it does not displace the others.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from msgspec.structs import replace

from ..base.log import describe, one_line
from ..status import LoggedError

MAX_ENTRIES: Final = 50
MAX_TEXT: Final = 500
"""Characters of one entry."""


class RecentErrors(logging.Handler):
    """Holds the last MAX_ENTRIES warnings and errors. Use as a context manager: inside, it listens to all loggers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._entries: deque[LoggedError] = deque(maxlen=MAX_ENTRIES)
        self._totals = {"warning": 0, "error": 0}

    def __enter__(self) -> RecentErrors:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *failure: object) -> None:
        logging.getLogger().removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Runs on the thread that logs, with the handler's lock held."""
        try:
            text = one_line(record.getMessage())
        except (TypeError, ValueError):  # wrong arguments of a log call: a bug that is not reported here
            text = one_line(str(record.msg))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f": {describe(error)}"
        if len(text) > MAX_TEXT:
            text = text[: MAX_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._totals[level] += 1
        last = self._entries[-1] if self._entries else None
        if last is not None and (last.level, last.text) == (level, text):
            last.at = record.created
            last.count += 1
        else:
            self._entries.append(LoggedError(at=record.created, level=level, text=text))

    def status(self) -> tuple[LoggedError, ...]:
        """For the key "errors" of the status, newest first."""
        self.acquire()
        try:
            return tuple(replace(entry) for entry in reversed(self._entries))
        finally:
            self.release()

    def totals(self) -> dict[str, int]:
        """For the key "logged" of the status: the number of each level since the start."""
        return dict(self._totals)
