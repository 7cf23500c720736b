"""A carrier on a stage: a path on a socket and a loop that do what the test says, the session of the peer at the other
end of the wire, and a virtual clock. Nothing waits and nothing runs by itself."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cryprq_proxy.carriers import carrier as carrier_module
from cryprq_proxy.carriers import tcp as tcp_module
from cryprq_proxy.carriers.carrier import Carrier
from cryprq_proxy.carriers.tcp import TcpCarrier
from cryprq_proxy.errors import PeerError
from cryprq_proxy.session.path import FILL_MINIMUM
from tests.support.links import Link

BOUNDLESS = 1 << 40
FD = 7


class Clock:
    """Seconds since boot, and those of them that the machine was awake."""

    def __init__(self) -> None:
        self.boot = 1000.0
        self.awake = 1000.0

    def advance(self, seconds: float) -> None:
        self.boot += seconds
        self.awake += seconds

    def suspend(self, seconds: float) -> None:
        self.boot += seconds


class StageTimer:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class StageLoop:
    """What a carrier uses of an event loop. Timers run on the time that the machine is awake, as asyncio's do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.timers: list[StageTimer] = []

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> bool:
        return self.writers.pop(fd, None) is not None

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> StageTimer:
        assert delay >= 0
        timer = StageTimer(self._clock.awake + delay, callback)
        self.timers.append(timer)
        return timer

    def turn(self) -> bool:
        """Run what is due, once; whether there was anything."""
        due = [timer for timer in self.timers if not timer.cancelled and timer.at <= self._clock.awake]
        self.timers = [timer for timer in self.timers if not timer.cancelled and timer not in due]
        callbacks = [*self.soon, *(timer.callback for timer in due)]
        self.soon.clear()
        for callback in callbacks:
            callback()
        return bool(callbacks)


class StageSocket:
    """A connected socket. `room`: bytes that the kernel still takes; `incoming`: what has arrived from the peer."""

    def __init__(self) -> None:
        self.room = BOUNDLESS
        self.outgoing = bytearray()
        self.sends: list[int] = []
        self.incoming = bytearray()
        self.ended = False
        self.broken: int | None = None
        self.lowat: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        return FD

    def setsockopt(self, level: int, name: int, value: int) -> None:
        assert (level, name) == (socket.IPPROTO_TCP, carrier_module.TCP_NOTSENT_LOWAT)
        self.lowat.append(value)

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        raise OSError(errno.ENOPROTOOPT, "this is no TCP")

    def send(self, data: memoryview) -> int:
        self._check()
        size = min(len(data), self.room)
        if not size:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.room -= size
        self.outgoing += data[:size]
        self.sends.append(size)
        return size

    def recv_into(self, buffer: memoryview) -> int:
        self._check()
        size = min(len(buffer), len(self.incoming))
        if not size and not self.ended:
            raise BlockingIOError(errno.EAGAIN, "empty")
        buffer[:size] = self.incoming[:size]
        del self.incoming[:size]
        return size

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        assert not self.closed
        if self.broken is not None:
            raise OSError(self.broken, "what the system says")


class Stage:
    """A path of the client's session on a TcpCarrier, not yet started; `peer` is the other end of it. `lost` has what
    the owner was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = Clock()
        monkeypatch.setattr(carrier_module, "clock", lambda: self.clock.boot)
        monkeypatch.setattr(tcp_module, "clock", lambda: self.clock.boot)
        monkeypatch.setattr(carrier_module, "time", SimpleNamespace(monotonic=lambda: self.clock.awake))
        self.loop = StageLoop(self.clock)
        self.sock = StageSocket()
        self.link = Link(connected=False, soon=self.loop.call_soon, **options)
        self.lost: list[PeerError | None] = []
        self.path, self.peer = self.link.paths()
        loop: Any = self.loop
        sock: Any = self.sock
        self.carrier = TcpCarrier(loop, sock, self.path, self)
        self._peer_has = bytearray()

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        assert carrier is self.carrier
        self.lost.append(error)

    def run(self) -> None:
        """Let our side do all that it can do with the bytes and the room that there are."""
        progress = True
        while progress:
            progress = self.loop.turn()
            if (self.sock.incoming or self.sock.ended) and FD in self.loop.readers:
                self.loop.readers[FD]()
                progress = True
            if self.sock.room and FD in self.loop.writers:
                self.loop.writers[FD]()
                progress = True

    def deliver(self) -> None:
        """What is on the wire arrives at the peer's session."""
        self._peer_has += self.sock.outgoing
        self.sock.outgoing.clear()
        view = memoryview(bytes(self._peer_has))
        self.link.exit.turn.renew()
        del self._peer_has[: self.peer.receive(view, self.clock.boot)]

    def answer(self) -> bytes:
        """What the peer's session sends."""
        buffer = memoryview(bytearray(FILL_MINIMUM + (1 << 20)))
        sent = b""
        self.link.exit.turn.renew()
        while size := self.peer.fill(buffer, 1 << 20, self.clock.boot):
            sent += buffer[:size]
        return sent

    def exchange(self) -> None:
        """Both sides go on until all is quiet."""
        while True:
            self.run()
            self.deliver()
            answer = self.answer()
            if not answer:
                return
            self.sock.incoming += answer
