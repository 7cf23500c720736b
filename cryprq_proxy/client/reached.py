"""What an exit has connected lately: a target of which the next application may hear that it is connected before the
exit has said so.

This is browsing history. It stays in memory, bounded in number and in time, is forgotten for a target that is refused,
and is shown nowhere: not in the status, not in the log, and not in the text of these objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..address import Destination

MOST_REACHED: Final = 1_024
REACHED_SECONDS: Final = 600.0


class ReachedTargets:
    """Those of one exit."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[Destination, float] = {}
        """When each is forgotten, the first of them first."""

    def __len__(self) -> int:
        return len(self._until)

    def add(self, target: Destination) -> None:
        """The exit has connected it."""
        self._until.pop(target, None)
        self._forget_old()
        if len(self._until) >= MOST_REACHED:
            del self._until[next(iter(self._until))]
        self._until[target] = self._clock() + REACHED_SECONDS

    def discard(self, target: Destination) -> None:
        """The exit has not connected it."""
        self._until.pop(target, None)

    def __contains__(self, target: Destination) -> bool:
        self._forget_old()
        return target in self._until

    def _forget_old(self) -> None:
        now = self._clock()
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now:
                return
            del self._until[oldest]
