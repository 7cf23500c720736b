"""What `cryprq-proxy status` shows of a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any

from ..crypto.primitives import Cipher
from ..status import PacketLinkStatus, SessionPathStatus, SessionStatus, Traffic
from .lane_path import LanePath
from .path import SessionPath
from .session import Session


class Totals:
    """The traffic of all sessions since the start: the sum of those that are over, plus the live ones."""

    def __init__(self) -> None:
        self._sent = 0
        self._received = 0
        self._rotations = 0
        self.refused: Counter[Enum] = Counter()
        """Streams that this side refused, in sessions that are over."""

    def copy(self) -> Totals:
        """To which live sessions may be added as well."""
        twin = Totals()
        twin._sent, twin._received, twin._rotations = self._sent, self._received, self._rotations
        twin.refused.update(self.refused)
        return twin

    def add(self, session: Session) -> None:
        """`session` is over: add its counts. Call it once per session."""
        self._sent += session.bytes_sent
        self._received += session.bytes_received
        self._rotations += session.ledger.rotations
        self.refused.update(session.table.refused)

    def bytes(self, *live: Session) -> Traffic:
        """The traffic of all sessions, with the `live` ones."""
        return Traffic(
            sent=self._sent + sum(session.bytes_sent for session in live),
            received=self._received + sum(session.bytes_received for session in live),
        )

    def rotations(self, *live: Session) -> int:
        """The rotations of all sessions, with the `live` ones."""
        return self._rotations + sum(session.ledger.rotations for session in live)


def by_name(*counts: Counter[Any]) -> dict[str, int]:
    """The sum of counters of reasons, by the reasons' names in lower case."""
    total: Counter[Any] = Counter()
    for count in filter(None, counts):
        total.update(count)
    return {reason.name.lower(): count for reason, count in total.items()}


def session_status(
    session: Session, now: float, carriers: Mapping[int, tuple[str, str]], packets: PacketLinkStatus | None
) -> SessionStatus:
    """The status of one session; the fields about its path are None without one. `carriers`: kind and address by the
    numbers of paths. `packets`: that of its lane, which alone knows the lane's round trip."""
    rotation = session.rotation if session.attached else None
    lane_trip = None if packets is None or packets.lane is None else packets.lane.round_trip
    cipher = None if session.current is None else session.current.keys.cipher.name
    trip: float | None = round(session.liveness.round_trip, 6)
    if session.lane is not None and session.lane.carries:
        cipher, trip = session.rotation.cipher.name, lane_trip
    return SessionStatus(
        attached=session.attached,
        streams=len(session.streams),
        bytes_sent=session.bytes_sent,
        bytes_received=session.bytes_received,
        retained=session.retention.kept,
        rotations=session.ledger.rotations,
        epochs=session.epochs(now),
        paths=(
            *(_path_status(path, *carriers.get(path.number, ("?", ""))) for path in session.paths.values()),
            *(
                ()
                if session.lane is None
                else (_lane_status(session.lane, lane_trip, session.rotation.cipher),)
            ),
        ),
        cipher=cipher,
        epoch=None if rotation is None else rotation.sending,
        epoch_age=None if rotation is None else round(now - rotation.since, 3),
        round_trip=None if rotation is None else trip,
    )


def _path_status(path: SessionPath, kind: str, address: str) -> SessionPathStatus:
    keys = path.keys
    use = "in use" if path.session.carrying is path else "standby"
    return SessionPathStatus(
        number=path.number,
        kind=kind,
        address=address,
        use="doubted" if path.in_doubt else use,
        round_trip=round(path.liveness.round_trip, 6),
        rate=path.rate,
        in_flight=sum(len(unit.frame) for unit in path.log.units),
        bytes_sent=keys.bytes_sent,
        bytes_received=keys.bytes_received,
        cipher=keys.cipher.name,
    )


def _lane_status(lane: LanePath, round_trip: float | None, cipher: Cipher) -> SessionPathStatus:
    use = "down" if not lane.up else "doubted" if lane.in_doubt else "in use" if lane.carries else "standby"
    return SessionPathStatus(
        kind="lane",
        use=use,
        why=lane.choice.why,
        round_trip=round_trip,
        rate=lane.rate,
        loss=lane.loss,
        in_flight=sum(lane.log.units.values()),
        bytes_sent=lane.bytes_sent,
        bytes_received=lane.bytes_received,
        cipher=cipher.name,
    )
