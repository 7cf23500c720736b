"""The trains in flight: what is acknowledged, what is lost (RFC 9002 section 6.1), and how fast it is delivered.

A train of 44 datagrams is one *run* of counters. Where an acknowledgement or a loss cuts it, what remains in flight is
one run or several, all of the same train. Runs lie in lists in the order of their counters, so that acknowledged are
slices, found by bisection, and lost is a piece at the head: what is lost lies below what was acknowledged.

Delivery is measured as in draft-cheng-iccrg-delivery-rate-estimation-02, with trains where it has packets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from math import inf
from typing import Final, NamedTuple

MAX_DATAGRAMS: Final = 65_536
"""In flight at once: 5 Gbit/s over 150 ms."""
THRESHOLD: Final = 3
"""RFC 9002 section 6.1.1: so many counters behind the highest acknowledged one, a datagram is lost."""
MAX_THRESHOLD: Final = 64
FACTOR: Final = 9 / 8
"""Section 6.1.2: after so many round trips, it is lost if a later one was acknowledged."""
MAX_FACTOR: Final = 2.0
_CALM: Final = 16
"""Round trips without a spurious loss, after which the thresholds come halfway back."""
REMEMBERED: Final = 128
"""Lost runs, in which late acknowledgements are looked for during three round trips."""


class Part[Cargo](NamedTuple):
    """Some datagrams of a train: the first, and the one behind the last, counted from the train's begin."""

    cargo: Cargo
    first: int
    behind: int


class Train:
    """Datagrams that left together. Sizes are bytes on the wire."""

    __slots__ = (
        "app_limited",
        "behind",
        "delivered",
        "delivered_at",
        "eliciting",
        "first",
        "first_sent_at",
        "left",
        "segment",
        "sent_at",
        "short",
    )

    def __init__(
        self,
        first: int,
        count: int,
        segment: int,
        size: int,
        now: float,
        eliciting: bool,
    ) -> None:
        self.first = first
        self.behind = first + count
        """The counter behind the last."""
        self.segment = segment
        self.short = count * segment - size
        """By how much the last datagram is smaller than the others."""
        self.sent_at = now
        self.eliciting = eliciting
        self.left = count
        """Datagrams of it that are in flight."""
        self.delivered = 0
        self.delivered_at = self.first_sent_at = now
        self.app_limited = True

    def size(self, first: int, behind: int) -> int:
        """Bytes of the datagrams with the counters `first` up to before `behind`."""
        size = (behind - first) * self.segment
        return size - self.short if behind == self.behind else size


class Acked[Cargo](NamedTuple):
    """What an acknowledgement names that was in flight."""

    parts: list[Part[Cargo]]
    size: int
    datagrams: int
    newest: Train | None
    """The train of the highest counter that was in flight until now."""
    highest: bool
    """Whether that is the highest one that the acknowledgement names: it measures the round trip."""
    eliciting: bool
    """Whether any of them elicits."""


class Lost[Cargo](NamedTuple):
    """What is lost."""

    parts: list[Part[Cargo]]
    size: int
    datagrams: int


class _LostRun(NamedTuple):
    first: int
    behind: int
    train: Train
    at: float


