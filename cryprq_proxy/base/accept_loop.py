"""The accept loop: takes the connections of one listening socket, a bounded number in each wake-up."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from ..errors import reason_of

_log = logging.getLogger(__name__)

ACCEPTS: Final = 64
"""Largest number of connections accepted in one wake-up; then other work has its turn."""
FIRST_PAUSE: Final = 0.1
MAX_PAUSE: Final = 1.0
"""Seconds without accepting after a failure. The pause doubles until accepting works again."""
_ERRORS_OF_ONE_CONNECTION: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EPERM",
        "EPROTO",
    )
    if hasattr(errno, name)
)
"""Errors of the one connection that accept(2) took off the queue. The next one may be fine."""


class Acceptor:
    """Owns one listening socket and accepts its connections between `start` and `stop`.

    `accepted` gets each connection and the IP address of its other end; it may call `stop`. Without free descriptors or
    memory accepting fails, but queued connections keep the listening socket readable. The acceptor then pauses instead
    of spinning, and logs one warning until accepting works again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        accepted: Callable[[socket.socket, str], None],
    ) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._accepted = accepted
        self._reading = False
        self._pause = 0.0
        """Seconds of the last pause; 0 while accepting works."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on. No effect if it does already."""
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._listener, self._on_acceptable)

    def stop(self) -> None:
        """Leave new connections in the queue of the listening socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)

    def close(self) -> None:
        """Stop, close the listening socket and free its address."""
        self.stop()
        self._listener.close()

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in _ERRORS_OF_ONE_CONNECTION:
                    continue
                self._pause_accepting(error)
                return
            self._accepted(sock, address[0])
            if not self._reading:
                break
        self._pause = 0.0

    def _pause_accepting(self, error: OSError) -> None:
        if not self._pause:
            _log.warning("new connections cannot be accepted for now: %s", reason_of(error))
        self._pause = min(2 * self._pause, MAX_PAUSE) or FIRST_PAUSE
        self.stop()
        self._timer = self._loop.call_later(self._pause, self.start)
