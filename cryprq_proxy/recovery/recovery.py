"""The sender's half of one path: what is in flight, what became of it, and how much may leave now.

    room -> wants_ask, skip -> sent            for each train
    acked                                      for each acknowledgement that came by this path
    deadline -> tick                           losses by time, probe time-outs
    app_limited                                when there is nothing more to send although there is room

The owner seals and sends. Cargo is in one place at any time: it comes back either acknowledged or lost, once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from math import inf
from random import SystemRandom
from typing import Final, NamedTuple

from ..errors import CloseReason, LocalError, PeerError
from .congestion import CongestionControl, Sample
from .flight import MAX_DATAGRAMS, Flight, Lost, Part, Train
from .pacer import Pacer
from .received import AckFrame
from .round_trip import RoundTrip
from .rounds import Rounds

PROBED: Final = 2
"""Datagrams whose cargo comes back after a probe time-out, and for which there is room then. Often they have arrived,
and only the acknowledgement is late: the rest of their train is not sent again."""
PERSISTENT: Final = 3
"""Probe time-outs in a row after which the congestion control hears of the silence."""
LONGEST_TIMEOUT_AT_FIRST: Final = 0.3
"""Seconds between two probes in the first `_AT_FIRST` seconds of a silence: a stream goes on soon after a black-out."""
LONGEST_TIMEOUT: Final = 3.0
_AT_FIRST: Final = 10.0
_MOST_DOUBLED: Final = 16

SKIPPED: Final = 8
"""Counters left out that are remembered."""
_SKIP_FIRST: Final = 256
_SKIP_APART: Final = 1_000
_SKIP_SPREAD: Final = 7_000

_CHANCE: Final = SystemRandom()

_LATELY: Final = 4_096
"""Datagrams of which `loss` tells: after each so many, older ones count half."""


class Settled[Cargo](NamedTuple):
    """What is settled about cargo."""

    acked: list[Part[Cargo]]
    """The peer has these."""
    lost: list[Part[Cargo]]
    """These are lost, or probably lost: the owner has them again."""
    probe: bool
    """A probe time-out: at least one datagram that elicits an acknowledgement must leave now, even if it carries
    nothing. `room` has room for two."""


class Recovery[Cargo]:
    """That of one path. Times are seconds, sizes bytes on the wire."""

    __slots__ = (
        "_chance",
        "_flight",
        "_last_timeout",
        "_lost_lately",
        "_now",
        "_probe_room",
        "_progress_at",
        "_sample",
        "_seen_ce",
        "_settled_lately",
        "_silent_since",
        "_since",
        "_skip_at",
        "_skipped",
        "_unasked",
        "control",
        "lost",
        "pacer",
        "round_trip",
        "rounds",
        "spurious",
        "timeouts",
    )

    def __init__(
        self,
        control: CongestionControl,
        pacer: Pacer,
        now: float,
        *,
        round_trip: float = 0.0,
        chance: Callable[[], float] = _CHANCE.random,
    ) -> None:
        """`round_trip`: seconds, as the lane's probes have measured it; 0.0 if they have not. `chance`: a number from
        0.0 up to 1.0, from which it follows what is skipped."""
        self.control = control
        self.pacer = pacer
        self.round_trip = RoundTrip()
        if round_trip:
            self.round_trip.add(round_trip, 0.0, now)
        self.rounds = Rounds(now)
        self.timeouts = 0
        """Probe time-outs in a row, without any acknowledgement."""
        self.lost = 0
        """Datagrams that were declared lost so far."""
        self.spurious = 0
        """Those of them that were acknowledged late."""
        self._flight = Flight[Cargo]()
        self._sample = Sample()
        self._chance = chance
        self._now = self._since = now
        self._seen_ce = 0
        self._unasked = 0
        self._lost_lately = self._settled_lately = 0.0
        # Silence: the last acknowledgement of something new, the first and last probe time-out after it.
        self._progress_at = now
        self._silent_since = self._last_timeout = -inf
        self._probe_room = 0
        self._skip_at = -1
        self._skipped: deque[int] = deque(maxlen=SKIPPED)

    # --- figures ---------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Bytes."""
        return self._flight.size

    @property
    def delivered(self) -> int:
        """Bytes that were acknowledged so far."""
        return self._flight.delivered

    @property
    def rate(self) -> float:
        """Bytes a second at which the congestion control lets them leave."""
        return self.control.rate

    @property
    def loss(self) -> float:
        """The share of datagrams that were lost lately, 0.0 to 1.0."""
        return self._lost_lately / self._settled_lately if self._settled_lately else 0.0

    # --- out, in the order of the calls ----------------------------------------------------------------------------

    def room(self, now: float) -> int:
        """Bytes that may leave now: of the window, of the pacer, or for a probe. 0 if it is less than a datagram."""
        control = self.control
        room = self._free()
        if room:
            room = min(room, self.pacer.allowance(now, control.rate, control.datagram))
        else:
            # Who waits for the window does not wait for the pacer.
            self.pacer.rest()
        return max(room if room >= control.datagram else 0, self._probe_room)

    def next_at(self, now: float) -> float:
        """When `room` is 0: the time at which the pacer lets something leave; infinite if only an acknowledgement
        makes room."""
        if self._probe_room:
            return now
        return self.pacer.next_at(now, self.control.rate, self.control.datagram) if self._free() else inf

    def wants_ask(self, size: int) -> bool:
        """Whether a train of `size` bytes, which leaves next, should ask for an acknowledgement at once: an eighth of
        the window is not asked about, or the window is used up, or the peer is silent."""
        control = self.control
        window, unasked = control.window, self._unasked + size
        return (
            8 * unasked >= window or self._flight.size + size + control.datagram > window or self.timeouts > 0
        )

    def skip(self, counter: int) -> bool:
        """Whether to leave out `counter`, the next one, and send nothing with it: so it is now and then, to catch a
        peer that acknowledges what it cannot have. Ask before each train."""
        if self._skip_at < 0:
            self._skip_at = counter + 1 + int(self._chance() * _SKIP_FIRST)
        if counter < self._skip_at:
            return False
        self._skipped.append(counter)
        self._skip_at = counter + _SKIP_APART + int(self._chance() * _SKIP_SPREAD)
        return True

    def sent(
        self,
        first: int,
        count: int,
        segment: int,
        size: int,
        now: float,
        cargo: Cargo | None,
        *,
        eliciting: bool = True,
        asked: bool = False,
    ) -> None:
        """A train left: `count` datagrams with counters from `first` on, `size` bytes, all but the last of `segment`.

        Without cargo nobody is told what becomes of it. `eliciting`: the peer acknowledges it within `ACK_DELAY`;
        `asked`: at once. Datagrams that are not told of here may be acknowledged, too; they count for nothing, nor does
        what does not elicit while half of `MAX_DATAGRAMS` are in flight. Raises LocalError for more than `room` allows.
        """
        now = self._time(now)
        flight = self._flight
        self._unasked = 0 if asked else self._unasked + size
        self.pacer.sent(size, now, self.control.rate)
        if not eliciting and flight.datagrams + count > MAX_DATAGRAMS // 2:
            return
        if flight.datagrams + count > MAX_DATAGRAMS and not self._probe_room:
            raise LocalError("more datagrams are in flight than there may be: ask for room before each train")
        self._probe_room = max(0, self._probe_room - size)
        self.control.sent(size, now, flight.size)
        flight.add(Train(first, count, segment, size, now, eliciting), size, cargo)

    def app_limited(self) -> None:
        """There is room, and nothing to send: what is in flight does not measure the path. Call it each time when this
        comes to be so, also behind a single small frame; else a client's requests teach it their own rate."""
        self._flight.app_limited()
        self.pacer.rest()

    # --- acknowledgements ------------------------------------------------------------------------------------------

    def acked(self, frame: AckFrame, counter: int, now: float) -> Settled[Cargo]:
        """An acknowledgement came by this path. `counter` is what the next datagram will have.

        Raises PeerError (PROTOCOL) if it names a counter that was not sent.
        """
        now = self._time(now)
        bounds, flight, trip = frame.bounds, self._flight, self.round_trip
        if bounds[-1] > counter or any(bisect_right(bounds, left_out) % 2 for left_out in self._skipped):
            raise PeerError(CloseReason.PROTOCOL, "the peer acknowledges datagrams that were never sent")
        self.spurious += flight.spurious(bounds, now, trip.smoothed)
        highest = flight.highest_acked
        acked = flight.acked(bounds, now)
        newest = acked.newest
        if newest is None and flight.highest_acked == highest:
            return Settled([], [], False)
        sample = 0.0
        if newest is not None:
            self.timeouts = self._probe_room = 0
            self._progress_at = now
            if acked.highest and acked.eliciting and newest.sent_at >= self._since:
                taken = trip.add(now - newest.sent_at, frame.delay, now)
                sample = trip.latest if taken else 0.0
        lost = self._lose(now)
        self._count(acked.datagrams, 0)
        if newest is not None:
            self.rounds.acked(acked.datagrams, newest.delivered, flight.delivered, newest.app_limited, now)
            self._tell(newest, acked.size, lost.size, sample, frame.ce, now)
        return Settled(acked.parts, lost.parts, False)

    def _lose(self, now: float) -> Lost[Cargo]:
        trip = self.round_trip
        lost = self._flight.lost(now, max(trip.latest, trip.smoothed))
        if lost.size:
            self.lost += lost.datagrams
            self.rounds.lost(lost.datagrams)
            self._count(0, lost.datagrams)
            self.control.lost(lost.size, now, self._flight.size)
        return lost

    def _tell(self, newest: Train, acked: int, lost: int, round_trip: float, ce: int, now: float) -> None:
        """Tell the congestion control."""
        flight, sample = self._flight, self._sample
        sample.now, sample.acked, sample.lost, sample.round_trip = now, acked, lost, round_trip
        sample.in_flight, sample.delivered = flight.size, flight.delivered
        sample.prior_delivered = newest.delivered
        sample.app_limited = newest.app_limited
        interval = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        if interval > 0.0 and newest.sent_at >= self._since:
            sample.interval, sample.rate = interval, (flight.delivered - newest.delivered) / interval
        else:
            sample.interval = sample.rate = 0.0
        sample.ce = max(0, ce - self._seen_ce)
        self._seen_ce += sample.ce
        self.control.acked(sample)

    def _count(self, acked: int, lost: int) -> None:
        self._settled_lately += acked + lost
        self._lost_lately += lost
        if self._settled_lately > _LATELY:
            self._settled_lately /= 2
            self._lost_lately /= 2

    # --- time ------------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called; infinite if nothing that elicits is in flight."""
        return min(self._next_loss(), self._next_timeout())

    def tick(self, now: float) -> Settled[Cargo]:
        """Time has passed: what is lost by it, and the cargo of the two oldest datagrams after a probe time-out."""
        now = self._time(now)
        if self._next_loss() <= now:
            return Settled([], self._lose(now).parts, False)
        if self._next_timeout() > now:
            return Settled([], [], False)
        if not self.timeouts:
            self._silent_since = now
        self.timeouts += 1
        self._last_timeout = now
        self._probe_room = PROBED * self.control.datagram
        if self.timeouts == PERSISTENT:
            self.control.silent(now)
        return Settled([], self._flight.take_cargo(PROBED), True)

    def _next_loss(self) -> float:
        trip = self.round_trip
        return self._flight.next_loss(max(trip.latest, trip.smoothed))

    def _next_timeout(self) -> float:
        """From the oldest train, not from the newest as in RFC 9002 section 6.2.1: what leaves in a black-out now and
        then must not put it off."""
        oldest = self._flight.oldest_eliciting()
        if oldest is None:
            return inf
        timeout = self.round_trip.timeout()
        if not self.timeouts:
            return max(oldest.sent_at, self._progress_at) + timeout
        early = self._last_timeout - self._silent_since < _AT_FIRST
        most = LONGEST_TIMEOUT_AT_FIRST if early else LONGEST_TIMEOUT
        doubled = timeout * (1 << min(self.timeouts, _MOST_DOUBLED))
        return self._last_timeout + max(timeout, min(doubled, most))

    # --- a new begin -----------------------------------------------------------------------------------------------

    def reset(self, now: float) -> None:
        """The path is another one (roaming): round trip and rate begin anew; what is in flight stays in flight."""
        now = self._time(now)
        self.round_trip = RoundTrip()
        self._since = self._progress_at = now
        self.timeouts = 0
        self.rounds.restart(now, self._flight.delivered)
        self.control.reset(now)
        # What is in flight left by the other path, and must not close the first window of this one.
        self._probe_room = self.control.window

    def _free(self) -> int:
        """Bytes of the window; 0 if it is less than a datagram: who waits for that must not be woken for less."""
        flight, control = self._flight, self.control
        free = min(control.window - flight.size, (MAX_DATAGRAMS - flight.datagrams) * control.datagram)
        if free >= control.datagram:
            return free
        # What does not elicit may fill the window, and nobody would ever acknowledge it.
        return PROBED * control.datagram if flight.oldest_eliciting() is None else 0

    def _time(self, now: float) -> float:
        """`now`. If the clock was put back, nothing that is known happened later."""
        if now < self._now:
            self._flight.not_after(now)
            self.rounds.restart(now, self._flight.delivered)
            self._since, self._progress_at = min(self._since, now), min(self._progress_at, now)
            self._silent_since, self._last_timeout = (
                min(self._silent_since, now),
                min(self._last_timeout, now),
            )
        self._now = now
        return now
