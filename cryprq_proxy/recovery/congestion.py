"""What a congestion control is told, and what it decides: how many bytes may be in flight, and how fast they leave.

Sizes are bytes on the wire. For one acknowledgement `lost` is called before `acked`. The rate of delivery is measured
as in draft-cheng-iccrg-delivery-rate-estimation, with trains where it has packets.
"""

from __future__ import annotations

from typing import Protocol


class Sample:
    """What one acknowledgement tells. It is valid during the call only: the next one fills the same object."""

    __slots__ = (
        "acked",
        "app_limited",
        "ce",
        "delivered",
        "in_flight",
        "interval",
        "lost",
        "now",
        "prior_delivered",
        "rate",
        "round_trip",
    )

    def __init__(self) -> None:
        self.now = 0.0
        self.acked = 0
        """Bytes that it acknowledges newly."""
        self.lost = 0
        """Bytes that are lost because of it: `lost` was called for them."""
        self.in_flight = 0
        """Bytes in flight, behind both."""
        self.delivered = 0
        """Bytes delivered so far, these among them."""
        self.prior_delivered = 0
        """`delivered` at the time at which the newest acknowledged train left: a round ends where this reaches the
        `delivered` of the round's begin."""
        self.interval = 0.0
        """Seconds over which `delivered - prior_delivered` bytes were delivered; 0.0 if that is not known."""
        self.rate = 0.0
        """Bytes a second over the interval; 0.0 if it is not known."""
        self.app_limited = True
        """Whether, when that train left, there was less to send than might have been sent."""
        self.round_trip = 0.0
        """Seconds, raw, the delay of the acknowledgement in it; 0.0 if this one measures none."""
        self.ce = 0
        """Datagrams that the network has newly marked as congested (RFC 3168)."""


class CongestionControl(Protocol):
    """One for each path; new after roaming, or `reset`."""

    window: int
    """Bytes that may be in flight; never below two datagrams."""
    rate: float
    """Bytes a second at which they may leave; above 0, and infinite where nothing is paced."""
    datagram: int
    """Bytes of a full datagram; written by the owner when the path's size changes."""

    def sent(self, size: int, now: float, in_flight: int) -> None:
        """`size` bytes leave; `in_flight` are before them."""

    def acked(self, sample: Sample) -> None:
        """An acknowledgement came that names something new."""

    def lost(self, size: int, now: float, in_flight: int) -> None:
        """So many bytes are lost; `in_flight` remain."""

    def silent(self, now: float) -> None:
        """Three probe time-outs in a row: persistent congestion (RFC 9002 section 7.6), or a black-out."""

    def reset(self, now: float) -> None:
        """The path is another one: nothing that was measured holds."""
