"""The answer of a control socket as a table for a person.

What asks may be older or newer than what answers, so every field may be missing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .log import one_line

_WIDTH: Final = 200
"""Columns. What a terminal has no room for it wraps, which loses less than a table that cuts its cells off."""
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SHORT_ID: Final = 12
"""Characters of a peer id in a table of several: enough to tell peers apart by eye."""


def render(status: Mapping[str, Any]) -> str:
    """`status`, as `Client.status` or `Exit.status` gives it, in lines for standard output."""
    console = Console(highlight=False, markup=False, emoji=False, width=_WIDTH)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = _exit_rows(status) if status.get("role") == "exit" else _client_rows(status)
    for name, value in rows:
        table.add_row(Text(name), Text(one_line(value)))
    sessions = status.get("sessions")
    with console.capture() as text:
        console.print(table)
        if isinstance(sessions, list) and sessions:
            console.print(_sessions(sessions))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def _client_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    exit, session = _part(status, "exit"), _part(status, "session")
    yield "client", str(status.get("peer_id", "?"))
    yield "link", _link(status)
    yield "exit", f"{exit.get('peer_id', '?')} at {exit.get('address', '?')}"
    if "epoch" in session:
        yield "epoch", f"{session['epoch']}, {duration(session.get('epoch_age'))} old"
        yield "cipher", str(session.get("cipher", "?"))
        yield "round trip", _milliseconds(session.get("round_trip"))
    yield "ML-KEM", str(status.get("provider", "?"))
    if session:
        yield "streams", str(session.get("streams", "?"))
        sent, received = session.get("bytes_sent"), session.get("bytes_received")
        yield "bytes", f"{size(sent)} sent, {size(received)} received"
    if status.get("waiting"):
        yield "waiting", f"{status['waiting']} requests for the link"
    yield from _process_rows(status)


def _exit_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "exit", str(status.get("peer_id", "?"))
    yield "allowed peers", str(status.get("authorised", "?"))
    yield "ML-KEM", str(status.get("provider", "?"))
    yield "targets", str(status.get("targets", "?"))
    sessions = status.get("sessions")
    yield "sessions", str(len(sessions) if isinstance(sessions, list) else "?")
    yield from _process_rows(status)


def _process_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    listen = status.get("listen")
    yield "listens on", ", ".join(map(str, listen)) if isinstance(listen, list) else "?"
    yield "running for", duration(status.get("uptime"))
    yield "version", f"{status.get('version', '?')}, process {status.get('pid', '?')}"


def _sessions(sessions: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("peer", "link", "epoch", "age", "cipher", "round trip", "streams", "sent", "received"):
        table.add_column(name, no_wrap=True)
    for session in sessions:
        if isinstance(session, dict):
            cells = (
                str(session.get("peer_id", "?"))[:_SHORT_ID],
                str(session.get("link", "?")),
                str(session.get("epoch", "-")),
                duration(session.get("epoch_age")),
                str(session.get("cipher", "-")),
                _milliseconds(session.get("round_trip")),
                str(session.get("streams", "?")),
                size(session.get("bytes_sent")),
                size(session.get("bytes_received")),
            )
            table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _part(status: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = status.get(key)
    return part if isinstance(part, dict) else {}


def _link(status: Mapping[str, Any]) -> str:
    error = status.get("last_error")
    state = str(status.get("link", "?"))
    return f"{state} ({error})" if error and state != "up" else state


def _milliseconds(seconds: object) -> str:
    """A measured time; 0 means that none was measured yet."""
    return f"{seconds * 1e3:.1f} ms" if isinstance(seconds, int | float) and seconds else "-"


def size(count: object) -> str:
    """A number of bytes, in the largest unit of which there is at least one."""
    if not isinstance(count, int | float):
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def duration(seconds: object) -> str:
    """A time in its two largest units, like "2 h 5 min"."""
    if not isinstance(seconds, int | float):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
