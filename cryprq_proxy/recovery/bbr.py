"""BBR: sends as fast as the path delivers, and keeps its queue empty (draft-ietf-ccwg-bbr).

The model is two figures: the bandwidth (bandwidth.py) and the least round trip. Their product is what the path holds
without a queue. The pacing rate is a gain times the bandwidth, and the window bounds what is in flight if the model is
wrong. Loss says nothing about either.

    STARTUP   gain 2.77, until the bandwidth stops growing or a queue shows
       |
     DRAIN    gain 0.36, until no more is in flight than the path holds
       |
       v
    +> UP     gain 1.25 for one round trip: is there more?
    |  |
    | DOWN    gain 0.75, until the queue of UP is gone --------+
    |  |                                                       | it does not go: the model is old, or others queue
    +-CRUISE  gain 0.98 for six round trips                    v
       |                                                   PROBE_RTT, gain 1, half the window for 200 ms
       +-- the least round trip is ten seconds old ----------->|
    CRUISE <---------------------------------------------------+

What differs from the draft was measured. CRUISE has 0.98: with 1 a queue that once stood would stand for good. STARTUP
ends by the round trip as well, before it has filled a deep buffer. UP follows upon UP as long as the bandwidth grows
and nothing queues. Before the bandwidth has been measured by bulk, the rate does not fall below FLOOR datagrams a round
trip: what a page requests must not teach its connection to be slow.

Others may keep the queue full, and DOWN tells whose it is. By the part by which the queue falls in DOWN it is ours: a
share of that part is given up each time, so that a flow that grows slowly finds room beside a large one of ours. If it
does not fall at all, we are small beside flows that do not yield: then CRUISE holds its rate, and UP has 1.5.

The ceiling (ceiling.py) stands above the model where very much is lost.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Final

from .bandwidth import Bandwidth
from .ceiling import Ceiling
from .congestion import Sample
from .drain import Drain

STARTUP_GAIN: Final = 2.77
DRAIN_GAIN: Final = 0.36
UP_GAIN: Final = 1.25
DOWN_GAIN: Final = 0.75
CRUISE_GAIN: Final = 0.98

# Where the queue is that of others.
HOLD_GAIN: Final = 1.0
"""Of CRUISE."""
CLAIM_GAIN: Final = 1.5
"""Of UP."""

FULL_GROWTH: Final = 1.25
"""The bandwidth grows if it is so much larger than before,"""
FULL_ROUNDS: Final = 3
"""and has stopped to if it did not in so many rounds."""
QUEUE_SHARE: Final = 1.25
QUEUE_SECONDS: Final = 0.004
"""There is a queue if all round trips of a round exceed QUEUE_SHARE of the least one by QUEUE_SECONDS."""
CRUISE_TRIPS: Final = 6
"""Least round trips of CRUISE."""
UNDRAINED_TRIPS: Final = 8
UNDRAINED_ROUNDS: Final = 3
"""A queue of our own drains in so many least round trips, or rounds."""
OTHERS: Final = 0.03
"""The queue is that of others if DOWN has not made the round trip shorter by such a part."""
YIELD: Final = 0.35
"""Of the part by which DOWN has, where others queue, the bandwidth gives up so much."""
FALLEN: Final = 0.6
"""If the second half of DOWN delivers less than so much of the bandwidth, the path has become slower."""
AGAIN: Final = 1.15
"""UP follows upon UP if the bandwidth has grown so much by it."""

LEAST_SECONDS: Final = 10.0
"""Age of the least round trip at which it is measured again."""
HASTE_SECONDS: Final = 2.5
"""Time between two measurements where DOWN does not drain the queue."""
PROBE_SECONDS: Final = 0.2
NEAR: Final = 1 / 32
"""A round trip that exceeds the least one by such a part shows that it still holds."""

FIRST_WINDOW: Final = 32
"""Datagrams."""
FIRST_ROUND_TRIP: Final = 0.001
"""Seconds, for the rate before any round trip is known: FIRST_WINDOW leaves almost at once."""
FLOOR: Final = 32
"""Datagrams a round trip, before bulk has measured the bandwidth."""
LEAST_FLOOR: Final = 4
"""The same afterwards, and the datagrams that may be in flight whatever the model says."""
WINDOW_GAIN: Final = 2
WINDOW_SECONDS: Final = 0.004
WINDOW_DATAGRAMS: Final = 48
"""Added to the window: acknowledgements come for whole trains."""

SILENT_TRIPS: Final = 2
SILENT_SECONDS: Final = 0.1
"""A round that takes so many smoothed round trips, and so many seconds, was a silence."""


class Phase(Enum):
    """Where the cycle is; see above."""

    STARTUP = "startup"
    DRAIN = "drain"
    UP = "up"
    DOWN = "down"
    CRUISE = "cruise"
    PROBE_RTT = "probe_rtt"


_GAINS: Final = {
    Phase.STARTUP: STARTUP_GAIN,
    Phase.DRAIN: DRAIN_GAIN,
    Phase.UP: UP_GAIN,
    Phase.DOWN: DOWN_GAIN,
    Phase.CRUISE: CRUISE_GAIN,
    Phase.PROBE_RTT: 1.0,
}
_GAINS_WITH_OTHERS: Final = {**_GAINS, Phase.UP: CLAIM_GAIN, Phase.CRUISE: HOLD_GAIN}


class Bbr:
    """One side's model of one path. A CongestionControl (congestion.py)."""

    __slots__ = (
        "_bandwidth",
        "_drain",
        "_full_at",
        "_full_rounds",
        "_gain",
        "_least_at",
        "_limited_until",
        "_others",
        "_probe_end",
        "_probe_least",
        "_probed_at",
        "_queued",
        "_refresh",
        "_restart",
        "_round_end",
        "_round_least",
        "_round_limited",
        "_round_since",
        "_rounds",
        "_silenced",
        "_since",
        "_smoothed",
        "_up_from",
        "ceiling",
        "datagram",
        "filled",
        "least",
        "phase",
        "rate",
        "window",
    )

    def __init__(self, now: float, datagram: int, round_trip: float = 0.0) -> None:
        """`datagram`: its size on the wire, in bytes. `round_trip`: what is known of it, in seconds, or 0."""
        self.datagram = datagram
        self._begin(now, round_trip)

    def reset(self, now: float) -> None:
        """Another path: begin anew."""
        self._begin(now, 0.0)

    def _begin(self, now: float, round_trip: float) -> None:
        self._bandwidth = Bandwidth()
        self.ceiling = Ceiling()
        self.least = round_trip or inf
        """The least round trip in seconds; infinite before the first one."""
        self._least_at = self._probed_at = now
        self._smoothed = round_trip
        # A round ends when something is acknowledged that was sent after the round began.
        self._round_end = 0
        self._round_least = inf
        self._round_limited = self._queued = False
        self._round_since = now
        self._limited_until = 0
        self.filled = False
        """Whether bulk has shown the bandwidth."""
        self._full_at = 0.0
        self._full_rounds = 0
        self._restart = self._refresh = self._silenced = False
        self._up_from = 0.0
        self._drain = Drain()
        """What DOWN does to the queue."""
        self._others = False
        """Whether DOWN has shown that others fill it."""
        self._probe_end = self._probe_least = inf
        self._enter(Phase.STARTUP, now)
        self._set()

    @property
    def bandwidth(self) -> float:
        """What the path delivers, in bytes a second; 0 before the first sample."""
        return self._bandwidth.best

    # --- what the sender reports -------------------------------------------------------------------------------------

    def sent(self, size: int, now: float, in_flight: int) -> None:
        """`size` bytes leave, with `in_flight` before them. After a rest there is no queue of our own: no DOWN is
        needed, a burst goes at the bandwidth, and its first round trip is a fresh one."""
        if in_flight or self._restart:
            return
        self._restart = True
        self._refresh = now - self._least_at > LEAST_SECONDS
        if self.phase in (Phase.UP, Phase.DOWN):
            self._enter(Phase.CRUISE, now)
            self._set()

    def lost(self, size: int, now: float, in_flight: int) -> None:
        """`size` bytes are lost."""
        self.ceiling.lost += size

    def silent(self, now: float) -> None:
        """Three probe time-outs went by (persistent congestion, RFC 9002 section 7.6). Until a round has passed the
        window is that of the beginning; the model stands, for most silences are short."""
        self._silenced = True
        self._set()

    def acked(self, sample: Sample) -> None:
        """Something was acknowledged; its losses were reported before."""
        now, trip = sample.now, sample.round_trip
        if now < self._since:
            self._turn_back(now)
        if trip:
            self._measure(trip, now)
        limited = sample.app_limited or sample.prior_delivered < self._limited_until
        ceiling = self.ceiling
        ceiling.acked += sample.acked
        ceiling.marked += sample.ce
        self._round_limited |= limited
        bandwidth = self._bandwidth
        # What was acknowledged in less than half a round trip came at once after a pause of the path, or of the peer.
        known = sample.rate > 0 and sample.interval >= self.least / 2
        if known and (sample.rate > bandwidth.best or not limited):
            bandwidth.add(sample.rate, now)
        if sample.prior_delivered >= self._round_end:
            self._end_round(sample, now)
        self._step(sample, now)
        self._restart = False
        self._set()

    def _measure(self, trip: float, now: float) -> None:
        """A raw round trip: one with the delay of its acknowledgement taken off can be 0 on a fast path."""
        self._smoothed = trip if not self._smoothed else self._smoothed + (trip - self._smoothed) / 8
        self._round_least = min(self._round_least, trip)
        self._probe_least = min(self._probe_least, trip)
        if trip <= self.least or self._refresh:
            self.least, self._least_at, self._refresh = trip, now, False
        elif trip <= self.least * (1 + NEAR):
            self._least_at = now

    def _turn_back(self, now: float) -> None:
        """The clock was put back: nothing that is known happened later."""
        self._since = now
        self._least_at, self._probed_at = min(self._least_at, now), min(self._probed_at, now)
        self._round_since = min(self._round_since, now)
        if self._probe_end < inf:
            self._probe_end = min(self._probe_end, now + PROBE_SECONDS)

    # --- rounds ------------------------------------------------------------------------------------------------------

    def _end_round(self, sample: Sample, now: float) -> None:
        limited = self._round_limited
        if not limited:
            self._bandwidth.next_round(now)
        self._rounds += 1
        self._queued = self.least * QUEUE_SHARE + QUEUE_SECONDS < self._round_least < inf
        self._drain.end_round(self._round_least)
        seconds = now - self._round_since
        if self._silenced or seconds > SILENT_TRIPS * self._smoothed + SILENT_SECONDS:
            # What is lost in a silence says nothing about the rate.
            self.ceiling.clear()
        elif self.ceiling.end_round(
            self._bandwidth.best, seconds, self.datagram, limited=limited, starting=not self.filled
        ):
            self.filled = True
        if not self.filled and not limited:
            self._look_for_end()
        self._silenced = False
        self._round_end = sample.delivered
        self._round_least = inf
        self._round_limited = False
        self._round_since = now

    def _look_for_end(self) -> None:
        """Whether STARTUP has found the bandwidth: it grows no more, or a queue shows."""
        best = self._bandwidth.best
        if best >= self._full_at * FULL_GROWTH:
            self._full_at, self._full_rounds = best, 0
        else:
            self._full_rounds += 1
        if self._full_rounds >= FULL_ROUNDS or self._queued:
            self.filled = True

    # --- phases ------------------------------------------------------------------------------------------------------

    def _step(self, sample: Sample, now: float) -> None:
        """Go on to the next phase if this one is over."""
        phase = self.phase
        if phase is Phase.PROBE_RTT:
            self._probe(sample, now)
        elif phase is Phase.STARTUP:
            if self.filled:
                self._enter(Phase.DRAIN, now)
        elif phase is Phase.UP:
            if now - self._since >= self.least or self.ceiling.marked:
                self._enter(Phase.DOWN, now)
        elif phase is Phase.CRUISE:
            if now - self._since >= CRUISE_TRIPS * self.least or self._grows():
                self._up_from = self._bandwidth.best
                self._enter(Phase.UP, now)
        elif sample.in_flight <= max(self._product(), LEAST_FLOOR * self.datagram):
            self._drained(phase, now)
        elif self._rounds >= UNDRAINED_ROUNDS or (
            self._rounds and now - self._since > UNDRAINED_TRIPS * self.least
        ):
            self._undrained(now)
        if (
            now - self._least_at > LEAST_SECONDS
            and self.phase is not Phase.PROBE_RTT
            and not self._restart
            and not self._refresh
        ):
            self._start_probe(now)

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self._gain = (_GAINS_WITH_OTHERS if self._others and self._queued else _GAINS)[phase]
        if phase is Phase.DOWN:
            self._drain.begin()
        self._since = now
        self._rounds = 0

    def _grows(self) -> bool:
        """In the first round of CRUISE the bandwidth tells what the last UP has brought."""
        return (
            self._rounds == 1
            and self._bandwidth.best >= AGAIN * self._up_from > 0
            and not self._queued
            and self.ceiling.rate == inf
        )

    def _drained(self, phase: Phase, now: float) -> None:
        """No more is in flight than the path holds. If there is a queue, it is that of others."""
        if phase is Phase.DRAIN:
            self._enter(Phase.UP, now)
            return
        self._others = False
        self._yield()
        self._enter(Phase.CRUISE, now)

    def _undrained(self, now: float) -> None:
        """What should have drained did not: the bandwidth fell, the round trip grew, or others fill the queue."""
        half, bandwidth = (self._since + now) / 2, self._bandwidth
        if self.phase is Phase.DRAIN or bandwidth.since(half) < FALLEN * bandwidth.best:
            bandwidth.forget(half)
        else:
            self._others = self._drain.fell < OTHERS
            self._yield()
        if now - self._probed_at > HASTE_SECONDS:
            self._start_probe(now)
        else:
            self._enter(Phase.CRUISE, now)

    def _yield(self) -> None:
        """A queue stands after DOWN: give up a share of what is ours."""
        if self._queued:
            self._bandwidth.scale(1 - YIELD * self._drain.fell)

    def _start_probe(self, now: float) -> None:
        self._enter(Phase.PROBE_RTT, now)
        self._probe_end = inf
        self._probe_least = inf

    def _probe(self, sample: Sample, now: float) -> None:
        """Half of what the path holds is in flight: its queue is empty, and the round trip is the least one."""
        self._limited_until = sample.delivered + sample.in_flight
        if self._probe_end == inf:
            if sample.in_flight <= self._half():
                self._probe_end = now + PROBE_SECONDS
                self._probe_least = inf
                self._rounds = 0
        elif now >= self._probe_end and self._rounds:
            if self._probe_least < inf:
                self.least = self._probe_least
            self._least_at = self._probed_at = now
            self._enter(Phase.CRUISE if self.filled else Phase.STARTUP, now)

    # --- what follows ------------------------------------------------------------------------------------------------

    def _product(self) -> float:
        """Bytes that the path holds without a queue."""
        return min(self._bandwidth.best, self.ceiling.rate) * self.least if self.least < inf else 0.0

    def _half(self) -> float:
        return max(self._product() / 2, LEAST_FLOOR * self.datagram)

    def _set(self) -> None:
        """Window and rate from the model."""
        datagram = self.datagram
        trip = self._smoothed or FIRST_ROUND_TRIP
        best = min(self._bandwidth.best, self.ceiling.rate)
        if self.filled:
            floor = LEAST_FLOOR * datagram / trip
        else:
            floor = FLOOR * datagram / trip * (self._gain if self.phase is Phase.STARTUP else 1.0)
        rate = best if self._restart and self.filled else self._gain * best
        self.rate = max(min(rate, self.ceiling.rate), floor)
        if self.phase is Phase.PROBE_RTT:
            self.window = int(self._half())
        elif self._silenced or not best:
            self.window = FIRST_WINDOW * datagram
        else:
            best = max(best, floor)
            self.window = (
                int(WINDOW_GAIN * best * self.least + WINDOW_SECONDS * best) + WINDOW_DATAGRAMS * datagram
            )
