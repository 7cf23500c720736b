"""How long a client waits before it dials again. No clock and no I/O.

an attempt failed                       the next time, twice as long as the last
a link broke                            the next time, too: an exit that admits a client only to drop it
a link lasted STABLE_SECONDS, or moved  none, and the times begin anew
the exit said that it goes              none, and the times are short for a while: its successor takes a second to start
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

BACKOFF_FIRST: Final = 0.25
BACKOFF_RESTART: Final = 0.1
RESTART_ATTEMPTS: Final = 30
"""So many attempts, BACKOFF_RESTART apart, wait for the successor of an exit: connections wait for it too, each at
most that much longer than it takes to start."""
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
        self._short = 0

    def next(self) -> float:
        """Seconds to wait now; the next time is twice as long, but for the short ones of a restart."""
        if self._short:
            self._short -= 1
            seconds = BACKOFF_RESTART
        else:
            seconds = self._seconds
            self._seconds = min(seconds * 2, BACKOFF_LAST)
        return seconds * self._jitter(1 - JITTER, 1 + JITTER)

    def reset(self) -> None:
        """The exit was of use."""
        self._seconds = BACKOFF_FIRST
        self._short = 0

    def hasten(self) -> None:
        """The exit was of use, and is being replaced."""
        self._seconds = BACKOFF_FIRST
        self._short = RESTART_ATTEMPTS
