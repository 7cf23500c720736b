"""The round trip of a path: RFC 9002 section 5, and the time after which silence is asked about (section 6.2.1)."""

from __future__ import annotations

from math import inf
from typing import Final

ACK_DELAY: Final = 0.025
"""Seconds for which a receiver may hold an acknowledgement back."""
LONGEST: Final = 10.0
"""Seconds. A longer sample tells of a clock that jumped, or of a machine that slept."""
_SHORTEST: Final = 1e-6
_UNKNOWN: Final = 0.333
"""RFC 9002 section 6.2.2: what is assumed before the first sample."""
_GRANULARITY: Final = 0.002
_HALF_WINDOW: Final = 5.0


class RoundTrip:
    """All values are seconds. `samples` counts what was measured; before the first, values are assumptions.

    `least` is that of the last 5 to 10 s, of raw samples: with the receiver's delay taken off, it would fall to 0 on
    fast paths.
    """

    __slots__ = ("_least_before", "_least_since", "_since", "latest", "samples", "smoothed", "variation")

    def __init__(self) -> None:
        self.samples = 0
        self.latest = self.smoothed = _UNKNOWN
        self.variation = _UNKNOWN / 2
        self._least_before = self._least_since = inf
        self._since = -inf

    @property
    def least(self) -> float:
        """The least sample; before the first one, what is assumed."""
        least = min(self._least_before, self._least_since)
        return least if least < inf else self.smoothed

    def add(self, sample: float, delay: float, now: float) -> bool:
        """Whether `sample` counts; its receiver has held the acknowledgement back for `delay`, by its own account."""
        if not 0.0 <= sample <= LONGEST:
            return False
        sample = max(sample, _SHORTEST)
        self.latest = sample
        self._keep_least(sample, now)
        adjusted = sample - min(delay, ACK_DELAY)
        if adjusted < self.least:
            adjusted = sample
        if self.samples:
            self.variation += (abs(self.smoothed - adjusted) - self.variation) / 4
            self.smoothed += (adjusted - self.smoothed) / 8
        else:
            self.smoothed, self.variation = sample, sample / 2
        self.samples += 1
        return True

    def timeout(self) -> float:
        """The probe time-out, before it is doubled. Twice the delay, since a receiver's timers are not exact."""
        return self.smoothed + max(4 * self.variation, _GRANULARITY) + 2 * ACK_DELAY

    def _keep_least(self, sample: float, now: float) -> None:
        """Two halves of the window, the older of which goes when the younger is full."""
        if now - self._since > _HALF_WINDOW:
            fresh = now - self._since <= 2 * _HALF_WINDOW
            self._least_before = self._least_since if fresh else inf
            self._least_since, self._since = sample, now
        elif sample < self._least_since:
            self._least_since = sample
