"""Finds the faults that the program contains.

A session ends only the stream whose handler has raised, and a task that fails is logged. So what a test or a fuzz
target checks inside of a handler or a task would be logged, and the test would pass. All these places report through
base/faults.py, base/tasks.py or the event loop, each of which logs the exception.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Final, Self

LOGGERS: Final = ("cryprq_proxy.base.faults", "cryprq_proxy.base.tasks", "asyncio")


class FaultWatch(logging.Handler):
    """A context that raises RuntimeError at its end if a fault was contained in it. `faults` has them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.faults.append(error)

    def check(self) -> None:
        """Raises RuntimeError for the first fault so far."""
        if self.faults:
            raise RuntimeError(f"a fault was contained: {self.faults[0]}") from self.faults[0]

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
        if error is None:
            self.check()
