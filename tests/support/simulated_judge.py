"""The promises of two sessions in the simulator, looked at from outside: what holds at any time, and in the end.

Each function raises `Broken`. What a session counts is counted again here, from what it holds.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.errors import CarrierError, CloseReason
from cryprq_proxy.session import reassembly
from cryprq_proxy.session.lane_path import LanePath
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.windows import INITIAL_WINDOW
from tests.support.simulator import Broken, Host

SMALL: Final = 1 << 20
"""Bytes that frames without data may be kept beyond the bound of a session, in a play."""


def side(host: Host) -> str:
    return "client" if host.dialler else "exit"


def check_errors(host: Host) -> None:
    """Paths may die; nothing else may be wrong with a peer that keeps to the protocol."""
    for error in host.errors:
        dead = error.reason is CloseReason.TIMED_OUT or "rotated in time" in str(error)
        if not isinstance(error, CarrierError) or not dead:
            raise Broken(f"{error} at the {side(host)}") from error


def check_session(host: Host) -> None:
    """One side, at any time."""
    _check_kept(host)
    _check_streams(host)
    _check_asked(host)


def _check_kept(host: Host) -> None:
    session, retention = host.session, host.session.retention
    logs = [*retention._lost, *(path.log for path in session.paths.values())]
    if sorted(map(id, retention._lost)) != sorted(
        id(log) for same in retention._lost_logs.values() for log in same
    ):
        raise Broken("the lost logs are not those by number")
    logs += [log for log in retention._dropping if all(log is not other for other in logs)]
    units = [*retention._control, *retention._streams, *(unit for log in logs for unit in log.units)]
    units += [*(session.lane.log.units if session.lane is not None else ())]
    kept = sum(unit.cost for unit in units)
    if not kept == retention.kept == host.budget.used:
        text = f"{retention.kept} and {host.budget.used} counted"
        raise Broken(f"{kept} bytes are kept at the {side(host)}, {text}")
    if kept > session.limits.retained + SMALL:
        raise Broken(f"{kept} bytes are kept")
    for path in session.paths.values():
        records = [unit.record for unit in path.log.units]
        if records != sorted(records) or (records and records[-1] >= path.keys.records_sent):
            raise Broken(f"the log of path {path.number} is out of order")


def _check_streams(host: Host) -> None:
    session, table = host.session, host.session.table
    # The exit may have refused as many as the client has open, and wait for their ends.
    if len(session.streams) + len(table.numbers.awaited) > 2 * session.limits.streams:
        raise Broken(f"{len(session.streams)} streams and {len(table.numbers.awaited)} ended ones are kept")
    if table.numbers._seen.gaps > session.last_stream:
        raise Broken("gaps in the numbers pile up")
    extra = queued = pieces = 0
    for stream in session.streams.values():
        extra += stream._window - INITIAL_WINDOW
        queued += sum(unit.size for unit in stream.queue)
        pieces += 0 if stream.pieces is None else stream.pieces.pieces
    if extra + session.windows.free != session.limits.window_pool or session.windows.free < 0:
        raise Broken(f"the windows use {extra} bytes of the pool and leave {session.windows.free}")
    if queued != session.scheduler.queued:
        raise Broken("the scheduler counts other bytes than the streams have queued")
    if pieces != session.receiver.pieces.used or pieces > reassembly.MAX_SESSION_PIECES:
        raise Broken(f"{pieces} pieces wait, and {session.receiver.pieces.used} are counted")


def _check_asked(host: Host) -> None:
    """Streams that wait to send are going to be asked, if they may."""
    session, retention, scheduler = host.session, host.session.retention, host.session.scheduler
    path, rotation = session.carrying, session.rotation
    may = path is not None and path.admitted and retention.has_room() and not retention.stalls
    if path is None or not may or not scheduler._waiting:
        return
    if isinstance(path, LanePath):
        asked = path._turn_due or path.waits or rotation.lane_presses()
    else:
        asked = rotation.presses(path.keys)
    if not (asked or path._woken):
        raise Broken(f"{len(scheduler._waiting)} streams of the {side(host)} wait, and nobody asks them")


def check_agreement(client: Session, exit: Session) -> None:
    """Both sides, at any time: what one allows is never less than what the other one takes."""
    for one, other in ((client, exit), (exit, client)):
        if other.table.received_credit.received > one.table.sent_bytes:
            raise Broken("more credit is used at the receiver than at the sender")
        if one.table._credit_limit > other.table.received_credit.announced:
            raise Broken("the sender has more credit than it was given")
        for number, path in one.paths.items():
            peer = other.paths.get(number)
            if peer is not None and path.log.acknowledged > peer.received:
                raise Broken(f"records of path {number} are acknowledged that did not come")
        for id, stream in one.streams.items():
            twin = other.streams.get(id)
            if twin is not None and (stream.send_limit > twin.announced or twin.received > stream.sent):
                raise Broken(f"the sides disagree about the credit of stream {id}")
    if not client.rotation.current <= exit.rotation.current <= client.rotation.current + 1:
        raise Broken(f"the epochs are {client.rotation.current} and {exit.rotation.current}")
    if exit.rotation.sending > client.rotation.current:
        raise Broken("the exit sends under an epoch that the client does not know")
    if client.table.numbers.may_open > exit.table.numbers.may_open:
        raise Broken("more streams may be opened than were allowed")


def check_clean(host: Host, other: Host) -> None:
    """One side, when everything is over: it keeps nothing, and agrees with `other`."""
    session, table = host.session, host.session.table
    retention, credit = session.retention, session.table.received_credit
    if session.closed is not None:
        raise Broken(f"the session of the {side(host)} is closed: {session.closed!r}")
    kept = (
        session.streams,
        table.numbers.awaited,
        retention.kept,
        retention.next(),
        session.receiver.pieces.used,
    )
    waiting = (
        session.receiver.ahead.bytes,
        table.windows_due,
        table._starved,
        session.scheduler.queued,
        table.numbers._seen.gaps,
    )
    if any(kept) or any(waiting) or host.budget.used or host.window_budget.used:
        raise Broken(f"something is kept at the {side(host)}: {kept}, {waiting}")
    if session.windows.free != session.limits.window_pool:
        raise Broken(f"the {side(host)} counts windows that are gone")
    if other.session.table.received_credit.received != table.sent_bytes:
        raise Broken("the sides disagree about the credit of the session")
    if credit.received != credit.consumed:
        raise Broken(f"{credit.received - credit.consumed} bytes of credit are lost")
    if (session._preferred, session._prefer_serial) != (
        other.session._preferred,
        other.session._prefer_serial,
    ):
        raise Broken("the sides disagree about the path to use")
