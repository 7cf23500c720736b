"""A line with rate and delay between the paths of two sessions, on a virtual clock, with what surrounds it on hosts.

    source.fill -> kernel: what waits until the line is free -> in flight for `delay` -> target.receive

Time goes in ticks of `tick` seconds, each a turn of the loop on both sides. `kernel` is what a host keeps unsent, in
seconds at the line's rate: a sender is asked for more while there is less. With more than KERNEL it is the queue of the
path too. `Source` always has something to send,
`Sink` takes what comes, at once or at a rate.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from cryprq_proxy.session.path import FILL_MINIMUM, SessionPath
from cryprq_proxy.session.streams import Stream, StreamHandler
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, Link

KERNEL: Final = 0.004
BUDGET: Final = 262_144

_buffer: Final = memoryview(bytearray(FILL_MINIMUM + BUDGET))
_ZEROS: Final = bytes(131_072)


class Source(StreamHandler):
    """Sends as much as it may, unless it is `idle`."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.idle = False

    def opened(self) -> None:
        self.writable()

    def writable(self) -> None:
        assert self.stream is not None
        room = min(self.stream.request_room(), self.stream.frame_limit)
        if room and not self.idle:
            self.stream.send(_ZEROS[:room])
            self.stream.wait_for_turn()

    def finish(self) -> None:
        """The target ends its half."""
        assert self.stream is not None
        self.idle = True
        self.stream.finish()


class Sink(StreamHandler):
    """Takes what comes: at once, or `rate` bytes a second as soon as that is set."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.rate: float | None = None
        self.held = 0
        self.taken = 0

    def data_received(self, data: memoryview) -> None:
        self.held += len(data)
        if self.rate is None:
            self.take(self.held)

    def take(self, size: float) -> None:
        assert self.stream is not None
        if size := min(int(size), self.held):
            self.held -= size
            self.taken += size
            self.stream.consumed(size)


class _Direction:
    def __init__(
        self, source: SessionPath, target: SessionPath, rate: float, delay: float, tick: float, kernel: float
    ) -> None:
        self.source, self.target = source, target
        self._room = max(rate * kernel, 65_536)
        self._tick = tick
        self.rate, self.delay = rate, delay
        self._kernel: deque[bytes] = deque()
        self._flight: deque[tuple[float, bytes]] = deque()
        self._unsent = 0
        self._free = 0.0
        self._unused = b""

    def send(self, now: float) -> None:
        while self._unsent < self._room:
            size = self.source.fill(_buffer, self.source.queue_target, now)
            if not size:
                break
            self._kernel.append(bytes(_buffer[:size]))
            self._unsent += size
        self._free = max(self._free, now - self._tick)
        while self._kernel and self._free <= now:
            piece = self._kernel.popleft()
            self._unsent -= len(piece)
            self._free += len(piece) / self.rate
            self._flight.append((self._free + self.delay, piece))

    @property
    def under_way(self) -> int:
        """Bytes that the kernel has taken, and that have not arrived."""
        return self._unsent + sum(len(piece) for _, piece in self._flight)

    def deliver(self, now: float) -> None:
        while self._flight and self._flight[0][0] <= now:
            self._unused += self._flight.popleft()[1]
        if self._unused:
            self._unused = self._unused[self.target.receive(memoryview(self._unused), now) :]


class Line:
    """`rate` in bytes a second, `round_trip` in seconds; both hosts are fast enough for it."""

    def __init__(
        self, link: Link, rate: float, round_trip: float, tick: float = 0.001, kernel: float = KERNEL
    ) -> None:
        self.link = link
        self._tick = tick
        self.now = link.now
        self.rate = rate
        self._paths = link.carrier.paths
        self._directions = [
            _Direction(*pair, rate, round_trip / 2, tick, kernel) for pair in (self._paths, self._paths[::-1])
        ]
        for path in self._paths:
            path.pace(rate)
        self.sinks: list[Sink] = []
        self.sources: list[Source] = []
        link.serve = self._accept  # type: ignore[assignment]

    @property
    def downwards(self) -> int:
        """Bytes on their way to the client."""
        return self._directions[1].under_way

    def lengthen(self, round_trip: float) -> None:
        """The path is another one from now on."""
        for direction in self._directions:
            direction.delay = round_trip / 2

    def download(self) -> Sink:
        """A new stream on which the exit sends."""
        sink = Sink()
        sink.stream = self.link.client.open(StreamProtocol.TCP, TARGET, sink)
        self.sinks.append(sink)
        return sink

    def _accept(self, stream: Stream) -> Source:
        source = Source()
        self.sources.append(source)
        source.stream = stream
        stream.handler = source
        stream.accept()
        source.writable()
        return source

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / self._tick)):
            self.now += self._tick
            for path in self._paths:
                path.session.turn.renew()
                if path.deadline() <= self.now:
                    path.tick(self.now)
            for direction in self._directions:
                direction.deliver(self.now)
            for sink in self.sinks:
                if sink.rate is not None:
                    sink.take(sink.rate * self._tick)
            for direction in self._directions:
                direction.send(self.now)
