"""The ceiling of a rate: where much is lost, or marked as congested, a model of the path is not enough.

A policer drops what a buffer would hold, so the round trip says nothing. After a round in which more than BRAKE was
lost, the ceiling is what arrived in it; marks of explicit congestion notification (RFC 3168) set it as RFC 8511 has it.
It rises again while things go well, and is gone when it no longer matters.
"""

from __future__ import annotations

from math import inf
from typing import Final

BRAKE: Final = 0.2
"""Share of a round that is lost, above which the ceiling falls,"""
RELEASE: Final = 0.15
"""and below which it rises"""
RISE: Final = 1.05
"""by such a factor in a round,"""
GONE: Final = 1.25
"""until it is so much higher than the bandwidth."""
FEWEST: Final = 32
"""Datagrams of a round that say something about loss."""
FIRST_ROUNDS: Final = 2
"""Rounds above BRAKE in a row that count at the start: the first window alone may be too much for a small buffer."""
MARKED: Final = 0.85
"""What is left of the rate in a round with marks (RFC 8511 section 3)."""


class Ceiling:
    """That of one path. `lost`, `acked` and `marked` add up what a round brings; `end_round` judges it."""

    __slots__ = ("_heavy", "acked", "lost", "marked", "rate")

    def __init__(self) -> None:
        self.rate = inf
        """Bytes a second."""
        self.acked = self.lost = 0
        """Bytes of this round."""
        self.marked = 0
        """Datagrams of it."""
        self._heavy = 0

    def end_round(self, best: float, seconds: float, datagram: int, *, limited: bool, starting: bool) -> bool:
        """A round is over that took so many seconds; `best` is the bandwidth. `limited`: what arrived says nothing
        about the path. Returns whether the round shows that the path gives no more."""
        lost, acked, marked = self.lost, self.acked, self.marked
        self.clear()
        rate = min(best, self.rate)
        share = lost / (lost + acked) if lost else 0.0
        heavy = share > BRAKE and lost + acked >= FEWEST * datagram
        self._heavy = self._heavy + 1 if heavy else 0
        if self._heavy >= (FIRST_ROUNDS if starting else 1):
            arrived = acked / seconds if seconds > 0 else inf
            self.rate = rate * (1 - share) if limited else min(rate, arrived)
            return True
        if marked:
            self.rate = rate * MARKED
            return True
        if self.rate < inf and share < RELEASE:
            self.rate *= RISE
            if self.rate > best * GONE:
                self.rate = inf
        return False

    def clear(self) -> None:
        """A round begins; what the last one brought says nothing."""
        self.acked = self.lost = self.marked = 0
