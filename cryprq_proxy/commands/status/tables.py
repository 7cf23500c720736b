"""The tables below the rows of `cryprq-proxy status`: exits, sessions, peers, paths, epochs and errors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ...base.log import one_line
from ...base.text import duration, milliseconds, named, short_id, size
from ...status import (
    EpochStatus,
    ExitStatus,
    KnownExit,
    LaneStatus,
    LoggedError,
    PeerSessionStatus,
    PeerStatus,
    SessionPathStatus,
    Status,
)

_NARROW: Final = 100
"""Columns of a terminal; in a narrower one, tables leave out the less important columns."""
_EPOCHS: Final = 5
_ERRORS: Final = 5
_PEERS: Final = 50
"""Lines of each; `--json` has the rest."""


def tables(status: Status, width: int) -> Iterator[Table]:
    """The tables of `status`, each with a heading."""
    if isinstance(status, ExitStatus):
        if status.sessions:
            names = {peer.peer_id: peer.name for peer in status.peers}
            yield _sessions(status.sessions, names, width)
        if status.peers:
            yield peers_table("allowed peers", status.peers, width)
    else:
        if len(status.exits) > 1:
            yield _exits(status.exits)
        if status.session is not None and status.session.paths:
            yield _paths(status.session.paths, width)
        if status.session is not None and status.session.epochs:
            yield _epochs(status.session.epochs)
    if status.errors:
        yield _errors(status.errors)


def up(lane: LaneStatus | None) -> str:
    return "-" if lane is None else "up" if lane.up else "down"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, fold: str = "") -> Table:
    """`fold` names the column that wraps if there is no room."""
    table = Table(
        box=None,
        pad_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        table.add_column(name, no_wrap=name != fold, overflow="fold" if name == fold else "ellipsis")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def _exits(exits: Iterable[KnownExit]) -> Table:
    def row(exit: KnownExit) -> tuple[str, ...]:
        return (
            exit.name,
            str(exit.priority),
            "pinned" if exit.pinned else "in use" if exit.active else "-",
            "healthy" if exit.healthy else "ill",
            exit.link,
            "-" if exit.carrier is None else exit.carrier.kind,
            "-" if exit.carrier is None else exit.carrier.congestion or "?",
            milliseconds(exit.round_trip),
            exit.last_error or "" if exit.link != "up" else "",
        )

    columns = (
        "exit",
        "priority",
        "use",
        "health",
        "link",
        "carrier",
        "congestion",
        "round trip",
        "last error",
    )
    return _table("exits", columns, map(row, exits), fold="last error")


def _sessions(sessions: Iterable[PeerSessionStatus], names: Mapping[str, str], width: int) -> Table:
    roomy = width >= _NARROW

    def row(session: PeerSessionStatus) -> Iterator[str]:
        yield _peer(names.get(session.peer_id, ""), session.peer_id)
        yield session.link
        yield up(None if session.packets is None else session.packets.lane)
        yield "-" if session.epoch is None else str(session.epoch)
        if roomy:
            yield duration(session.epoch_age)
            yield session.cipher or "-"
            yield session.congestion or "-"
        yield ", ".join(map(_path, session.paths)) or "-"
        yield milliseconds(session.round_trip)
        yield str(session.streams)
        yield size(session.bytes_sent)
        yield size(session.bytes_received)

    columns = ("peer", "link", "lane", "epoch", *(("age", "cipher", "congestion") if roomy else ()))
    rest = ("paths", "round trip", "streams", "sent", "received")
    rows = (tuple(row(session)) for session in sessions)
    return _table("sessions", (*columns, *rest), rows, fold="paths")


def _path(path: SessionPathStatus) -> str:
    """As "4 tcp standby", "lane in use (at most 2.1 MiB/s, 1.2% lost)"."""
    name = path.kind if path.number is None else f"{path.number} {path.kind}"
    pace = [] if path.rate is None else [f"at most {size(path.rate)}/s"]
    lost = [] if path.loss is None else [f"{path.loss:.1%} lost"]
    told = f" ({', '.join(pace + lost)})" if path.use == "in use" and pace + lost else ""
    return f"{name} {path.use}{told}"


def peers_table(
    title: str, peers: Sequence[PeerStatus], width: int, most: int = _PEERS, *, ids: bool = False
) -> Table:
    """The first `most` of the peers, those with sessions before the others; with `ids` there are whole ids too."""
    columns, rows = _peers(peers, width, most, ids=ids)
    return _table(title, columns, rows, fold="peer")


def crowd_lines(peers: Sequence[PeerStatus], width: int, *, ids: bool) -> Iterator[str]:
    """The same for thousands of peers, each in one line, which may be longer than `width`: rich would measure and wrap
    for seconds."""
    columns, rows = _peers(peers, width, len(peers), ids=ids)
    lines = [columns, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _peers(
    peers: Sequence[PeerStatus], width: int, most: int, *, ids: bool
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and the rows of a table of peers."""
    roomy, now = width >= _NARROW, time.time()

    def row(peer: PeerStatus) -> Iterator[str]:
        yield _peer(peer.name, peer.peer_id)
        yield str(peer.sessions)
        yield "-" if peer.since is None else f"for {duration(max(0.0, now - peer.since))}"
        yield peer.address or "-"
        if roomy:
            seen = peer.last_seen
            yield "not since the start" if seen is None else f"{duration(max(0.0, now - seen))} ago"
        yield size(peer.bytes.sent)
        yield size(peer.bytes.received)
        if ids:
            yield peer.peer_id

    # Sorting keeps the order of the list among equals.
    listed = sorted(peers, key=lambda peer: not peer.sessions)
    rows = [tuple(row(peer)) for peer in listed[:most]]
    if len(peers) > most:
        rows.append((f"... and {len(peers) - most} more",))
    seen = ("last seen",) if roomy else ()
    columns = ("peer", "sessions", "connected", "from", *seen, "sent", "received", *(("id",) if ids else ()))
    return columns, rows


