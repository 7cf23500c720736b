"""The bandwidth of a path: the best delivery rate of the last rounds (draft-ietf-ccwg-bbr, section 5.5).

A round counts only if its sender had enough to send. So a sender that has little to say for a while, or that holds
itself back to measure the round trip, does not forget what the path can do.
"""

from __future__ import annotations

from collections import deque
from typing import Final

ROUNDS: Final = 10
"""Rounds for which a sample stands: those of a whole cycle of bbr.py, and some."""
SECONDS: Final = 0.1
"""Time for which it stands at least: on a short path ten rounds say too little."""

MOST: Final = 64
"""Samples that are kept. If there are more, the newest takes the place of the one before."""


class Bandwidth:
    """The largest sample of the last ROUNDS."""

    __slots__ = ("_round", "_samples", "best")

    def __init__(self) -> None:
        self.best = 0.0
        """Bytes a second; 0 before the first sample."""
        self._round = 0
        self._samples: deque[tuple[float, int, float]] = deque()
        """Rate, round and time, falling in rate and rising in time: the first is the best."""

    def add(self, rate: float, now: float) -> None:
        """`rate` was measured now."""
        samples = self._samples
        while samples and samples[-1][0] <= rate:
            samples.pop()
        if len(samples) == MOST:
            samples.pop()
        samples.append((rate, self._round, now))
        self.best = samples[0][0]

    def next_round(self, now: float) -> None:
        """A round that counts begins. The last sample stands until another one comes."""
        self._round += 1
        self._expire(self._round - ROUNDS, now - SECONDS)

    def forget(self, since: float) -> None:
        """The path has changed: keep only what was measured after `since`, or the last sample."""
        self._expire(self._round, since)

    def since(self, time: float) -> float:
        """The best of what was measured after `time`, in bytes a second; 0 if nothing was."""
        return next((rate for rate, _, at in self._samples if at > time), 0.0)

    def scale(self, factor: float) -> None:
        """From now on count on so much of what was measured."""
        self._samples = deque((rate * factor, number, at) for rate, number, at in self._samples)
        self.best *= factor

    def _expire(self, before: int, since: float) -> None:
        samples = self._samples
        while len(samples) > 1 and samples[0][1] <= before and samples[0][2] <= since:
            samples.popleft()
        if samples:
            self.best = samples[0][0]
