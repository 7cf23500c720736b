"""Writing of log lines on a thread, so that a reader that does not read stops nothing but the log.

    emit: format -> queue, MAX_LINES and MAX_CHARACTERS at most -> thread: write(2), at most 4 KiB at once

What finds the queue full is dropped and counted, and a line says so as soon as lines can be written again. The order is
kept. `flush` waits for the thread, for a bounded time.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import IO, Final

MAX_LINES: Final = 4_096
MAX_CHARACTERS: Final = 4 << 20
"""Of all lines in the queue; a traceback is a long one."""
FLUSH_SECONDS: Final = 1.0
_ATOMIC: Final = 4_096
"""PIPE_BUF of Linux: so much arrives in one piece beside what other processes write to the same pipe."""


class LogWriter(logging.Handler):
    """Writes to the descriptor of `stream`, past its buffer. Raises OSError or ValueError if it has none."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.stream = stream
        self._fd = stream.fileno()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._begin_anew()
        _writers.add(self)

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._characters = 0
        self._dropped = 0
        self._writing = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  wrong arguments of a log call: logging's own handlers do the same
            self.handleError(record)
            return
        self.put(line)

    def put(self, line: str) -> None:
        """Let the thread write a line, without its end. Never blocks."""
        with self._changed:
            if len(self._lines) >= MAX_LINES or self._characters + len(line) > MAX_CHARACTERS:
                self._dropped += 1
                return
            self._lines.append(line)
            self._characters += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when all lines are written, after FLUSH_SECONDS at the latest."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._lines and not self._dropped and not self._writing, FLUSH_SECONDS
            )

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._dropped)
                lines, dropped = self._lines, self._dropped
                self._lines, self._characters, self._dropped = [], 0, 0
                self._writing = True
            if dropped:
                lines.append(self._notice(dropped))
            self._write(lines)

    def _write(self, lines: Iterable[str]) -> None:
        for piece in _pieces(line.encode(self._encoding, "backslashreplace") + b"\n" for line in lines):
            rest = memoryview(piece)
            while rest:
                # A descriptor that was closed may be another file's by now.
                if self.stream.closed:
                    return
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    self._wait_until_writable()
                except OSError:
                    return

    def _wait_until_writable(self) -> None:
        """For a descriptor that another process, which shares it, has made non-blocking."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()

    def _notice(self, dropped: int) -> str:
        lines = "1 line was" if dropped == 1 else f"{dropped} lines were"
        text = f"{lines} not written, because nobody read this log"
        return self.format(
            logging.makeLogRecord(
                {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
            )
        )


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines together, in pieces that are written at once."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > _ATOMIC:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


_writers: Final[weakref.WeakSet[LogWriter]] = weakref.WeakSet()


def _forget_parent() -> None:
    """A forked child has no thread that would write, and the lines are its parent's."""
    for writer in _writers:
        writer._begin_anew()


os.register_at_fork(after_in_child=_forget_parent)
