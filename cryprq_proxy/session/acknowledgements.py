"""What the peer says that it has received: ACK of a path, and ABANDON of one that it has closed.

What is acknowledged is dropped (retention.py), a bounded number of units in one turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from ..errors import CloseReason, PeerError
from . import wire
from .control_rates import ControlRates
from .path import SessionPath
from .retention import Retention
from .rotation import Rotation
from .scheduler import Scheduler
from .session_events import SessionEvents
from .stream_table import StreamTable
from .turns import DROPS_PER_UNIT, TurnBudget


class AcknowledgedSession(Protocol):
    """What this needs of a session. `dropping`: whether acknowledged units are dropped in the next turn."""

    dropping: bool

    @property
    def now(self) -> float: ...
    @property
    def closed(self) -> CloseReason | None: ...
    @property
    def paths(self) -> Mapping[int, SessionPath]: ...
    @property
    def last_path(self) -> int: ...
    @property
    def table(self) -> StreamTable: ...
    @property
    def retention(self) -> Retention: ...
    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def rotation(self) -> Rotation: ...
    @property
    def rates(self) -> ControlRates: ...
    @property
    def turn(self) -> TurnBudget: ...
    @property
    def events(self) -> SessionEvents: ...
    def wake(self) -> None: ...


def receive_ack(session: AcknowledgedSession, on: SessionPath, number: int, records: int) -> None:
    """It came on path `on`. If that is another one than it names, the peer is in doubt about that."""
    news = acknowledge(session, number, records)
    if not news or number != on.number:
        session.rates.control(wire.ACK, session.rotation.current, session.now)
    if number == on.number:
        if news:
            on.suspicion.answered(records, session.now)
    elif (path := session.paths.get(number)) is not None and path.admitted and not path.in_doubt:
        path.doubt(session.now, told=True)


def acknowledge(session: AcknowledgedSession, number: int, records: int) -> bool:
    """The peer has received so many records of path `number`. Whether that is news."""
    path = session.paths.get(number)
    if (path is not None and records > path.keys.records_sent) or number > session.last_path:
        raise PeerError(CloseReason.RESUME, "the peer acknowledged records that were never sent")
    logs = [log for log in session.retention.lost_logs(number) if records > log.acknowledged]
    if path is not None and records > path.log.acknowledged:
        logs.append(path.log)
    if not logs:
        return False
    for log in logs:
        session.retention.acknowledge(log, records)
    if path is not None:
        path.keys.acknowledged = max(path.keys.acknowledged, records)
    if not session.dropping:
        drop_acknowledged(session)
    if not session.table.live:
        session.events.idle()
    return True


def drop_acknowledged(session: AcknowledgedSession) -> None:
    """Drop what the peer has, or what nobody needs, a bounded number of units in one turn."""
    session.dropping = False
    more = True
    if session.turn.left > 0:
        before = session.retention.dropped
        more = session.retention.drop()
        session.turn.spend((session.retention.dropped - before) // DROPS_PER_UNIT)
    session.dropping = more
    if session.dropping:
        session.turn.wait(partial(drop_acknowledged, session))
    settle_freed(session)


def settle_freed(session: AcknowledgedSession) -> None:
    """Units were dropped: perhaps nothing is left, or there is room for more."""
    if session.closed is None and not session.table.live and not session.retention.kept:
        session.events.idle()
    if session.closed is None and (
        session.retention.waits or (not session.scheduler.open and session.retention.has_room())
    ):
        session.wake()


def receive_abandon(session: AcknowledgedSession, number: int, records: int) -> None:
    """The peer has closed a path, on which it has received so many records."""
    path = session.paths.get(number)
    if path is None:
        # Lost here too, or at the exit one that it never let in. All that were lost since something was last
        # acknowledged come together, so this is late and no control frame.
        session.rates.late(wire.ABANDON, session.now)
    if number <= session.last_path:
        acknowledge(session, number, records)
    if path is not None:
        abandoned = path.abandoned
        path.lost(session.now)
        abandoned()
