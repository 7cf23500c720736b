"""Log records as lines on standard error, for a person, for a machine or for the journal.

Every record is one line. Control characters in it are escaped: text from a peer or an application cannot forge a line
or control the terminal. An exception becomes a sentence; at level debug its traceback follows, for work on the program
itself. Lines leave on a thread (log_writer.py). Secrets must not be logged: the types that hold them (credentials,
keys) leave them out of their repr().
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal

from ..errors import CryprqError, reason_of
from .descriptors import EXHAUSTED
from .log_writer import LogWriter

type LogFormat = Literal["text", "json"]
type LogLevel = Literal["debug", "info", "warning", "error"]

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, line and paragraph separators, bidirectional overrides, lone surrogates."""

codecs.lookup("unicode_escape")  # its module cannot be loaded any more when there is no free descriptor

_CHATTY: Final = frozenset({"asyncio", "pyroute2"})
"""Loggers that log internals at debug: the selector in use, each message of netlink."""
_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""Python's levels as syslog priorities (sd-daemon(3))."""


def one_line(text: str) -> str:
    """`text` with every control character written as an escape."""
    return _CONTROL.sub(
        lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )


def describe(error: BaseException) -> str:
    """An exception as part of a sentence, without control characters.

    The text of our own errors is a sentence already; that of other errors needs the name of their type.
    """
    text = str(error)
    if isinstance(error, OSError):
        # Without a free descriptor it is chance which file was the next one: often one of the program itself.
        name = f": {error.filename}" if error.filename and error.errno not in EXHAUSTED else ""
        return one_line(f"{reason_of(error)}{name}")
    if isinstance(error, CryprqError) and text:
        return one_line(text)
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


class TextFormatter(logging.Formatter):
    """`15:04:05 info  the link is up`; for the journal, which adds the time, `<6>the link is up`."""

    def __init__(self, *, journal: bool = False, tracebacks: bool = False) -> None:
        super().__init__()
        self._journal = journal
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        line = one_line(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line += f": {describe(error)}"
        if self._journal:
            line = f"<{_PRIORITY.get(record.levelno, 6)}>{line}"
        else:
            when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
            line = f"{when} {record.levelname.lower():<7} {line}"
        if error is not None and self.tracebacks:
            line += "".join(f"\n    {one_line(part)}" for part in _traceback(error).split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message; with an exception error and traceback."""

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, str] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields["error"] = describe(error)
            if self.tracebacks:
                fields["traceback"] = _traceback(error)
        return json.dumps(fields)


def setup(level: LogLevel = "info", style: LogFormat = "text", stream: IO[str] | None = None) -> None:
    """Send all records from `level` on to `stream` (default: standard error), one line each.

    Replaces the setup of an earlier call. Uncaught errors in threads and destructors are logged too.
    """
    tracebacks = level == "debug"
    handler = _handler(stream if stream is not None else sys.stderr)
    formatter: logging.Formatter
    if style == "json":
        formatter = JsonFormatter(tracebacks=tracebacks)
    else:
        journal = isinstance(handler, LogWriter) and _is_journal(handler.stream)
        formatter = TextFormatter(journal=journal, tracebacks=tracebacks)
    handler.setFormatter(formatter)
    handler.addFilter(_is_asked_for)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # A log line that cannot be written (standard error is closed) must not become a traceback.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable


def _handler(stream: IO[str] | None) -> logging.Handler:
    if stream is None:  # the process was started without standard error
        return logging.NullHandler()
    try:
        return LogWriter(stream)
    except (OSError, ValueError):
        return logging.StreamHandler(stream)


def flush() -> None:
    """Return when all lines are written, or cannot be written within a second. Call it before an end without atexit."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def write_behind(line: str) -> bool:
    """Write `line` as it is behind all that was logged, within a second. False, and nothing is written, where no log is
    set up for a descriptor."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter):
            handler.put(line)
            handler.flush()
            return True
    return False


def set_level(level: LogLevel) -> None:
    """Change the level that `setup` has set. Level debug includes tracebacks."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in root.handlers:
        if isinstance(handler.formatter, TextFormatter | JsonFormatter):
            handler.formatter.tracebacks = level == "debug"


def _is_asked_for(record: logging.LogRecord) -> bool:
    """Drop what _CHATTY loggers log below warning. Their own level does not serve: pyroute2 sets its own on import."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _CHATTY


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        name = failure.thread.name if failure.thread is not None else "?"
        logging.getLogger(__name__).error("the thread %r failed", name, exc_info=failure.exc_value)


def _unraisable(failure: Any) -> None:
    logging.getLogger(__name__).error("an error could not be raised", exc_info=failure.exc_value)


def _is_journal(stream: IO[str]) -> bool:
    """Whether `stream` is the journal's socket: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
