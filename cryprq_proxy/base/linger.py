"""Closing a connection so that the last bytes sent arrive.

A `close` with unread bytes sends a reset, and a reset makes the other side drop what it has not read yet. So: send the
rest, end our direction, read and drop what still comes, and close when the other side has ended too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from math import inf
from typing import Final

from .faults import report_fault
from .sockets import set_end_on_close

SECONDS: Final = 2.0
"""Time for the other side to read the last bytes and to end."""

_pending: Final[set[asyncio.Future[None]]] = set()
"""The end of each farewell that is not over."""


class Farewell:
    """Takes over `sock` (connected, non-blocking), sends `last` and closes it, then calls `ended` once. When `most`
    bytes were dropped no more is read: the other side has the rest of its time, and then a reset."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        last: bytes = b"",
        ended: Callable[[], None] = lambda: None,
        most: float = inf,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._last = memoryview(last)
        self._most = most
        self._dropped = 0
        self._ended = ended
        self._heard_end = False
        set_end_on_close(sock)
        self.done: asyncio.Future[None] = loop.create_future()
        wait_for(self.done)
        self._timer = loop.call_later(SECONDS, self.cut)
        loop.add_reader(self._fd, self._on_readable)
        loop.add_writer(self._fd, self._on_writable)
        self._on_writable()

    def _on_writable(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001  a fault: see faults.py
            report_fault("ends a connection before its last bytes", error)
            self.cut()

    def _write(self) -> None:
        try:
            while self._last:
                self._last = self._last[self._sock.send(self._last) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.cut()
            return
        self._loop.remove_writer(self._fd)
        if self._heard_end:
            self.cut()
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _on_readable(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001  a fault: see faults.py
            report_fault("ends a connection before its last bytes", error)
            self.cut()

    def _read(self) -> None:
        try:
            if data := self._sock.recv(65_536):
                self._dropped += len(data)
                if self._dropped >= self._most:
                    self._loop.remove_reader(self._fd)
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.cut()
            return
        # The other side may have ended its own direction only, and still read the rest.
        if self._last:
            self._heard_end = True
            self._loop.remove_reader(self._fd)
        else:
            self.cut()

    def cut(self) -> None:
        """Close now, if it is not closed."""
        if self.done.done():
            return
        self.done.set_result(None)
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self._ended()


def wait_for(done: asyncio.Future[None]) -> None:
    """Make `farewells_ended` wait for `done` too; it must be done within SECONDS."""
    _pending.add(done)
    done.add_done_callback(_pending.discard)


async def farewells_ended() -> None:
    """Wait until every farewell of this process is over, for at most SECONDS."""
    if _pending:
        await asyncio.wait(list(_pending))
