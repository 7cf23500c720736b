"""Whatever the network does to datagrams and acknowledgements, each piece of cargo ends acknowledged exactly once.

The owner's books: a piece is with the owner, or in flight. A piece that comes back is sent again.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from math import inf
from random import Random

import pytest

from cryprq_proxy.recovery.received import AckFrame, Received, decode, encode
from cryprq_proxy.recovery.recovery import Recovery, Settled
from tests.support.recovery import DATAGRAM, NotedControl, OpenPacer

TRAIN = 12
PIECES = 1_500


@dataclass
class Weather:
    """What happens to a datagram, or to an acknowledgement."""

    loss: float = 0.0
    duplicates: float = 0.0
    reordered: float = 0.0
    """The share that is late by up to two round trips."""
    black_out: tuple[float, float] = (0.0, 0.0)

    def arrivals(self, now: float, chance: Random) -> list[float]:
        """The times at which copies of it arrive."""
        if self.black_out[0] <= now < self.black_out[1] or chance.random() < self.loss:
            return []
        copies = 1 + (chance.random() < self.duplicates)
        late = [0.1 * chance.random() if chance.random() < self.reordered else 0.0 for _ in range(copies)]
        return [now + 0.025 + extra for extra in late]


Cargo = tuple[int, ...]
"""Numbers of pieces, one in each datagram."""


class World:
    """A sender with pieces to deliver, a receiver, and the weather between them, on a virtual clock. `back` is that of
    acknowledgements, if it is another."""

    def __init__(self, weather: Weather, seed: int, back: Weather | None = None) -> None:
        self.weather, self.back, self.chance = weather, back or weather, Random(seed)
        self.now = 0.0
        self.recovery = Recovery[Cargo](
            NotedControl(60 * DATAGRAM), OpenPacer(), 0.0, chance=self.chance.random
        )
        self.received = Received()
        self.seen: set[int] = set()
        """Counters: the lane's replay window."""
        self.arrived: set[int] = set()
        self.mine = deque(range(PIECES))
        self.in_flight: set[int] = set()
        self.acked: set[int] = set()
        self.counter = 0
        self.events: list[tuple[float, int, tuple[int, int, bool] | bytes]] = []
        self.happened = 0
        self.progress: list[float] = []
        """The times at which something was acknowledged."""

    def run(self) -> None:
        while len(self.acked) < PIECES:
            self.send()
            times = (self.events[0][0] if self.events else inf, self.recovery.deadline(), self.received.due)
            assert min(times) < inf, "everybody waits"
            assert min(times) < 3_600
            self.now = max(self.now, min(times))
            if times[0] <= self.now:
                self.arrive()
            if self.recovery.deadline() <= self.now:
                self.settle(self.recovery.tick(self.now))
            if self.received.due <= self.now:
                frame = self.received.take(self.now)
                assert frame is not None
                self.spread(encode(frame))

    def send(self, probe: bool = False) -> None:
        while probe or (self.mine and self.recovery.room(self.now)):
            while self.recovery.skip(self.counter):
                self.counter += 1
            count = min(TRAIN, max(1, self.recovery.room(self.now) // DATAGRAM), len(self.mine))
            cargo = tuple(self.mine.popleft() for _ in range(count))
            assert not self.in_flight & set(cargo)
            self.in_flight |= set(cargo)
            size = max(1, count) * DATAGRAM
            ask = probe or self.recovery.wants_ask(size)
            self.recovery.sent(
                self.counter, max(1, count), DATAGRAM, size, self.now, cargo if cargo else None, asked=ask
            )
            for at in range(max(1, count)):
                piece = cargo[at] if cargo else -1
                self.spread((self.counter + at, piece, ask and at + 1 >= count))
            self.counter += max(1, count)
            probe = False
        if not self.mine:
            self.recovery.app_limited()

    def spread(self, what: tuple[int, int, bool] | bytes) -> None:
        weather = self.back if isinstance(what, bytes) else self.weather
        for at in weather.arrivals(self.now, self.chance):
            self.happened += 1
            heapq.heappush(self.events, (at, self.happened, what))

    def arrive(self) -> None:
        what = heapq.heappop(self.events)[2]
        if isinstance(what, bytes):
            frame = decode(what)
            assert isinstance(frame, AckFrame)
            self.settle(self.recovery.acked(frame, self.counter, self.now))
            return
        counter, piece, ask = what
        if counter not in self.seen:
            self.seen.add(counter)
            self.arrived.add(piece)
            self.received.add(counter, counter, self.now, eliciting=True, ask=ask)

    def settle(self, settled: Settled[Cargo]) -> None:
        if settled.acked:
            self.progress.append(self.now)
        for part in settled.acked:
            pieces = set(part.cargo[part.first : part.behind])
            assert pieces <= self.in_flight, "acknowledged, and not in flight"
            assert pieces <= self.arrived, "acknowledged, and never arrived"
            self.in_flight -= pieces
            self.acked |= pieces
        for part in settled.lost:
            pieces = set(part.cargo[part.first : part.behind])
            assert pieces <= self.in_flight, "lost, and not in flight"
            self.in_flight -= pieces
            self.mine.extendleft(sorted(pieces, reverse=True))
        assert not self.in_flight & set(self.mine)
        if settled.probe:
            self.send(probe=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "weather",
    [
        Weather(),
        Weather(loss=0.01),
        Weather(loss=0.3),
        Weather(loss=0.6),
        Weather(duplicates=0.5),
        Weather(reordered=0.2),
        Weather(loss=0.1, duplicates=0.1, reordered=0.1),
        Weather(loss=0.02, black_out=(0.2, 3.2)),
        Weather(black_out=(0.2, 30.0)),
    ],
    ids=str,
)
def test_each_piece_is_acknowledged_exactly_once(weather: Weather, seed: int) -> None:
    world = World(weather, seed)
    world.run()
    assert world.acked == world.arrived - {-1} == set(range(PIECES))
    assert not world.in_flight and not world.mine
    assert world.recovery.in_flight <= world.recovery.control.window


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("back", [Weather(loss=0.3), Weather(reordered=0.7, duplicates=0.5)], ids=str)
def test_lost_and_late_acknowledgements_cost_little(back: Weather, seed: int) -> None:
    """A later one tells what an earlier one has told."""
    world = World(Weather(), seed, back)
    world.run()
    assert world.acked == set(range(PIECES))
    assert world.counter < 1.1 * PIECES


@pytest.mark.parametrize("seed", range(4))
def test_without_loss_nothing_is_sent_twice(seed: int) -> None:
    world = World(Weather(), seed)
    world.run()
    assert (world.recovery.lost, world.recovery.spurious, world.recovery.timeouts) == (0, 0, 0)
    assert world.recovery.delivered == PIECES * DATAGRAM


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("seconds", "soon"), [(0.5, 0.4), (3.0, 0.4), (9.0, 0.4), (60.0, 3.1)])
def test_after_a_black_out_it_goes_on_soon(seconds: float, soon: float, seed: int) -> None:
    end = 0.2 + seconds
    world = World(Weather(black_out=(0.2, end)), seed)
    world.run()
    assert min(time for time in world.progress if time > end) - end < soon
    assert world.counter < PIECES + 250, "probes, and what was in flight"
