"""Numbers that were seen, from 1 on: which stream numbers of a session were opened, for as long as it lives.

Numbers rise, and few come out of order, so what is kept are the gaps below the highest one. The next number in order is
one comparison and one addition; every other one is looked up by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from ..errors import CloseReason, PeerError

MAX_GAPS: Final = 4_096
"""Runs of numbers that were left out so far."""


class NumberSet:
    """A set of numbers above 0. `highest` is 0 while it is empty."""

    __slots__ = ("_begins", "_ends", "highest")

    def __init__(self) -> None:
        self.highest = 0
        # The gaps, in their order: begin, and the number behind the last one.
        self._begins: list[int] = []
        self._ends: list[int] = []

    @property
    def gaps(self) -> int:
        """How many runs of numbers below the highest are missing."""
        return len(self._begins)

    def __contains__(self, number: int) -> bool:
        return 0 < number <= self.highest and self._gap_of(number) < 0

    def add(self, number: int) -> bool:
        """Whether `number`, which is above 0, is new. Raises PeerError (LIMIT) for a gap too many."""
        following = self.highest + 1
        if number >= following:
            if number > following:
                self._insert(len(self._begins), following, number)
            self.highest = number
            return True
        at = self._gap_of(number)
        if at < 0:
            return False
        begin, end = self._begins[at], self._ends[at]
        if begin < number:
            if number + 1 < end:
                self._insert(at + 1, number + 1, end)
            self._ends[at] = number
        elif number + 1 < end:
            self._begins[at] = number + 1
        else:
            del self._begins[at], self._ends[at]
        return True

    def _gap_of(self, number: int) -> int:
        """Which gap `number` is in, -1 if it is in none."""
        at = bisect_right(self._begins, number) - 1
        return at if at >= 0 and number < self._ends[at] else -1

    def _insert(self, at: int, begin: int, end: int) -> None:
        if len(self._begins) >= MAX_GAPS:
            raise PeerError(CloseReason.LIMIT, f"the peer leaves out stream numbers in {MAX_GAPS:,} places")
        self._begins.insert(at, begin)
        self._ends.insert(at, end)
