"""Windows: how many bytes a receiver lets a stream send before it gives more credit.

A window must hold what a sender puts on the path in the time in which credit comes back, else the sender stands still.
More than that waits in queues, and other streams wait behind it. Two measurements tell what is right:

    round trip      that of the path (path_length.py): one that includes queues would make them grow
    taken           bytes that the stream's handler has taken in a round, which is a round trip, or SHORTEST_ROUND

    window = INITIAL_WINDOW + the larger one of
        SHORT_PATH, divided by the number of streams whose windows were measured in a round
        GAIN times what it has taken in a round trip: so it doubles while it is what holds the sender up

So what all streams that move have beyond their first windows is SHORT_PATH, or GAIN times rate and round trip, and one
that stands still has no part in it.

The pool bounds what a session can be made to hold. While a stream moves, all that it may still send is counted there.
Credit cannot be taken back, so one that goes quiet keeps it for life, and a few such streams would leave nothing to
others. Therefore a quiet one is counted for what is held of it, and no more. If it uses its old credit later, that is
counted again as it comes (`Stream.take_data`). Only if its handler does not take it and the pool has no room for it,
the stream is reset.

GAIN is no less than 4 for the sake of BBR. At its start it puts 2.89 bandwidth-delay products on the path, until three
round trips have brought it no more, and it does not count those in which it could have sent more than it was given.
With 3 it stays at its start for good, and two products stand in the queue of the path; with 4 less than one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, Protocol

from .retention import ASSURED, MemoryBudget

INITIAL_WINDOW: Final = 65_536
"""Bytes that may be sent on a new stream, in each direction, before the first WINDOW."""
SHORT_PATH: Final = 1 << 20
"""Bytes by which the windows of all streams together may exceed INITIAL_WINDOW, however short the path is."""
GAIN: Final = 4
"""Twice would do if credit came back at once. It comes in steps, and a round trip later than the data."""
LOOP_SECONDS: Final = 0.001
"""Of a round trip, what the two programs may have had of it: SHORT_PATH holds enough for that."""
SHORTEST_ROUND: Final = 0.01
"""Seconds of a measurement at least: what is taken in a shorter time tells the turns of the loop, not the rate. A path
with a shorter round trip is a short one."""
FIRST_ROUNDS: Final = 16
"""Of SHORT_PATH a stream gets no more than it takes in so many rounds."""
QUIET_SECONDS: Final = 1.0
"""A stream is quiet if nothing came in so long, or less than INITIAL_WINDOW, which is enough for it."""
LOOKS: Final = 16
"""Streams that are looked at, at most, when another one wants more than there is."""


class Counted(Protocol):
    """What is needed of a stream whose window is counted (streams.py)."""

    received: int
    last_data: float

    def count_held(self, now: float, pool: WindowPool, /) -> None: ...


class _Mark(NamedTuple):
    """What a stream had received at a time."""

    time: float
    received: int
    pool: WindowPool


class WindowBudget(MemoryBudget):
    """A bound on what the windows of all sessions of a process exceed INITIAL_WINDOW by."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._marks: OrderedDict[Counted, _Mark] = OrderedDict()
        """Of all streams that are counted, those first that were not looked at for longest."""

    def watch(self, stream: Counted, pool: WindowPool, now: float) -> None:
        """`stream` is counted from now on."""
        if stream not in self._marks:
            self._marks[stream] = _Mark(now, stream.received, pool)

    def forget(self, stream: Counted) -> None:
        """It is counted no more."""
        self._marks.pop(stream, None)

    def reclaim(self, now: float) -> None:
        """Count streams that have gone quiet for what is held of them."""
        for _ in range(min(LOOKS, len(self._marks))):
            stream, mark = next(iter(self._marks.items()))
            if now - mark.time < QUIET_SECONDS:
                return
            if now - stream.last_data >= QUIET_SECONDS or stream.received - mark.received < INITIAL_WINDOW:
                stream.count_held(now, mark.pool)
            if stream in self._marks:
                self._marks[stream] = _Mark(now, stream.received, mark.pool)
                self._marks.move_to_end(stream)


class WindowPool:
    """What the streams of a session have together, and the sessions of a process.

    `free`: bytes by which all windows together may still exceed INITIAL_WINDOW. `budget` counts what the windows of all
    sessions exceed it by; if it is spent, a session may still have ASSURED.
    """

    __slots__ = ("_budget", "_counted", "_moving", "_since", "_total", "free")

    def __init__(self, total: int, budget: WindowBudget) -> None:
        self._total = self.free = total
        self._budget = budget
        self._since = 0.0
        self._counted = self._moving = 0

    def share(self, extra: int) -> int:
        """What a stream that has `extra` bytes beyond INITIAL_WINDOW may have at most: as much as it leaves free, so
        that early streams leave something for later ones."""
        return min(self.free + extra >> 1, extra + self._budgeted)

    @property
    def credit(self) -> int:
        """Bytes that may be on the path, of the streams that move."""
        return self._total - self.free + INITIAL_WINDOW * max(self._counted, self._moving, 1)

    @property
    def room(self) -> int:
        """Bytes that may still be counted for data that comes on old credit."""
        return min(self.free, self._budgeted)

    @property
    def _budgeted(self) -> int:
        return max(self._budget.total - self._budget.used, ASSURED - (self._total - self.free), 0)

    def reclaim(self, now: float) -> None:
        """A stream wants more than its share: see which ones have gone quiet."""
        self._budget.reclaim(now)

    def count(self, stream: Counted, before: int, window: int, now: float) -> None:
        """`window` bytes are counted for `stream`, which were `before`."""
        self.free -= window - before
        self._budget.used += window - before
        if window > INITIAL_WINDOW:
            self._budget.watch(stream, self, now)
        else:
            self._budget.forget(stream)

    def moving(self, last: float, now: float, round_trip: float) -> int:
        """A stream is measured that was measured at `last`. Returns how many are, in a round: at least this one."""
        if now - self._since >= max(round_trip, SHORTEST_ROUND):
            self._since, self._moving, self._counted = now, self._counted, 0
        if last < self._since:
            self._counted += 1
        return max(self._counted, self._moving, 1)


def wanted(own: int, elapsed: float, round_trip: float, moving: int) -> int:
    """Bytes beyond INITIAL_WINDOW that a stream can use which has taken `own` bytes in `elapsed` seconds, at least a
    round trip and SHORTEST_ROUND, while `moving` streams are."""
    each_second = own / elapsed
    few = min(SHORT_PATH / moving, FIRST_ROUNDS * each_second * max(round_trip, SHORTEST_ROUND))
    return int(max(few, GAIN * each_second * (round_trip - LOOP_SECONDS)))


def wanted_at_least(own: int, round_trip: float) -> int:
    """As `wanted`, in the middle of a round in which `own` bytes were taken: what its end will say at least. So credit
    for twice a burst leaves with the burst, not a round trip later."""
    return int(GAIN * own * (round_trip - LOOP_SECONDS) / max(round_trip, SHORTEST_ROUND))


def step(window: int, round_trip: float) -> int:
    """After how many bytes credit is announced again. What is taken between two announcements is on top of what the
    path needs, so on a long path they are small; on a short one each costs more than it brings."""
    return window >> 1 if round_trip < SHORTEST_ROUND else max(window >> 4, INITIAL_WINDOW >> 1)
