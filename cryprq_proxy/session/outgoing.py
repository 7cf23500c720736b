"""What belongs to the session, written on the record path that it has chosen.

First windows, then datagrams and packets, which may take half of the budget, then the frames that wait in retention.py,
then the data of streams, as scheduler.py chooses among them. While the lane carries (lane_path.py), only what that
cannot.
"""

from __future__ import annotations

from typing import Protocol

from .datagrams import DatagramQueue
from .path_keys import PathKeys
from .retention import PathLog, Retention, Unit
from .rotation import Rotation
from .scheduler import Scheduler
from .stream_table import StreamTable
from .streams import Half
from .turns import FRAME_WORK
from .writer import RecordWriter


class OutgoingPath(Protocol):
    """What this needs of a path."""

    log: PathLog
    keys: PathKeys

    @property
    def admitted(self) -> bool: ...


class OutgoingSession(Protocol):
    """What this needs of a session."""

    bytes_sent: int

    @property
    def round_trip(self) -> float: ...
    @property
    def retention(self) -> Retention: ...
    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def table(self) -> StreamTable: ...
    @property
    def rotation(self) -> Rotation: ...
    @property
    def datagrams(self) -> DatagramQueue: ...
    @property
    def packets(self) -> DatagramQueue: ...


def outgoing_waits(session: OutgoingSession, path: OutgoingPath) -> bool:
    """Whether there is something that `path`, the chosen one, may carry now."""
    scheduler = session.scheduler
    return (
        session.retention.next() is not None
        or (scheduler.open and scheduler.queued > 0 and not session.retention.waits)
        or (path.admitted and bool(session.table.windows_due or session.datagrams or session.packets))
    )


def write_outgoing(
    session: OutgoingSession, path: OutgoingPath, writer: RecordWriter, budget: int, left: int, now: float
) -> int:
    """Write what belongs to the session. Returns how much of the turn's work is left."""
    retention, scheduler, log = session.retention, session.scheduler, path.log
    if path.admitted:
        left = _write_unqueued(session, path, writer, budget, left, now)
    presses = session.rotation.presses(path.keys)
    scheduler.open = retention.has_room() and not retention.stalls and not presses
    while True:
        while writer.position < budget and left > 0:
            left -= FRAME_WORK
            waiting = retention.next()
            if waiting is not None:
                retention.mark_sent(log, writer.add(waiting.frame))
                continue
            if not scheduler.open or (turn := scheduler.next()) is None:
                break
            stream, unit = turn
            scheduler.open = retention.append_sent(unit, log, writer.add(unit.frame))
            session.bytes_sent += unit.size
            if stream.send_half is Half.FINISHING and not stream.queue:
                session.table.send_fin(stream)
        if writer.position >= budget or left <= 0:
            break
        queued = scheduler.queued
        left -= scheduler.call_waiting(left)
        if scheduler.queued == queued and retention.next() is None:
            break
    return left


def write_others(
    session: OutgoingSession, path: OutgoingPath, writer: RecordWriter, budget: int, left: int, now: float
) -> int:
    """Write what the lane cannot carry, though it is what is in use. Returns how much of the turn's work is left."""
    _write_datagrams(session, writer, budget, now)
    return left


def others_wait(session: OutgoingSession) -> bool:
    """Whether there is something for `write_others`."""
    return bool(session.datagrams or session.packets)


def _write_unqueued(
    session: OutgoingSession, path: OutgoingPath, writer: RecordWriter, budget: int, left: int, now: float
) -> int:
    """Write windows, datagrams and packets. Returns how much of the turn's work is left."""
    table = session.table
    while table.windows_due and writer.position < budget and left > 0:
        left -= FRAME_WORK
        _, stream = table.windows_due.popitem()
        frame = table.next_window(stream, session.round_trip)
        if frame is not None:
            session.retention.append_sent(Unit(frame), path.log, writer.add(frame))
    _write_datagrams(session, writer, budget, now)
    return left


def _write_datagrams(session: OutgoingSession, writer: RecordWriter, budget: int, now: float) -> None:
    if session.datagrams or session.packets:
        # The other half is for streams.
        half = (budget + 1) >> 1
        session.datagrams.write(writer, half, now)
        session.packets.write(writer, half, now)