class Flight[Cargo]:
    """That of one path."""

    __slots__ = (
        "_behinds",
        "_calm_since",
        "_cargos",
        "_delivered_at",
        "_eliciting",
        "_first_sent_at",
        "_firsts",
        "_limited_until",
        "_lost_runs",
        "_trains",
        "datagrams",
        "delivered",
        "factor",
        "highest_acked",
        "size",
        "threshold",
    )

    def __init__(self) -> None:
        self.size = 0
        """Bytes in flight."""
        self.datagrams = 0
        self.delivered = 0
        """Bytes that were acknowledged so far."""
        self.highest_acked = -1
        self.threshold = THRESHOLD
        self.factor = FACTOR
        self._calm_since = 0.0
        # The runs: first counters, counters behind the last, trains, and the cargo of those that still have it.
        self._firsts: list[int] = []
        self._behinds: list[int] = []
        self._trains: list[Train] = []
        self._cargos: list[Cargo | None] = []
        # Those that elicit, oldest first; what is settled goes when it comes to the head.
        self._eliciting: deque[Train] = deque()
        self._lost_runs: deque[_LostRun] = deque(maxlen=REMEMBERED)
        self._delivered_at = self._first_sent_at = 0.0
        # Application-limited until more than this is delivered; so at first, since nothing is known of the path.
        self._limited_until = 0

    # --- out -------------------------------------------------------------------------------------------------------

    def add(self, train: Train, size: int, cargo: Cargo | None) -> None:
        """A train of `size` bytes left, with counters above all that are in flight."""
        if not self.size:
            self._first_sent_at = self._delivered_at = train.sent_at
        train.delivered = self.delivered
        train.delivered_at = self._delivered_at
        train.first_sent_at = self._first_sent_at
        train.app_limited = self.delivered <= self._limited_until
        self._firsts.append(train.first)
        self._behinds.append(train.behind)
        self._trains.append(train)
        self._cargos.append(cargo)
        if train.eliciting:
            self._eliciting.append(train)
        self.size += size
        self.datagrams += train.left

    def app_limited(self) -> None:
        """There is less to send than might be: what is in flight does not measure the path."""
        self._limited_until = self.delivered + self.size

    def oldest_eliciting(self) -> Train | None:
        """The oldest train in flight that elicits."""
        eliciting = self._eliciting
        while eliciting and not eliciting[0].left:
            eliciting.popleft()
        return eliciting[0] if eliciting else None

    # --- acknowledged ----------------------------------------------------------------------------------------------

    def acked(self, bounds: list[int], now: float) -> Acked[Cargo]:
        """Take out what `bounds` (received.py) name."""
        firsts, behinds, trains = self._firsts, self._behinds, self._trains
        parts: list[Part[Cargo]] = []
        size = datagrams = 0
        newest, highest, eliciting = None, False, False
        for at in range(len(bounds) - 2, -1, -2):
            first, behind = bounds[at], bounds[at + 1]
            if not firsts or behind <= firsts[0]:
                break
            low = bisect_right(behinds, first)
            high = bisect_left(firsts, behind, low)
            if low == high:
                continue
            if newest is None:
                newest, highest = trains[high - 1], behinds[high - 1] >= behind == bounds[-1]
            for run in range(low, high):
                train = trains[run]
                begin, end = max(firsts[run], first), min(behinds[run], behind)
                size += train.size(begin, end)
                datagrams += end - begin
                eliciting = eliciting or train.eliciting
                train.left -= end - begin
                self._hand_over(run, begin, end, parts)
            self._cut(low, high, first, behind)
        self.highest_acked = max(self.highest_acked, bounds[-1] - 1)
        if newest is not None:
            self.size -= size
            self.datagrams -= datagrams
            self.delivered += size
            self._delivered_at, self._first_sent_at = now, newest.sent_at
        return Acked(parts, size, datagrams, newest, highest, eliciting)

    def spurious(self, bounds: list[int], now: float, round_trip: float) -> int:
        """Datagrams that were declared lost and come to be acknowledged. Call it before `acked`.

        The threshold that was too strict is raised (RFC 9002 section 6.1.1); after a calm time it comes back.
        """
        if self.threshold > THRESHOLD or self.factor > FACTOR:
            self._calm_down(now, round_trip)
        if not self._lost_runs:
            return 0
        found = 0
        kept: deque[_LostRun] = deque(maxlen=REMEMBERED)
        for run in self._lost_runs:
            at = bisect_right(bounds, run.first)
            begin = run.first if at % 2 else bounds[at] if at < len(bounds) else run.behind
            if begin >= run.behind:
                if now - run.at < 3 * round_trip:
                    kept.append(run)
                continue
            end = min(run.behind, bounds[at + 1 - at % 2])
            found += end - begin
            self.delivered += run.train.size(begin, end)
            distance = self.highest_acked - begin
            if distance < self.threshold:
                self.factor = min(self.factor + 1 / 8, MAX_FACTOR)
            else:
                self.threshold = min(distance + 1, MAX_THRESHOLD)
            self._calm_since = now
        self._lost_runs = kept
        return found

    def _calm_down(self, now: float, round_trip: float) -> None:
        if now - self._calm_since > _CALM * round_trip:
            self._calm_since = now
            self.threshold = (self.threshold + THRESHOLD) // 2
            self.factor = (self.factor + FACTOR) / 2 if self.factor > FACTOR + 1 / 8 else FACTOR

    # --- lost ------------------------------------------------------------------------------------------------------

    def lost(self, now: float, round_trip: float) -> Lost[Cargo]:
        """Take out what is lost: `threshold` counters behind what was acknowledged, or `factor` round trips old."""
        firsts, behinds, trains = self._firsts, self._behinds, self._trains
        parts: list[Part[Cargo]] = []
        size = datagrams = run = 0
        acked, patience = self.highest_acked, self.factor * round_trip
        below = acked + 1 - self.threshold
        while run < len(firsts) and firsts[run] < acked:
            train = trains[run]
            begin, end = firsts[run], behinds[run]
            if train.sent_at + patience > now:
                end = min(end, below)
            if end <= begin:
                break
            size += train.size(begin, end)
            datagrams += end - begin
            self._lost_runs.append(_LostRun(begin, end, train, now))
            train.left -= end - begin
            self._hand_over(run, begin, end, parts)
            if end < behinds[run]:
                firsts[run] = end
                break
            run += 1
        if run:
            del firsts[:run], behinds[:run], trains[:run], self._cargos[:run]
        self.size -= size
        self.datagrams -= datagrams
        return Lost(parts, size, datagrams)

    def next_loss(self, round_trip: float) -> float:
        """The time at which `lost` finds the next one by age; infinite if nothing later was acknowledged."""
        if self._firsts and self._firsts[0] < self.highest_acked:
            return self._trains[0].sent_at + self.factor * round_trip
        return inf

    # --- cargo -----------------------------------------------------------------------------------------------------

    def take_cargo(self, datagrams: int) -> list[Part[Cargo]]:
        """The cargo of the oldest `datagrams` that have any. They stay in flight without it."""
        parts: list[Part[Cargo]] = []
        cargos = self._cargos
        for run in range(len(cargos)):
            if not datagrams:
                break
            if cargos[run] is None:
                continue
            begin, end = self._firsts[run], min(self._behinds[run], self._firsts[run] + datagrams)
            self._hand_over(run, begin, end, parts)
            if end < self._behinds[run]:
                self._split(run, end, end)
            cargos[run] = None
            datagrams -= end - begin
        return parts

    def not_after(self, now: float) -> None:
        """The clock was put back: nothing has happened after `now`."""
        self._delivered_at, self._first_sent_at = min(self._delivered_at, now), min(self._first_sent_at, now)
        self._calm_since = min(self._calm_since, now)
        self._lost_runs.clear()
        for train in self._trains:
            train.sent_at = min(train.sent_at, now)
            train.delivered_at = min(train.delivered_at, now)
            train.first_sent_at = min(train.first_sent_at, now)

    def _hand_over(self, run: int, begin: int, end: int, parts: list[Part[Cargo]]) -> None:
        """Put these counters' cargo among the parts."""
        cargo = self._cargos[run]
        if cargo is not None:
            first = self._trains[run].first
            parts.append(Part(cargo, begin - first, end - first))

    def _cut(self, low: int, high: int, first: int, behind: int) -> None:
        """Take the counters `first` up to before `behind` out of the runs `low` to `high`."""
        firsts, behinds = self._firsts, self._behinds
        head, tail = firsts[low] < first, behinds[high - 1] > behind
        if head and tail and high == low + 1:
            self._split(low, first, behind)
            return
        if head:
            behinds[low] = first
            low += 1
        if tail:
            firsts[high - 1] = behind
            high -= 1
        del firsts[low:high], behinds[low:high], self._trains[low:high], self._cargos[low:high]

    def _split(self, run: int, first: int, behind: int) -> None:
        """Make two runs of one, without the counters `first` up to before `behind`."""
        self._firsts.insert(run + 1, behind)
        self._behinds.insert(run, first)
        self._trains.insert(run, self._trains[run])
        self._cargos.insert(run, self._cargos[run])