def _peer(name: str, peer_id: str) -> str:
    return named(name, peer_id) if name else short_id(peer_id)


def _paths(paths: Iterable[SessionPathStatus], width: int) -> Table:
    roomy = width >= _NARROW

    def row(path: SessionPathStatus) -> Iterator[str]:
        yield "-" if path.number is None else str(path.number)
        yield path.use
        yield (
            path.kind
            + (f" to {path.address}" if path.address else "")
            + (f" ({path.why})" if path.why else "")
        )
        yield milliseconds(path.round_trip)
        yield "-" if path.rate is None else f"{size(path.rate)}/s"
        yield "-" if path.loss is None else f"{path.loss:.1%}"
        if roomy:
            yield size(path.in_flight)
            yield size(path.bytes_sent)
            yield size(path.bytes_received)
            yield path.cipher

    more = ("in flight", "sent", "received", "cipher") if roomy else ()
    columns = ("path", "use", "carrier", "round trip", "sends up to", "loses", *more)
    return _table("paths", columns, (tuple(row(path)) for path in paths), fold="carrier")


def _epochs(epochs: Sequence[EpochStatus]) -> Table:
    rows = (
        (
            str(epoch.number),
            duration(epoch.since),
            size(epoch.bytes_sent),
            size(epoch.bytes_received),
            epoch.exchange,
            epoch.cipher,
        )
        for epoch in epochs[:_EPOCHS]
    )
    columns = ("epoch", "age", "sent", "received", "key exchange", "cipher")
    return _table("epochs, and their bytes by TCP", columns, rows, fold="key exchange")


def _errors(errors: Sequence[LoggedError]) -> Table:
    rows = ((_clock(error.at), error.level, _text(error)) for error in errors[:_ERRORS])
    return _table("lately", ("at", "level", "what"), rows, fold="what")


def _text(error: LoggedError) -> str:
    return f"{error.text} ({error.count} times)" if error.count > 1 else error.text


def _clock(at: float) -> str:
    """Seconds since 1970 as local date and time; the date only if it is not today."""
    try:
        then, today = time.localtime(at), time.localtime()
    except (OverflowError, ValueError, OSError):
        return "?"
    same = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", then)
