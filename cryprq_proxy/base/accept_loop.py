"""The accept loop: takes the connections of one listening socket, a bounded number in each wake-up."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from typing import Final

from .descriptors import EXHAUSTED, SHORTAGE, Shortage, SpareDescriptor
from .faults import report_fault
from .tasks import spawn
from .work import Work

ACCEPTS: Final = 64
"""Largest number of connections accepted in one wake-up; then other work has its turn."""
STUCK_SECONDS: Final = 30.0
"""A queue from which nothing is taken for so long shows that the acceptor is stuck."""
PAUSE: Final = 1.0
"""Seconds without accepting after a failure."""
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

    `accepted` gets each connection and the IP address of its other end, "" for a Unix socket; it may call `stop`.

    Without free descriptors or memory accepting fails, but queued connections keep the listening socket readable. So
    the acceptor pauses for a second. A spare descriptor takes the first connection of the queue: that one is closed, or
    with `urgent` it is served. `start` ends a pause, for those that know of a descriptor that is free again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        accepted: Callable[[socket.socket, str], object],
        *,
        urgent: bool = False,
        shortage: Shortage = SHORTAGE,
    ) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._accepted = accepted
        self._urgent = urgent
        self._shortage = shortage
        self._spare = SpareDescriptor()
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        """Connections taken out of the queue."""

    def start(self) -> None:
        """Accept from now on. No effect if it does already."""
        self._spare.keep()
        if not self._reading:
            self._cancel_pause()
            self._reading = True
            self._loop.add_reader(self._listener, self._on_acceptable)

    def stop(self) -> None:
        """Leave new connections in the queue of the listening socket."""
        self._cancel_pause()
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)

    def close(self) -> None:
        """Stop, close the listening socket and free its address."""
        self.stop()
        self._spare.release()
        self._listener.close()

    def work(self, name: str) -> Work:
        """What has been taken out of the queue, and whether it is empty, for the watchdog."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        accepts = self._reading or self._timer is not None
        return Work(name, self._taken, accepts and bool(poll.poll(0)), STUCK_SECONDS)

    def _cancel_pause(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _ERRORS_OF_ONE_CONNECTION:
                    continue
                self._pause(error)
                return
            self._taken += 1
            self._hand_over(sock, address)
            if not self._reading:
                return

    def _hand_over(self, sock: socket.socket, address: tuple[str, int] | str) -> None:
        try:
            self._accepted(sock, address[0] if isinstance(address, tuple) else "")
        except Exception as error:  # noqa: BLE001  the others in the queue are served
            report_fault("ends a connection that has just begun", error)
            # Closing alone would leave what was registered to the next socket of the same number.
            self._loop.remove_reader(sock)
            sock.close()

    def _pause(self, error: OSError) -> None:
        self._shortage.note(error)
        self.stop()
        self._timer = self._loop.call_later(PAUSE, self.start)
        if error.errno in EXHAUSTED:
            self._accept_with_spare()

    def _accept_with_spare(self) -> None:
        self._spare.release()
        try:
            sock, address = self._listener.accept()
        except OSError:
            self._spare.keep()
            return
        self._taken += 1
        if self._urgent:
            self._hand_over(sock, address)
        else:
            sock.close()
            self._spare.keep()


class Acceptors:
    """Several acceptors that accept and stop together, as for one number of connections."""

    def __init__(self) -> None:
        self._all: list[Acceptor] = []
        self._accept = True

    def add(self, acceptor: Acceptor) -> None:
        """It accepts from now on, unless all are stopped."""
        self._all.append(acceptor)
        if self._accept:
            acceptor.start()

    def remove(self, acceptor: Acceptor) -> None:
        """Close this one."""
        self._all.remove(acceptor)
        acceptor.close()

    def start(self) -> None:
        self._accept = True
        for acceptor in self._all:
            acceptor.start()

    def stop(self) -> None:
        self._accept = False
        for acceptor in self._all:
            acceptor.stop()

    def close(self) -> None:
        for acceptor in self._all:
            acceptor.close()

    def work(self, name: str) -> list[Work]:
        return [acceptor.work(name) for acceptor in self._all]


def protocol_acceptor(
    loop: asyncio.AbstractEventLoop, listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]
) -> Acceptor:
    """An acceptor that makes each connection that of a new `protocol`. asyncio's own servers log each failure to accept
    and multiply their attempts."""

    async def connect(sock: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(protocol, sock)
        except OSError:
            sock.close()

    return Acceptor(loop, listener, lambda sock, _: spawn(connect(sock), "accepted connection"))
