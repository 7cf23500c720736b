"""A sender and a receiver of datagrams over a simulated line, on a virtual clock: recovery/ with nothing around it.

    Transfer.offer -> Recovery.room, sent -> Line -> Received -> Line -> Recovery.acked -> Transfer pumps again

What the driver of the lane does is done here with byte counts instead of streams: trains of up to 44 datagrams, four of
them in a turn, a timer that is never shorter than a millisecond. What is lost is offered again. RenoFlow is another
flow on the same line, as a kernel without anything newer sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from random import Random
from typing import Final

from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.congestion import CongestionControl
from cryprq_proxy.recovery.pacer import Pacer
from cryprq_proxy.recovery.received import Received, decode, encode
from cryprq_proxy.recovery.recovery import Recovery, Settled
from tests.support.simulated_line import Line, LineTraits
from tests.support.simulator import Clock

DATAGRAM: Final = 1443
"""Bytes on the wire."""
TRAIN: Final = 44
TURN_TRAINS: Final = 4
TURN: Final = 0.0001
TIMER: Final = 0.001
"""Seconds: the loop's timers are no finer."""
GATHER: Final = 0.002
"""Seconds for which datagrams of one train are handed over together."""
ACK_SIZE: Final = 100


class Transfer:
    """One sender, its receiver, and the line in both directions."""

    def __init__(
        self, clock: Clock, out: Line, back: Line, control: CongestionControl | None = None, seed: int = 1
    ) -> None:
        self.clock, self.out, self.back = clock, out, back
        self.control = control or Bbr(clock.now, DATAGRAM)
        self.recovery = Recovery[int](self.control, Pacer(clock.now), clock.now, chance=Random(seed).random)
        self.received = Received()
        self.backlog = 0.0
        """Bytes that want to leave."""
        self.arrived = 0
        """Bytes that the sender knows to have arrived, each once."""
        self.trains = self.pumps = 0
        self.settled: Callable[[], None] = _nothing
        """Called when `arrived` has risen."""
        self._counter = 0
        self._timer = inf
        self._ack_timer = inf

    # --- the sender --------------------------------------------------------------------------------------------------

    def offer(self, size: float) -> None:
        """`size` bytes more want to leave; infinite for as much as the line takes."""
        if self.backlog <= 0:
            self.recovery.app_limited()
        self.backlog += size
        self._pump()

    def stop(self) -> None:
        """Nothing more is offered."""
        self.backlog = 0.0
        self.recovery.app_limited()

    def _pump(self, probe: bool = False) -> None:
        now, recovery, datagram = self.clock.now, self.recovery, self.control.datagram
        self.pumps += 1
        more = False
        for turn in range(TURN_TRAINS + 1):
            if self.backlog <= 0 and not probe:
                recovery.app_limited()
                break
            room = recovery.room(now)
            if room < datagram:
                break
            more = turn == TURN_TRAINS
            if more:
                break
            wanted = max(1, ceil(min(self.backlog / datagram, TRAIN)))
            self._send(min(wanted, room // datagram), now)
            probe = False
        self._arm(now + TURN if more else inf)

    def _send(self, count: int, now: float) -> None:
        recovery, datagram = self.recovery, self.control.datagram
        size = count * datagram
        if recovery.skip(self._counter):
            self._counter += 1
        first = self._counter
        self._counter += count
        self.trains += 1
        cargo = size if self.backlog > 0 else 0
        self.backlog = max(0.0, self.backlog - size)
        asked = recovery.wants_ask(size) or self.backlog <= 0
        recovery.sent(first, count, datagram, size, now, cargo, asked=asked)
        for arrival in self._arrivals(first, count, now):
            self._fly(arrival, ask=asked and arrival.last == first + count - 1)

    def _arrivals(self, first: int, count: int, now: float) -> Iterator[Arrival]:
        """What the receiver gets of a train, as it gets it."""
        out, datagram = self.out, self.control.datagram
        single = []
        for counter in range(first, first + count):
            offered = out.offer(datagram, now)
            if offered is not None:
                single.append((offered[0], counter, offered[1]))
                if out.twice():
                    single.append((offered[0] + TURN, counter, False))
        single.sort()
        run: Arrival | None = None
        for at, counter, marked in single:
            if run is not None and counter == run.last + 1 and at - run.since <= GATHER:
                run.last, run.at, run.marked = counter, at, run.marked + marked
            else:
                if run is not None:
                    yield run
                run = Arrival(counter, counter, at, at, int(marked))
        if run is not None:
            yield run

    def _acknowledged(self, body: bytes) -> None:
        frame = decode(body)
        assert frame is not None
        self._settle(self.recovery.acked(frame, self._counter, self.clock.now))

    def _settle(self, settled: Settled[int]) -> None:
        datagram = self.control.datagram
        for part in settled.lost:
            self.backlog += (part.behind - part.first) * datagram if part.cargo else 0
        before = self.arrived
        for part in settled.acked:
            self.arrived += (part.behind - part.first) * datagram if part.cargo else 0
        self._pump(settled.probe)
        if self.arrived > before:
            self.settled()

    def _arm(self, time: float) -> None:
        now = self.clock.now
        due = min(time, self.recovery.deadline())
        if self.backlog > 0 and time == inf:
            due = min(due, max(self.recovery.next_at(now), now + TIMER))
        if due < self._timer:
            self._timer = due
            self.clock.at(due, lambda: self._due(due))

    def _due(self, due: float) -> None:
        if self._timer != due:
            return
        self._timer = inf
        if self.recovery.deadline() <= self.clock.now:
            self._settle(self.recovery.tick(self.clock.now))
        else:
            self._pump()

    # --- the receiver ------------------------------------------------------------------------------------------------

    def _fly(self, arrival: Arrival, ask: bool) -> None:
        self.clock.at(arrival.at, lambda: self._arrive(arrival, ask))

    def _arrive(self, arrival: Arrival, ask: bool) -> None:
        received, now = self.received, self.clock.now
        received.add(arrival.first, arrival.last, now, eliciting=True, ask=ask, ce=arrival.marked)
        self._ack_due()

    def _ack_due(self) -> None:
        now, due = self.clock.now, self.received.due
        if self._ack_timer <= now:
            self._ack_timer = inf
        if due <= now:
            self._acknowledge(now)
        elif due < self._ack_timer:
            self._ack_timer = due
            self.clock.at(due, self._ack_due)

    def _acknowledge(self, now: float) -> None:
        frame = self.received.take(now)
        assert frame is not None
        offered = self.back.offer(ACK_SIZE, now)
        if offered is not None:
            body = encode(frame)
            self.clock.at(offered[0], lambda: self._acknowledged(body))


@dataclass(slots=True)
class Arrival:
    """Datagrams in a row that the receiver gets at once."""

    first: int
    last: int
    since: float
    at: float
    marked: int


class RenoFlow:
    """TCP with the congestion control of RFC 5681, in packets: doubles its window each round trip, then adds one, and
    halves it for losses, once a round trip. Acknowledgements are not lost."""

    def __init__(self, clock: Clock, out: Line, back: float) -> None:
        """`back`: seconds that an acknowledgement takes."""
        self.clock, self.out, self.back = clock, out, back
        self.window = 10.0
        self.arrived = 0
        """Bytes."""
        self._threshold = inf
        self._in_flight = 0
        self._sent = self._recovered = 0

    def start(self) -> None:
        """From now on it sends what the line takes."""
        self._pump()

    def _pump(self) -> None:
        while self._in_flight + 2 <= self.window:
            now, number = self.clock.now, self._sent
            self._sent += 2
            self._in_flight += 2
            offered = [self.out.offer(DATAGRAM, now) for _ in range(2)]
            times = [each[0] for each in offered if each is not None]
            # A loss shows when the packets behind it are acknowledged: about when it would have been itself.
            arrival = (
                max(times) if len(times) == 2 else now + self.out.wait(now) + self.out.traits.delay + 0.001
            )
            self.clock.at(arrival + self.back, partial(self._hear, number, len(times)))

    def _hear(self, number: int, count: int) -> None:
        self._in_flight -= 2
        self.arrived += count * DATAGRAM
        if count < 2 and number >= self._recovered:
            self._threshold = self.window = max(self.window / 2, 2.0)
            self._recovered = self._sent
        elif self.window < self._threshold:
            self.window += count
        else:
            self.window += count / self.window
        self._pump()


@dataclass
class Measured:
    """What came of a transfer. Rates in Mbit/s, times in seconds."""

    rates: list[float] = field(default_factory=list)
    """In each second."""
    waits: list[float] = field(default_factory=list)
    """How long a datagram that came then would have waited in the bottleneck's queue, every five milliseconds."""

    def rate(self, since: int = 0, until: int | None = None) -> float:
        """On average over the seconds from `since` on."""
        part = self.rates[since:until]
        return sum(part) / len(part)

    def wait(self, share: float, since: float = 0.0) -> float:
        """A quantile of the queue's delay."""
        part = sorted(self.waits[int(since / 0.005) :])
        return part[min(int(share * len(part)), len(part) - 1)]


class Stage:
    """A line of so many Mbit/s and seconds of round trip, its buffer in bandwidth-delay products, and who uses it."""

    def __init__(
        self,
        rate: float = 200.0,
        trip: float = 0.05,
        buffer: float = 1.0,
        *,
        loss: float = 0.0,
        ack_loss: float = 0.0,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        marking: float = inf,
        seed: int = 1,
    ) -> None:
        self.clock = Clock()
        self.begin = self.clock.now
        speed = rate * 1e6 / 8
        self.out = Line(
            LineTraits(
                speed,
                trip / 2,
                buffer * speed * trip,
                loss,
                reorder,
                duplicate=duplicate,
                marking=marking * speed * trip,
            ),
            seed,
        )
        self.back = Line(LineTraits(1e9, trip / 2, loss=ack_loss), seed + 1)

    def transfer(self, control: Callable[[float, int], CongestionControl] = Bbr) -> Transfer:
        """A sender of its own."""
        return Transfer(self.clock, self.out, self.back, control(self.clock.now, DATAGRAM))

    def reno(self) -> RenoFlow:
        """One that competes with it."""
        return RenoFlow(self.clock, self.out, self.back.traits.delay)

    def at(self, time: float, event: Callable[[], None]) -> None:
        """`time`: seconds since the stage was set."""
        self.clock.at(self.begin + time, event)

    def measure(self, flow: Transfer | RenoFlow, seconds: int) -> Measured:
        """Let so many seconds pass."""
        measured, before = Measured(), flow.arrived
        end = self.clock.now + seconds

        def look() -> None:
            measured.waits.append(self.out.wait(self.clock.now))
            if self.clock.now < end:
                self.clock.after(0.005, look)

        look()
        for _ in range(seconds):
            self.clock.run(1.0)
            measured.rates.append((flow.arrived - before) * 8 / 1e6)
            before = flow.arrived
        return measured


def _nothing() -> None:
    pass
