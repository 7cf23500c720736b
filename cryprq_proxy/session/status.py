"""What `cryprq-proxy status` says of a session."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Any

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
        self._rotations += session.rotation.rotations
        self.refused.update(session.refused)

    def status(self, *live: Session) -> dict[str, Any]:
        """Part of a role's status, with what the sessions have moved that are not over."""
        return {
            "bytes": {
                "sent": self._sent + sum(session.bytes_sent for session in live),
                "received": self._received + sum(session.bytes_received for session in live),
            },
            "rotations": self._rotations + sum(session.rotation.rotations for session in live),
        }


def by_name(*counts: Counter[Any]) -> dict[str, int]:
    """Counters of reasons, added up and under the names that people read."""
    total: Counter[Any] = Counter()
    for each in counts:
        total.update(each)
    return {reason.name.lower(): count for reason, count in total.items()}


def session_status(session: Session, now: float) -> dict[str, Any]:
    """Sizes in bytes, times in seconds; the part on the carrier is left out while there is none."""
    status: dict[str, Any] = {
        "attached": session.attached,
        "streams": len(session.streams),
        "bytes_sent": session.bytes_sent,
        "bytes_received": session.bytes_received,
        "retained": session.log.kept,
        "rotations": session.rotation.rotations,
        "epochs": session.rotation.epochs(now),
    }
    if session.attached:
        status |= {
            "cipher": session.rotation.cipher.name,
            "epoch": session.rotation.number,
            "epoch_age": round(now - session.rotation.since, 3),
            "round_trip": round(session.liveness.round_trip, 6),
        }
    return status
