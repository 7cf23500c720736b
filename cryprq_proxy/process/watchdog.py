"""Whether the process makes progress, for the watchdog of the service manager.

A timer that fires proves that the event loop turns, and no more: a listening socket may have lost its reader, a thread
may hang, the task of a link may wait for something that never comes. So each such part tells what it has done and
whether something waits for it (base/work.py). A part that has work and does none for its time is stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..base.work import LookAtWork, no_work


class Watchdog:
    """Looks at the parts each time that `stuck` is called. A suspend of the machine does not count as time."""

    def __init__(self, look: LookAtWork, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._idle_since: dict[str, tuple[int, float]] = {}
        """By name: how much was done when work began to wait, or was done last, and when."""

    def stuck(self) -> str:
        """The name of a part that is stuck; empty if there is none."""
        now, before, found = self._clock(), self._idle_since, ""
        self._idle_since = {}
        for name, done, waits, seconds in self._look():
            if not waits:
                continue
            seen, since = before.get(name, (done, now))
            if seen != done:
                since = now
            self._idle_since[name] = done, since
            if now - since >= seconds:
                found = name
        return found


UNWATCHED: Final = Watchdog(no_work)
"""Of a program whose loop alone is watched."""
