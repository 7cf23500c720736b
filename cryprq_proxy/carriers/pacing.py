"""The carrier's rate, as far as it can be seen from whether the kernel takes more bytes."""

from __future__ import annotations

from typing import Final

SHORTEST: Final = 0.02
"""Seconds between two measurements at least."""
WEIGHT: Final = 0.5


class RateMeter:
    """Measures a rate between moments at which the carrier was full: what it took in between, it has sent.

    Call `full` each time the kernel refuses bytes, and `idle` when there was nothing to send. `rate` is in bytes a
    second, None until it is known.
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
        """There was nothing more to send: the next interval says nothing about the carrier."""
        self._at = None
