"""How fast a carrier sends, measured by when the kernel refuses bytes."""

from __future__ import annotations

from typing import Final

SHORTEST: Final = 0.02
"""Seconds between two measurements at least."""
WEIGHT: Final = 0.5
"""Of a new measurement against those before it."""


class RateMeter:
    """The rate between moments at which the carrier was full: what it took in between has been sent.

    Call `full` each time the kernel refuses bytes, and `idle` when there is nothing to send. `rate` is in bytes a
    second, and None until it is known.
    """

    __slots__ = ("_at", "_total", "rate")

    def __init__(self) -> None:
        self._at: float | None = None
        self._total = 0
        self.rate: float | None = None

    def full(self, total: int, now: float) -> bool:
        """The carrier is full and has taken `total` bytes since it began; True if `rate` is new."""
        if self._at is None:
            self._at, self._total = now, total
            return False
        elapsed = now - self._at
        if elapsed < SHORTEST:
            return False
        sample = (total - self._total) / elapsed
        self.rate = sample if self.rate is None else self.rate + WEIGHT * (sample - self.rate)
        self._at, self._total = now, total
        return True

    def idle(self) -> None:
        """Forget the last moment: while there is nothing to send, the interval says nothing about the carrier."""
        self._at = None
