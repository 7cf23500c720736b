"""What `cryprq-proxy status` says of a session."""

from __future__ import annotations

from typing import Any

from ..session.session import Session


def session_status(session: Session, now: float) -> dict[str, Any]:
    """Sizes in bytes, times in seconds; the part on the carrier is left out while there is none."""
    status: dict[str, Any] = {
        "attached": session.attached,
        "streams": len(session.streams),
        "bytes_sent": session.bytes_sent,
        "bytes_received": session.bytes_received,
        "retained": session.log.kept,
        "rotations": session.rotation.rotations,
    }
    if session.attached:
        status |= {
            "cipher": session.rotation.cipher.name,
            "epoch": session.rotation.number,
            "epoch_age": round(now - session.rotation.since, 3),
            "round_trip": round(session.liveness.round_trip, 6),
        }
    return status
