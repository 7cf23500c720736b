"""The conntrack marks: why a connection goes past the tunnel, and until when that holds.

    0x637 (12 bits) | run (10) | pause (7) | kind (3)

The run is another number after each start and each change of rules, so a mark that an earlier one gave is known as
such. The pause is the number of the pause that gave a mark PAUSED. The filter accepts the present numbers only: an
entry of conntrack that outlives its reason is worthless, whether it is deleted (conntrack.py) or not.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Collection
from typing import Final, NamedTuple, Self

OURS_MASK: Final = 0xFFF0_0000
OURS: Final = 0x6370_0000
RUN_MASK: Final = 0xFFFF_FC00
"""Ours, and the run."""
KIND_MASK: Final = OURS_MASK | 7
"""Ours, and the kind."""
LAST_RUN: Final = 1023
LAST_PAUSE: Final = 127


class MarkKind(enum.IntEnum):
    """The reason of a mark."""

    BYPASS = 1
    """The link's own connections, and those of excluded users."""
    INBOUND = 2
    """Begun outside (`--inbound keep`)."""
    PAUSED = 3
    """Begun in a pause."""
    DIRECT = 4
    """Sent past the tunnel by a person's rule."""
    BLOCKED = 5
    """Refused by a person's rule."""
    EXCLUDED = 6
    """Begun by a program of an excluded cgroup."""

    @property
    def any_run(self) -> int:
        """The mark of this kind under `KIND_MASK`."""
        return OURS | self


class Marks(NamedTuple):
    """The numbers of the present."""

    run: int = 1
    pause: int = 0
    """0: there was none in this run."""

    @property
    def this_run(self) -> int:
        """All marks of the run under `RUN_MASK`."""
        return OURS | self.run << 10

    def of(self, kind: MarkKind) -> int:
        return self.this_run | (self.pause << 3 if kind is MarkKind.PAUSED else 0) | kind

    def next_pause(self) -> Self:
        return self._replace(pause=self.pause % LAST_PAUSE + 1)

    def next_run(self, avoid: Collection[int] = ()) -> Self:
        """Another run at random, and none of `avoid` as long as there are others."""
        avoided = {*avoid, self.run}
        free = [run for run in range(1, LAST_RUN + 1) if run not in avoided]
        return self._replace(run=secrets.choice(free or range(1, LAST_RUN + 1)), pause=0)


FIRST_MARKS: Final = Marks()


class Reason(NamedTuple):
    """What a mark of ours says."""

    run: int
    pause: int
    kind: int
    """Of `MarkKind`, or a number that no kind has."""


def reason_of_mark(mark: int) -> Reason | None:
    """None for a mark that is not ours."""
    if mark & OURS_MASK != OURS:
        return None
    return Reason(mark >> 10 & LAST_RUN, mark >> 3 & LAST_PAUSE, mark & 7)
