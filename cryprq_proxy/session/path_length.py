"""Path length: the round trip that windows are made for, without the queues that the windows themselves cause.

The least measurement of a carrier is that, until its path becomes longer: a telephone leaves a network, a route
changes. One that only ever falls would then keep windows at what the short path needed. One that followed each
measurement would be as wrong: what a window lets wait in a queue is measured too, and so the window would feed itself.

So a longer path is believed only after LONGER measurements in a row, and if the windows cannot have made it longer:

    something was measured while next to nothing came    nothing of ours was in a queue, or
    credit < best rate * measured                        all that may be on the path would pass in less time

The best rate begins anew with the longer path, so that a line which only became slower is taken for a long one once.
"""

from __future__ import annotations

from typing import Final

LONGER: Final = 6
"""Measurements in a row, each longer than FARTHER times what is believed, before the least of them is."""
FARTHER: Final = 2
LITTLE: Final = 65_536
"""Bytes between two measurements that make no queue."""
RATE_SECONDS: Final = 0.25
"""A rate is that of so many seconds at least: in fewer, what comes is a burst."""


class PathLength:
    """The path of one carrier. `round_trip` is in seconds, `unknown` before the first measurement."""

    __slots__ = ("_best", "_least", "_quiet", "_received", "_run", "_since", "round_trip")

    def __init__(self, unknown: float, received: int, now: float) -> None:
        self.round_trip = unknown
        self._received, self._since = received, now
        self._best = 0.0
        self._run = -1
        self._least = float("inf")
        self._quiet = False

    def measured(self, sample: float, received: int, credit: int, now: float) -> None:
        """A round trip took `sample` seconds. `received`: bytes of the session so far; `credit`: those that may
        be on the path."""
        came, elapsed = received - self._received, now - self._since
        rate = 0.0
        if elapsed >= RATE_SECONDS:
            rate = came / elapsed
            self._best = max(self._best, rate)
            self._received, self._since = received, now
        if self._run < 0 or sample <= FARTHER * self.round_trip:
            self.round_trip = sample if self._run < 0 else min(self.round_trip, sample)
            self._forget_run()
            return
        self._run += 1
        self._least = min(self._least, sample)
        self._quiet |= came < LITTLE
        if self._run >= LONGER:
            if self._quiet or credit < self._best * self._least:
                self.round_trip = self._least
                self._best = rate
            self._forget_run()

    def _forget_run(self) -> None:
        self._run = 0
        self._least = float("inf")
        self._quiet = False
