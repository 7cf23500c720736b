"""A network of UDP datagrams on the simulator's clock, with sockets and a loop of its own: the lane's real carriers run
over it, and meet what no kernel does to datagrams on request.

    LaneCarrier -> AirSocket.send -> Air: lost, repeated, late, too large, marked -> AirSocket.receive -> Inbox

What arrives together from one sender, with one size, is one batch, as with UDP_GRO, if the socket has that.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from cryprq_proxy.carriers.lane.batch import MAX_SEGMENTS, Batch, Sent, SocketAddress, UdpOffload, UdpPeer
from tests.support.read_behind import read_behind
from tests.support.simulator import Clock

HEADERS: Final = 28
"""Bytes of IP and UDP in front of a payload."""


class AirLoop:
    """What carriers need of an event loop."""

    class Timer:
        def __init__(self, callback: Callable[[], None]) -> None:
            self.callback: Callable[[], None] | None = callback

        def cancel(self) -> None:
            self.callback = None

        def run(self) -> None:
            callback, self.callback = self.callback, None
            if callback is not None:
                callback()

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.readers: dict[int, Callable[[], None]] = {}
        self.timers = self.fired = 0
        """Those that have been made so far, and those whose time has come."""
        self._alive: list[AirLoop.Timer] = []

    @property
    def typed(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        return self.clock.now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self.clock.at(self.clock.now, lambda: callback(*args))

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> AirLoop.Timer:
        def fire() -> None:
            self.fired += 1
            callback(*args)

        timer = AirLoop.Timer(fire)
        self.timers += 1
        self.clock.after(delay, timer.run)
        self._alive = [other for other in self._alive if other.callback is not None]
        self._alive.append(timer)
        return timer

    def live_timers(self) -> int:
        return sum(timer.callback is not None for timer in self._alive)

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        self.readers[fd] = lambda: callback(*args)
        self.readable(fd)

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """Something may be there."""
        self.clock.at(self.clock.now, lambda: self.readers.get(fd, _nothing)())


class Air:
    """The network, in both directions. Seconds, shares, bytes of UDP payload."""

    def __init__(self, clock: Clock, seed: int = 0) -> None:
        self.clock = clock
        self.loop = AirLoop(clock)
        self.draw = random.Random(seed)
        self.delay, self.jitter = 0.01, 0.0
        self.loss = self.repeated = 0.0
        self.mtu = 1_500
        """Of the narrowest device but the first."""
        self.device = 1_500
        """Of the first one, which refuses what is larger."""
        self.marks = 0.0
        """The share of datagrams that a router marks, of those whose sender heeds it."""
        self.blocked: Callable[[SocketAddress, SocketAddress], bool] = lambda source, target: False
        self.refuse: Callable[[], Sent | None] = lambda: None
        """What a send ends with, with nothing sent; None: all goes well."""
        self.sockets: dict[SocketAddress, AirSocket] = {}
        self.nat: dict[SocketAddress, SocketAddress] = {}
        """What addresses are outside; what comes back to such a one passes as long as it is here."""
        self.home = "192.0.2.1"
        """Where a client's next socket is."""
        self.sent: list[tuple[float, SocketAddress, SocketAddress, int]] = []
        """When, from where, to where, bytes: of each datagram."""
        self._port = 40_000

    def carry(self, source: SocketAddress, target: SocketAddress, data: bytes, ect: bool) -> None:
        source = self.nat.get(source, source)
        self.sent.append((self.clock.now, source, target, len(data)))
        if len(data) + HEADERS > self.mtu or self.blocked(source, target):
            return
        for _ in range(1 + (self.draw.random() < self.repeated)):
            if self.draw.random() < self.loss:
                continue
            marked = ect and self.draw.random() < self.marks
            delay = self.delay + self.draw.random() * self.jitter

            def arrive(marked: bool = marked) -> None:
                sock = self.sockets.get(self._inside(target))
                if sock is not None and (sock.peer is None or sock.peer.address == source):
                    sock.queue.append((source, data, marked))
                    self.loop.readable(sock.fileno())

            self.clock.after(delay, arrive)

    def _inside(self, target: SocketAddress) -> SocketAddress:
        return next((inside for inside, outside in self.nat.items() if outside == target), target)

    def bytes_to(self, target: SocketAddress) -> int:
        """Sent to `target` so far."""
        return sum(size for _, _, to, size in self.sent if to == target)

    def make(
        self, address: SocketAddress, offload: UdpOffload, mark: int = 0, tag: int | None = None
    ) -> AirSocket:
        """In place of the class UdpSocket."""
        self._port += 1
        host = self.home if address[0] in ("0.0.0.0", "::") else address[0]
        return AirSocket(self, (host, address[1] or self._port), offload)

    def connected(self, address: SocketAddress, offload: UdpOffload, mark: int = 0) -> AirSocket:
        sock = self.make(("0.0.0.0", 0), offload)
        sock.peer = UdpPeer(address)
        return sock


class AirSocket:
    """A UdpSocket."""

    _numbers = 0

    def __init__(self, air: Air, address: SocketAddress, offload: UdpOffload) -> None:
        AirSocket._numbers += 1
        self._fd = AirSocket._numbers
        self._air = air
        self.address = address
        self.offload = offload
        self.peer: UdpPeer | None = None
        self.shared = False
        self.queue: deque[tuple[SocketAddress, bytes, bool]] = deque()
        self.sent = self.sent_bytes = self.received = self.received_bytes = self.dropped = self.errors = 0
        air.sockets[address] = self

    def fileno(self) -> int:
        return self._fd

    def mtu(self) -> int:
        return self._air.device - HEADERS

    def close(self) -> None:
        self._air.sockets.pop(self.address, None)

    def send(self, data: memoryview, segment: int, to: UdpPeer | None = None, ect: bool = False) -> Sent:
        outcome = self._air.refuse()
        if outcome is not None:
            return outcome
        if min(segment, len(data)) + HEADERS > self._air.device:
            return Sent.TOO_BIG
        peer = to or self.peer
        assert peer is not None
        for start in range(0, len(data), segment):
            self.sent += 1
            self._air.carry(self.address, peer.address, bytes(data[start : start + segment]), ect)
        return Sent.OK

    def receive(self, buffer: memoryview, at: int = 0) -> Batch | None:
        if not self.queue:
            return None
        source, first, marked = self.queue[0]
        size, count = 0, 0
        while self.queue and self.queue[0][::2] == (source, marked) and count < MAX_SEGMENTS:
            data = self.queue[0][1]
            if len(data) > len(first) or (count and not self.offload.gro) or size + len(data) > 65_535:
                break
            self.queue.popleft()
            buffer[at + size : at + size + len(data)] = data
            size += len(data)
            count += 1
            if len(data) < len(first):
                break
        return Batch(buffer, size, len(first), self.peer or UdpPeer(source), marked)

    def receive_behind(self, batch: Batch, most: int) -> tuple[Batch, Batch | None, bool]:
        return read_behind(self.receive, batch, most)


def _nothing() -> None:
    """Nobody reads."""
