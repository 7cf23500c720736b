"""The numbers of a session's streams: which were used, which still wait for the peer's end, how many more there may be.

Only the dialler opens streams. Their numbers rise and are never used again. The exit remembers which ones it has seen
(number_set.py): what comes for one that has ended is a late copy, what comes for one that never was breaks the
protocol.

A stream that has ended here while the peer's end is still to come is *awaited*: what comes for it is counted, so that
both sides agree on the credit of the session, and dropped.
"""

from __future__ import annotations

from typing import Final

from ..errors import CloseReason, PeerError, StreamReason, StreamRefused
from . import wire
from .control_rates import ControlRates
from .number_set import NumberSet
from .session_credit import SessionCredit

MAX_AWAITED: Final = 65_536
"""Largest number of streams that have ended here and whose end the peer has not sent yet."""
INITIAL_STREAMS: Final = 16_384
"""Streams that may be opened before the first STREAMS frame."""
MOVED_END: Final = "the peer changed where a stream ends"


class StreamNumbers:
    """Of one side of a session. `last` is the number of the newest stream.

    Methods with `live` want to know how many streams live; all that take a frame of the peer raise PeerError.
    """

    def __init__(
        self, *, dialler: bool, most: int, last_stream: int, rates: ControlRates, credit: SessionCredit
    ) -> None:
        self._dialler = dialler
        self.take_most(most)
        self._rates = rates
        self._credit = credit
        self.awaited: dict[int, int] = {}
        """With the highest offset that came."""
        self.opens = 0
        """Streams that were opened since the session began."""
        self.may_open = INITIAL_STREAMS
        """How many may be."""
        self._first = last_stream + 1
        self.last = last_stream
        self._seen = NumberSet()
        """At the exit: the numbers of all streams so far."""

    def take_most(self, most: int) -> None:
        """Streams that may live from now on; those that do stay."""
        self._most = most
        self._at_once = max(most, INITIAL_STREAMS)
        """Streams that the dialler may have opened whose ends are to come."""

    def next(self, live: int) -> int:
        """At the dialler: the number of a new stream. Raises StreamRefused (LIMIT) if there are too many."""
        if (
            live + len(self.awaited) >= self._most
            or self.opens >= self.may_open
            or self.last >= wire.MAX_STREAM
        ):
            raise StreamRefused(StreamReason.LIMIT)
        self.last += 1
        self.opens += 1
        return self.last

    def take(self, id: int, now: float) -> bool:
        """At the exit: an OPEN came. False if its stream was opened before."""
        if not self._seen.add(id):
            self._rates.late(wire.OPEN, now)
            return False
        self.opens += 1
        if self.opens > self.may_open or len(self.awaited) > MAX_AWAITED:
            raise PeerError(CloseReason.LIMIT, "the peer opens more streams than it may")
        self.last = max(self.last, id)
        return True

    def to_come(self, id: int) -> bool:
        """At the exit: whether a stream was not opened so far."""
        return not self._dialler and id not in self._seen

    def too_many(self, live: int) -> bool:
        """At the exit: whether the stream that is the newest of those that live is refused."""
        return live + len(self.awaited) > self._most

    def allow(self, count: int) -> None:
        """At the dialler: so many may be opened since the session began."""
        self.may_open = max(self.may_open, count)

    def next_count(self, live: int) -> int | None:
        """At the exit: how many may be opened in all, if that is to be said: streams have ended, so others may be
        opened; or it takes more than INITIAL_STREAMS anyway. One that takes fewer refuses those beyond, and says so no
        more often: STREAMS is a control frame."""
        count = self.opens - live - len(self.awaited) + self._at_once
        if count - self.may_open < self._at_once >> 2:
            return None
        self.may_open = count
        return count

    # --- what comes for a stream that does not live ----------------------------------------------------------------

    def late(self, kind: int, id: int, now: float) -> None:
        """A frame for a stream that is not there: it must have been."""
        if not (self._first <= id <= self.last if self._dialler else id in self._seen):
            raise PeerError(CloseReason.PROTOCOL, "the peer sent a frame for an unknown stream")
        self._rates.late(kind, now)

    def late_data(self, id: int, end: int, now: float) -> None:
        """Bytes up to offset `end`."""
        highest = self.awaited.get(id)
        if highest is None:
            self.late(wire.DATA, id, now)
        elif end > highest:
            self._discard(id, highest, end)

    def late_end(self, kind: int, id: int, final: int, now: float) -> None:
        """A FIN, RESET or REFUSED, which is what an awaited stream waits for."""
        highest = self.awaited.get(id)
        if highest is None:
            self.late(kind, id, now)
            return
        if final < highest:
            raise PeerError(CloseReason.PROTOCOL, MOVED_END)
        self._discard(id, highest, final)
        del self.awaited[id]

    def _discard(self, id: int, highest: int, end: int) -> None:
        """Bytes came, or never will, that nobody takes."""
        self._credit.take(end - highest)
        self._credit.consumed += end - highest
        self.awaited[id] = end
