"""CUBIC: grows its window by a cubic of time, and takes each loss for congestion (RFC 9438).

Here for paths that are shared with others that do the same, and for comparison: where datagrams are lost at random, it
is far slower than bbr.py. Slow start ends where a queue shows, as HyStart++ (RFC 9406) has it. It is paced (RFC 9002
section 7.7): 1.25 times the window in a round trip, twice the window in slow start.

    W_cubic(t) = C (t - K)^3 + W_max    in datagrams; t since the congestion event, K where it is W_max again
"""

from __future__ import annotations

from math import cbrt, inf
from typing import Final

from .congestion import Sample

C: Final = 0.4
BETA: Final = 0.7
"""What is left of the window after a congestion event."""
ALPHA: Final = 3 * (1 - BETA) / (1 + BETA)
"""Datagrams a round trip by which Reno would grow with the same BETA (section 4.3)."""
FAST_CONVERGENCE: Final = (1 + BETA) / 2
"""What W_max is of the window that did not reach the last W_max (section 4.7)."""
MOST_GROWTH: Final = 1.5
"""In a round trip (section 4.4)."""

FIRST_WINDOW: Final = 32
LEAST_WINDOW: Final = 2
"""Datagrams."""
FIRST_ROUND_TRIP: Final = 0.001
"""Seconds, for the rate before any round trip is known: the first window leaves almost at once."""
START_GAIN: Final = 2.0
GAIN: Final = 1.25
QUEUE_SHARE: Final = 1 / 8
QUEUE_LEAST: Final = 0.004
QUEUE_MOST: Final = 0.016
"""Slow start ends if all round trips of a round exceed the least one by QUEUE_SHARE of it, in these seconds."""


class Cubic:
    """One side's window. A CongestionControl (congestion.py)."""

    __slots__ = (
        "_epoch",
        "_estimate",
        "_former",
        "_least",
        "_peak",
        "_recovered",
        "_round_end",
        "_round_least",
        "_smoothed",
        "_threshold",
        "_turning",
        "datagram",
        "rate",
        "window",
    )

    def __init__(self, now: float, datagram: int, round_trip: float = 0.0) -> None:
        """`datagram`: its size on the wire, in bytes. `round_trip`: what is known of it, in seconds, or 0."""
        self.datagram = datagram
        self._begin(round_trip)

    def reset(self, now: float) -> None:
        """Another path: begin anew."""
        self._begin(0.0)

    def _begin(self, round_trip: float) -> None:
        self.window = FIRST_WINDOW * self.datagram
        self._threshold = inf
        self._smoothed = round_trip
        self._least = self._round_least = inf
        self._round_end = 0
        # A congestion event is over when something is acknowledged that left after it.
        self._recovered = 0
        # Since when the cubic runs, where its plateau is and when that is reached; what Reno would have (W_est); the
        # last plateau. In seconds and datagrams.
        self._epoch = -inf
        self._peak = self._turning = self._estimate = self._former = 0.0
        self._pace()

    @property
    def starting(self) -> bool:
        """Whether it is in slow start."""
        return self.window < self._threshold

    # --- what the sender reports -------------------------------------------------------------------------------------

    def sent(self, size: int, now: float, in_flight: int) -> None:
        """`size` bytes leave, with `in_flight` before them."""

    def lost(self, size: int, now: float, in_flight: int) -> None:
        """`size` bytes are lost. Once a round trip that is a congestion event (sections 4.6 and 4.7)."""
        if self._recovered:
            return
        self._congested()

    def silent(self, now: float) -> None:
        """Persistent congestion (section 4.8): slow start from the smallest window up to where the event had been."""
        self._congested()
        self.window = LEAST_WINDOW * self.datagram
        self._pace()

    def acked(self, sample: Sample) -> None:
        """Something was acknowledged; its losses were reported before."""
        if sample.round_trip:
            self._measure(sample.round_trip)
        if self._recovered < 0:
            # An event of this acknowledgement: what is in flight left before it.
            self._recovered = sample.delivered + sample.in_flight
        elif self._recovered and sample.prior_delivered >= self._recovered:
            self._recovered = 0
        if sample.ce and not self._recovered:
            self._congested()
            self._recovered = sample.delivered + sample.in_flight
        if sample.prior_delivered >= self._round_end:
            self._end_round(sample)
        if not self._recovered and not sample.app_limited:
            self._grow(sample)
        self._pace()

    # --- the window --------------------------------------------------------------------------------------------------

    def _congested(self) -> None:
        window = self.window / self.datagram
        self._peak = window * FAST_CONVERGENCE if window < self._former else window
        self._former = window
        self.window = max(int(self.window * BETA), LEAST_WINDOW * self.datagram)
        self._threshold = self.window
        self._epoch = -inf
        self._recovered = -1
        self._pace()

    def _grow(self, sample: Sample) -> None:
        datagram = self.datagram
        if self.window < self._threshold:
            self.window += sample.acked
            return
        window = self.window / datagram
        if self._epoch == -inf:
            self._epoch = sample.now
            self._peak = max(self._peak, window)
            self._turning = cbrt((self._peak - window) / C)
            self._estimate = window
        # Section 4.3: not slower than Reno; like it from the plateau on.
        alpha = ALPHA if self._estimate < self._peak else 1.0
        self._estimate += alpha * sample.acked / datagram / window
        # Section 4.2: what it will be in a round trip, reached in so many acknowledgements.
        time = sample.now - self._epoch + self._smoothed
        target = C * (time - self._turning) ** 3 + self._peak
        target = min(max(target, window), MOST_GROWTH * window)
        window += (target - window) / window * sample.acked / datagram
        self.window = int(max(window, self._estimate) * datagram)

    def _measure(self, trip: float) -> None:
        self._smoothed = trip if not self._smoothed else self._smoothed + (trip - self._smoothed) / 8
        self._least = min(self._least, trip)
        self._round_least = min(self._round_least, trip)

    def _end_round(self, sample: Sample) -> None:
        queue = min(max(self._least * QUEUE_SHARE, QUEUE_LEAST), QUEUE_MOST)
        if self.window < self._threshold and self._least + queue < self._round_least < inf:
            self._threshold = self.window
        self._round_least = inf
        self._round_end = sample.delivered

    def _pace(self) -> None:
        gain = START_GAIN if self.window < self._threshold else GAIN
        self.rate = gain * self.window / (self._smoothed or FIRST_ROUND_TRIP)
