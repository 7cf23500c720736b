"""What `cryprq-proxy status` says of a session."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Any

from ..status import SessionStatus, Traffic
from .session import Session


class Totals:
    """What all sessions have moved since the start: those that are over are added up here, the others are asked."""

    def __init__(self) -> None:
        self._sent = 0
        self._received = 0
        self._rotations = 0
        self.refused: Counter[Enum] = Counter()
        """Streams that this side refused, in sessions that are over."""

    def add(self, session: Session) -> None:
        """`session` is over, and its time to be counted has come: once."""
        self._sent += session.bytes_sent
        self._received += session.bytes_received
        self._rotations += session.ledger.rotations
        self.refused.update(session.refused)

    def bytes(self, *live: Session) -> Traffic:
        """With what the sessions have moved that are not over."""
        return Traffic(
            sent=self._sent + sum(session.bytes_sent for session in live),
            received=self._received + sum(session.bytes_received for session in live),
        )

    def rotations(self, *live: Session) -> int:
        """With those of the sessions that are not over."""
        return self._rotations + sum(session.ledger.rotations for session in live)


def by_name(*counts: Counter[Any]) -> dict[str, int]:
    """Counters of reasons, added up and under the names that people read."""
    total: Counter[Any] = Counter()
    for each in counts:
        total.update(each)
    return {reason.name.lower(): count for reason, count in total.items()}


def session_status(session: Session, now: float) -> SessionStatus:
    """The part on the carrier is None while there is none."""
    rotation = session.rotation if session.attached else None
    return SessionStatus(
        attached=session.attached,
        streams=len(session.streams),
        bytes_sent=session.bytes_sent,
        bytes_received=session.bytes_received,
        retained=session.log.kept,
        rotations=session.ledger.rotations,
        epochs=session.epochs(now),
        cipher=None if rotation is None else rotation.cipher.name,
        epoch=None if rotation is None else rotation.number,
        epoch_age=None if rotation is None else round(now - rotation.since, 3),
        round_trip=None if rotation is None else round(session.liveness.round_trip, 6),
    )
