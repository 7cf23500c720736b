"""Liveness: whether the peer still answers, and the round-trip time to it.

Only a record that authenticates is a sign of life. The keepalive therefore detects a carrier with damaged bytes even
while bytes still arrive.
"""

from __future__ import annotations

from math import inf
from typing import Final

from ..errors import CarrierError, CloseReason

SMOOTHING: Final = 0.25
"""Weight of the newest measurement in the round-trip time."""
UNKNOWN_ROUND_TRIP: Final = 0.1
AGAIN_SECONDS: Final = 0.5
"""While streams move, the round trip is measured so often: the path may change."""
OVERDUE: Final = 0.25
"""Seconds beyond two round trips after which an answer is overdue."""


class Liveness:
    """Keepalive of one carrier: a PING after `interval` seconds, the end after `interval` more without any record.

    `ping` is the token to send, None if no PING is due. `round_trip` is smoothed; `least_round_trip` is the shortest of
    this carrier, that is without queues. Both are in seconds, and UNKNOWN_ROUND_TRIP before the first answer. `last` is
    the time of the last record, or of the carrier's start.
    """

    __slots__ = (
        "_answer_by",
        "_asked",
        "_interval",
        "_pinged",
        "_proof",
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
        self._proof: int | None = None
        """The token whose answer ends a doubt."""
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

    def pong(self, token: int, now: float) -> float | None:
        """An answer came: returns the round trip. One to an older PING is ignored; one that ends a doubt measures the
        silence before it."""
        sample = None
        if token == self._proof:
            self._proof = None
            self._asked = False
        elif self._asked and token == self._token:
            self._asked = False
            sample = now - self._pinged
            if self.round_trip == UNKNOWN_ROUND_TRIP:
                self.round_trip = self.least_round_trip = sample
            self.round_trip += SMOOTHING * (sample - self.round_trip)
            self.least_round_trip = min(self.least_round_trip, sample)
        return sample

    def doubt(self) -> None:
        """The carrier is silent: request a PING. Its answer shows that whatever was sent before has arrived."""
        self._ask()
        self._proof = self._token

    @property
    def doubted(self) -> bool:
        """Whether the answer to `doubt` is still to come."""
        return self._proof is not None

    def measure(self) -> bool:
        """Request a PING unless one is unanswered; True if a PING must be sent now. A missing answer does not end the
        carrier earlier than the keepalive would."""
        if self._asked or self.ping is not None:
            return False
        self._ask()
        return True

    def measure_again(self, now: float) -> None:
        """Streams move: request a PING if the last one was sent AGAIN_SECONDS ago and is answered."""
        if now - self._pinged >= AGAIN_SECONDS:
            self.measure()

    def probe(self, within: float, now: float) -> None:
        """End the carrier unless a record comes within `within` seconds."""
        self._ask()
        self._answer_by = now + within

    def prove(self, within: float, now: float) -> None:
        """As `probe`; but what the peer is asked for already stays, so that doubts one after the other give it no more
        time."""
        if self._answer_by is None or now + within < self._answer_by:
            self._answer_by = now + within
            if not self._asked and self.ping is None:
                self._ask()

    @property
    def asked_at(self) -> float:
        """When the PING left whose answer is still to come; infinite if none is, or nobody knows how long one takes."""
        return self._pinged if self._asked and self.round_trip != UNKNOWN_ROUND_TRIP else inf

    def overdue(self, now: float) -> bool:
        """Whether the peer has been asked, and nothing came in the time that an answer takes: it may have gone."""
        return (
            self._asked and self._answer_by is not None and now - self._pinged > 2 * self.round_trip + OVERDUE
        )

    def deadline(self) -> float:
        """When `tick` has something to do."""
        due = self._pinged + self._interval
        return due if self._answer_by is None else min(due, self._answer_by)

    def tick(self, now: float) -> bool:
        """True if a PING must be sent. Raises CarrierError (TIMED_OUT) if the peer was silent for too long."""
        if self._answer_by is not None and now >= self._answer_by:
            raise CarrierError(CloseReason.TIMED_OUT, "the peer has not answered in time")
        if now >= self._pinged + self._interval:
            self._pinged = now
            self._ask()
            if self._answer_by is None:
                # Even if the PING is never sent: a carrier that takes no more bytes may be dead too.
                self._answer_by = now + self._interval
            return True
        return False

    def _ask(self) -> None:
        self._token = (self._token + 1) & 0xFFFF_FFFF
        if self._proof is not None:
            # Of several PINGs that wait only the last one need be answered.
            self._proof = self._token
        self._asked = False
        self.ping = self._token
