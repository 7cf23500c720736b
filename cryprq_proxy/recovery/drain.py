"""Whose queue it is, as a phase tells in which a sender holds back.

What a sender holds back is missing in the queue by so much as its share of the line is: so the round trip falls much if
the line is ours, and not at all if we are small beside flows that do not yield.
"""

from __future__ import annotations

from math import inf


class Drain:
    """The round trips of the rounds of one such phase."""

    __slots__ = ("_last", "_most")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """We hold back from now on."""
        self._most = self._last = 0.0

    def end_round(self, least: float) -> None:
        """A round is over; `least`: its least round trip in seconds, infinite if none was measured."""
        if least < inf:
            self._last = least
            self._most = max(self._most, least)

    @property
    def fell(self) -> float:
        """The part by which the round trip has become shorter, 0.0 to 1.0."""
        return 1 - self._last / self._most if self._most else 0.0
