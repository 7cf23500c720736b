"""What each round trip delivered and lost: by it is chosen which path carries the streams."""

from __future__ import annotations

from typing import NamedTuple


class Round(NamedTuple):
    """One round trip: from a train's departure to its acknowledgement."""

    rate: float
    """Bytes a second that were delivered."""
    loss: float
    """The share of datagrams that were lost, 0.0 to 1.0."""
    app_limited: bool
    """Whether a train left while there was less to send than might have been: then the rate is not that of the path."""


class Rounds:
    """A round ends when the first train is acknowledged that left after its begin."""

    __slots__ = ("_acked", "_began_at", "_delivered", "_limited", "_lost", "count", "last")

    def __init__(self, now: float) -> None:
        self.count = 0
        """Whole rounds so far."""
        self.last = Round(0.0, 0.0, True)
        self.restart(now, 0)

    def restart(self, now: float, delivered: int) -> None:
        """A round begins now, when `delivered` bytes are; the one that was running does not count."""
        self._began_at, self._delivered = now, delivered
        self._acked = self._lost = 0
        self._limited = False

    def lost(self, datagrams: int) -> None:
        """So many are lost."""
        self._lost += datagrams

    def acked(self, datagrams: int, prior: int, delivered: int, app_limited: bool, now: float) -> None:
        """So many are acknowledged, and `delivered` bytes now; when the newest of their trains left, it was `prior`."""
        self._acked += datagrams
        self._limited = self._limited or app_limited
        if prior < self._delivered or now <= self._began_at:
            return
        rate = (delivered - self._delivered) / (now - self._began_at)
        self.last = Round(rate, self._lost / (self._acked + self._lost), self._limited)
        self.count += 1
        self.restart(now, delivered)
