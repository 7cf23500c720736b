"""Garbage collection in a process with many connections, without long pauses.

A collection of the oldest generation looks at every object: 75,000 for 7,500 streams, 15 to 60 ms in which no byte
moves. So what has survived one is left out of all later ones (`gc.freeze`), and each looks at what is new only. Objects
that are left out are still freed when nothing refers to them; they stay only if they refer to each other in a circle.
Ended streams and sessions do not (session/session.py). For what else may, a collection looks at everything once in
THAW_SECONDS if there is so little that it is quick, and in any case once in MOST_THAW_SECONDS: one pause a day costs
less than memory that is lost for good.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

from ..base.clock import clock

THAW_SECONDS: Final = 3_600.0
QUICK: Final = 20_000
"""Objects beyond those of the start with which a look at everything takes a few milliseconds."""
MOST_THAW_SECONDS: Final = 86_400.0
_OLDEST: Final = 2
_COLLECTIONS: Final = 3
"""Collections of the middle generation before one of the oldest, which is cheap now: the sooner it comes, the less is
new. Python's default is 10."""


class Collector:
    """What happens before and after each collection of the oldest generation. `start` begins."""

    def __init__(self, clock: Callable[[], float] = clock) -> None:
        self._clock = clock
        self._thawed_at = clock()
        self._at_start = 0
        self._thresholds = gc.get_threshold()

    def start(self) -> None:
        """Leave out all present objects: modules, classes and tables are 50,000. Call once a role has started."""
        gc.collect()
        gc.freeze()
        self._at_start = gc.get_freeze_count()
        gc.set_threshold(*self._thresholds[:2], _COLLECTIONS)
        if self._on_collection not in gc.callbacks:
            gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """Undo `start`."""
        gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] != _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif self._is_due(self._clock() - self._thawed_at):
            self._thawed_at = self._clock()
            gc.unfreeze()

    def _is_due(self, passed: float) -> bool:
        """Whether a collection is to look at everything, `passed` seconds after the last one that did."""
        if passed < THAW_SECONDS:
            return False
        return gc.get_freeze_count() - self._at_start <= QUICK or passed >= MOST_THAW_SECONDS


COLLECTOR: Final = Collector()
"""That of this process."""
