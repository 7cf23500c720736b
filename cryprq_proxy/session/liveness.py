"""Liveness: is the peer still there, and how far away is it?

Only records that authenticate count as a sign of life, so a carrier whose bytes were damaged is found out by the
keepalive at the latest, even while bytes still arrive.
"""

from __future__ import annotations

from typing import Final

from ..errors import CarrierError, CloseReason

SMOOTHING: Final = 0.25
"""Weight of the newest measurement in the round-trip time."""
UNKNOWN_ROUND_TRIP: Final = 0.1


class Liveness:
    """Keepalive of one carrier: a PING after `interval` seconds, an end after `interval` more without any record.

    `ping` is the token to send, if one is due. In seconds: `round_trip` is smoothed, `least_round_trip` the shortest
    that this carrier had, which is the path without its queues; UNKNOWN_ROUND_TRIP before the first answer. `last` is
    when the last record came, or the carrier.
    """

    __slots__ = (
        "_answer_by",
        "_asked",
        "_interval",
        "_pinged",
        "_token",
        "last",
        "least_round_trip",
        "ping",
        "round_trip",
    )

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._token = 0
        self.attach(0.0)

    def attach(self, now: float) -> None:
        """A new carrier: measure it at once."""
        self._pinged = self.last = now
        self.round_trip = self.least_round_trip = UNKNOWN_ROUND_TRIP
        self._asked = False
        self._answer_by: float | None = now + self._interval
        self.ping: int | None = None
        self._ask()

    def heard(self, now: float) -> None:
        """A record authenticated."""
        self._answer_by = None
        self.last = now

    def ping_sent(self, now: float) -> None:
        self.ping = None
        self._asked = True
        self._pinged = now
        if self._answer_by is None:
            self._answer_by = now + self._interval

    def pong(self, token: int, now: float) -> None:
        """An answer came; one to an older PING says nothing."""
        if self._asked and token == self._token:
            self._asked = False
            sample = now - self._pinged
            if self.round_trip == UNKNOWN_ROUND_TRIP:
                self.round_trip = self.least_round_trip = sample
            self.round_trip += SMOOTHING * (sample - self.round_trip)
            self.least_round_trip = min(self.least_round_trip, sample)

    def measure(self) -> bool:
        """True if a PING is to be sent now: none is unanswered. An answer that stays out ends the carrier no sooner
        than a keepalive's."""
        if self._asked or self.ping is not None:
            return False
        self._ask()
        return True

    def probe(self, within: float, now: float) -> None:
        """Give the carrier up unless a record comes within `within` seconds."""
        self._ask()
        self._answer_by = now + within

    def deadline(self) -> float:
        """When `tick` has something to do."""
        due = self._pinged + self._interval
        return due if self._answer_by is None else min(due, self._answer_by)

    def tick(self, now: float) -> bool:
        """True if a PING is to be sent. Raises CarrierError (TIMED_OUT) when the peer has been silent for too long."""
        if self._answer_by is not None and now >= self._answer_by:
            raise CarrierError(CloseReason.TIMED_OUT, "the peer has not answered in time")
        if now >= self._pinged + self._interval:
            self._pinged = now
            self._ask()
            if self._answer_by is None:
                # Not only when it has been sent: a carrier that takes no more bytes may be dead, too.
                self._answer_by = now + self._interval
            return True
        return False

    def _ask(self) -> None:
        self._token = (self._token + 1) & 0xFFFF_FFFF
        self._asked = False
        self.ping = self._token
