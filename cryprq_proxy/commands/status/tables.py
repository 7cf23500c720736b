"""The tables below the rows of `cryprq-proxy status`: what there are several of, and what has happened.

As in view.py, every field may be missing or of another kind: who answers may be of another version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from ...base.log import one_line
from ...base.text import SHORT_ID, duration, milliseconds, number, part, parts, size, up

_NARROW: Final = 100
"""Columns of a terminal; below, tables leave out what can be done without."""
_EPOCHS: Final = 5
_ERRORS: Final = 5
_PEERS: Final = 50
"""Lines of each; `--json` has the rest."""


def tables(status: Mapping[str, Any], width: int) -> Iterator[Table]:
    """What `status` has of: exits, sessions, peers, epochs, errors; each with a heading."""
    exits = parts(status, "exits")
    if len(exits) > 1:
        yield _exits(exits)
    if sessions := parts(status, "sessions"):
        yield _sessions(sessions, width)
    if peers := parts(status, "peers"):
        yield _peers(peers)
    if epochs := parts(part(status, "session"), "epochs"):
        yield _epochs(epochs, width)
    if errors := parts(status, "errors"):
        yield _errors(errors)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, fold: str = "") -> Table:
    """`fold` names the column that is wrapped where there is no room."""
    table = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", padding=(0, 2, 0, 0)
    )
    for name in columns:
        table.add_column(name, no_wrap=name != fold, overflow="fold" if name == fold else "ellipsis")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def _exits(exits: Iterable[Mapping[str, Any]]) -> Table:
    def row(exit: Mapping[str, Any]) -> tuple[str, ...]:
        used = "pinned" if exit.get("pinned") else "in use" if exit.get("active") else "-"
        healthy = exit.get("healthy")
        health = "healthy" if healthy is True else "ill" if healthy is False else "?"
        error = exit.get("last_error") if exit.get("link") != "up" else None
        return (
            str(exit.get("name", "?")),
            number(exit.get("priority")),
            used,
            health,
            str(exit.get("link", "?")),
            str(part(exit, "carrier").get("kind", "-")),
            milliseconds(exit.get("round_trip")),
            str(error or ""),
        )

    columns = ("exit", "priority", "use", "health", "link", "carrier", "round trip", "last error")
    return _table("exits", columns, map(row, exits), fold="last error")


def _sessions(sessions: Iterable[Mapping[str, Any]], width: int) -> Table:
    wide = width >= _NARROW

    def row(session: Mapping[str, Any]) -> Iterator[str]:
        yield str(session.get("peer_id", "?"))[:SHORT_ID]
        yield str(session.get("link", "?"))
        yield up(part(part(session, "packets"), "lane"))
        yield str(session.get("epoch", "-"))
        if wide:
            yield duration(session.get("epoch_age"))
            yield str(session.get("cipher", "-"))
        yield milliseconds(session.get("round_trip"))
        yield str(session.get("streams", "?"))
        yield size(session.get("bytes_sent"))
        yield size(session.get("bytes_received"))

    columns = ("peer", "link", "lane", "epoch", *(("age", "cipher") if wide else ()))
    rest = ("round trip", "streams", "sent", "received")
    return _table("sessions", (*columns, *rest), (tuple(row(session)) for session in sessions))


def _peers(peers: Sequence[Mapping[str, Any]]) -> Table:
    # Who is connected first; sorting keeps the order of the list among equals.
    listed = sorted(peers, key=lambda peer: not peer.get("sessions"))
    rows = [
        (str(peer.get("peer_id", "?"))[:SHORT_ID], number(peer.get("sessions")), str(peer.get("name") or "-"))
        for peer in listed[:_PEERS]
    ]
    if len(peers) > _PEERS:
        rows.append((f"... and {len(peers) - _PEERS} more", "", ""))
    return _table("allowed peers", ("peer", "sessions", "name"), rows, fold="name")


def _epochs(epochs: Sequence[Mapping[str, Any]], width: int) -> Table:
    rows = (
        (
            number(epoch.get("number")),
            duration(epoch.get("since")),
            size(epoch.get("bytes_sent")),
            size(epoch.get("bytes_received")),
            str(epoch.get("exchange", "?")),
            str(epoch.get("cipher", "?")),
        )
        for epoch in epochs[:_EPOCHS]
    )
    columns = ("epoch", "age", "sent", "received", "key exchange", "cipher")
    return _table("epochs", columns, rows, fold="key exchange")


def _errors(errors: Sequence[Mapping[str, Any]]) -> Table:
    rows = (
        (_clock(error.get("at")), str(error.get("level", "?")), _text(error)) for error in errors[-_ERRORS:]
    )
    return _table("lately", ("at", "level", "what"), rows, fold="what")


def _text(error: Mapping[str, Any]) -> str:
    text, count = str(error.get("text", "?")), error.get("count")
    return f"{text} ({count} times)" if isinstance(count, int) and count > 1 else text


def _clock(at: object) -> str:
    """Seconds since 1970 as local date and time; the date only where it is not today's."""
    if not isinstance(at, int | float):
        return "?"
    try:
        then, today = time.localtime(at), time.localtime()
    except (OverflowError, ValueError, OSError):
        return "?"
    same = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", then)
