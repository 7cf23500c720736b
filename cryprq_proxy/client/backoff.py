"""How long a client waits before it dials again. No clock and no I/O.

an attempt failed                       the next time, twice as long as the last
a link broke                            the next time, too: an exit that admits a client only to drop it
a link lasted STABLE_SECONDS, or moved  none, and the times begin anew
the exit said that it goes              none, and the times begin anew and short: its successor may be there already
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

BACKOFF_FIRST: Final = 0.25
BACKOFF_RESTART: Final = 0.05
BACKOFF_LAST: Final = 5.0
"""An attempt costs the exit 2 ms, and a client should be back soon after an exit that was away for long."""
JITTER: Final = 0.2
"""Clients that lost their exit at the same moment do not come back at the same moment."""
STABLE_SECONDS: Final = 1.0
"""A link that lasted so long, or carried data, is dialled again without delay."""


class Backoff:
    """The times between the attempts of one client. `jitter` gives a number between its two arguments."""

    def __init__(self, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._jitter = jitter
        self._seconds = BACKOFF_FIRST

    def next(self) -> float:
        """Seconds to wait now; the next time is twice as long."""
        seconds = self._seconds
        self._seconds = min(seconds * 2, BACKOFF_LAST)
        return seconds * self._jitter(1 - JITTER, 1 + JITTER)

    def reset(self) -> None:
        """The exit was of use."""
        self._seconds = BACKOFF_FIRST

    def hasten(self) -> None:
        """The exit was of use, and is being replaced."""
        self._seconds = BACKOFF_RESTART
