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
_DROPPED: Final = {
    "packets": "packets for want of room on the link",
    "datagrams": "datagrams for want of room",
}


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
    system, packets = _part(status, "system"), _part(status, "packets")
    if packets.get("lane"):
        yield "lane", _lane(_part(packets, "lane"))
    if system:
        yield from _system_rows(system)
    yield from _packet_rows(packets, system)
    yield from _process_rows(status)


def _exit_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "exit", str(status.get("peer_id", "?"))
    yield "allowed peers", str(status.get("authorised", "?"))
    yield "ML-KEM", str(status.get("provider", "?"))
    yield "targets", str(status.get("targets", "?"))
    sessions = status.get("sessions")
    yield "sessions", str(len(sessions) if isinstance(sessions, list) else "?")
    network, lanes = _part(status, "network"), _part(status, "lanes")
    sockets = lanes.get("sockets")
    if isinstance(sockets, list):
        shown = (
            f"{each.get('address', '?')} ({_offload(each)})" for each in sockets if isinstance(each, dict)
        )
        yield "lane sockets", ", ".join(shown)
    if network:
        device = _part(network, "device")
        families = "IPv4 and IPv6" if network.get("ipv6") else "IPv4 only"
        clients = f"{network.get('clients', '?')} sessions with packets, {families}"
        yield "network", f"{_device(device)}, {clients}"
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "to clients", "from clients")
    drops = _nonzero(_part(_part(network, "device"), "drops"), _part(network, "drops"))
    if lanes.get("strangers"):
        drops.append(f"{lanes['strangers']} datagrams of nobody known")
    if drops:
        yield "dropped", ", ".join(drops)
    yield from _process_rows(status)


def _system_rows(system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """System-wide mode: tun/tunnel.py."""
    device, addresses = _part(system, "device"), system.get("addresses")
    listed = ", ".join(map(str, addresses)) if isinstance(addresses, list) and addresses else "no address yet"
    yield "system-wide", f"{listed} on {_device(device)}" if device else "is being set up"
    if device:
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "sent", "received")
    yield "kill switch", _kill_switch(_part(system, "kill_switch"))
    dns = _part(system, "dns")
    if dns:
        yield "DNS", _dns(dns)
    repairs = {"routes": system.get("repairs"), "resolver": dns.get("repairs")}
    if shown := _nonzero(repairs):
        yield "put back", ", ".join(shown)


def _packet_rows(packets: Mapping[str, Any], system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What crossed the link beside its streams, and what was dropped anywhere: roles/packets.py."""
    lane, on_link = _part(packets, "lane"), _part(packets, "on_carrier")
    if lane:
        yield (
            "datagrams",
            _both_ways(lane, ("sent", "sent", "sent_bytes"), ("received", "received", "received_bytes")),
        )
    if on_link.get("sent") or on_link.get("received"):
        sent, received = on_link.get("sent", "?"), on_link.get("received", "?")
        yield "without lane", f"{sent} packets sent, {received} received on the link"
    dropped = {_DROPPED.get(cause, cause): count for cause, count in _part(packets, "dropped").items()}
    drops = _nonzero(_part(lane, "drops"), dropped, _part(_part(system, "device"), "drops"))
    if drops:
        yield "dropped", ", ".join(drops)


def _process_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    listen = status.get("listen")
    yield "listens on", ", ".join(map(str, listen)) if isinstance(listen, list) else "?"
    yield "running for", duration(status.get("uptime"))
    yield "version", f"{status.get('version', '?')}, process {status.get('pid', '?')}"


def _sessions(sessions: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (
        "peer",
        "link",
        "lane",
        "epoch",
        "age",
        "cipher",
        "round trip",
        "streams",
        "sent",
        "received",
    ):
        table.add_column(name, no_wrap=True)
    for session in sessions:
        if isinstance(session, dict):
            cells = (
                str(session.get("peer_id", "?"))[:_SHORT_ID],
                str(session.get("link", "?")),
                _up(_part(_part(session, "packets"), "lane")),
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


def _up(lane: Mapping[str, Any]) -> str:
    return "-" if not lane else "up" if lane.get("up") else "down"


def _lane(lane: Mapping[str, Any]) -> str:
    measured = f", {lane.get('size', '?')}-byte datagrams, round trip {_milliseconds(lane.get('round_trip'))}"
    falls = _part(lane, "path").get("falls")
    fell = f", fell back {falls} times so far" if falls else ""
    offload = f", {_offload(lane)}"
    return f"{_up(lane)} ({lane.get('why', '?')}){measured if lane.get('up') else ''}{offload}{fell}"


def _offload(part: Mapping[str, Any]) -> str:
    """What the kernel does of the batching on a UDP socket."""
    offload = _part(part, "offload")
    used = [name.upper() for name in ("gso", "gro") if offload.get(name)]
    reason = f": {offload['reason']}" if offload.get("reason") else ""
    return f"UDP {' and '.join(used)}" if used else f"no UDP offload{reason}"


def _device(device: Mapping[str, Any]) -> str:
    return f"{device.get('name', '?')}, MTU {device.get('mtu', '?')}"


def _device_offloads(device: Mapping[str, Any]) -> str:
    return ", ".join(f"TUN {way} {_names(device.get(way))}" for way in ("reads", "writes"))


def _names(names: object) -> str:
    return " ".join(map(str, names)) if isinstance(names, list) and names else "none"


def _device_packets(device: Mapping[str, Any], read: str, written: str) -> str:
    shown = _both_ways(
        device, ("read_packets", read, "read_bytes"), ("written_packets", written, "written_bytes")
    )
    return f"{shown}; a super-packet counts as one"


def _both_ways(counts: Mapping[str, Any], *ways: tuple[str, str, str]) -> str:
    """As "12 sent (3.4 KiB), 5 received (1.0 KiB)". A way: the key of its number, its name, the key of its bytes."""
    return ", ".join(
        f"{counts.get(number, '?')} {name} ({size(counts.get(total))})" for number, name, total in ways
    )


def _kill_switch(state: Mapping[str, Any]) -> str:
    if not state.get("on"):
        shown = "off"
    else:
        shown = (
            "on" if state.get("standing") else "on, but another program has removed it: it comes back in 2 s"
        )
    paused = state.get("paused")
    if paused:
        shown += f", PAUSED for {duration(paused)} more"
    kept = _nonzero(_part(state, "kept_in"))
    return f"{shown}; kept in: {', '.join(kept)}" if kept else shown


def _dns(dns: Mapping[str, Any]) -> str:
    counters = _part(dns, "counters")
    counted = (
        ("questions", "questions"),
        ("cache_hits", "from the cache"),
        ("blocked", "blocked"),
        ("stale", "stale"),
        ("failures", "failed"),
    )
    shown = [f"{counters.get(key, '?')} {words}" for key, words in counted]
    upstreams = dns.get("upstreams")
    ill = [
        f"{each.get('name', '?')} fails ({each.get('last_error') or 'no answer'})"
        for each in (upstreams if isinstance(upstreams, list) else [])
        if isinstance(each, dict) and not each.get("healthy", True)
    ]
    return f"by {dns.get('resolver', '?')}, asks {dns.get('in_use', '?')}; {', '.join(shown + ill)}"


def _nonzero(*counts: Mapping[str, Any]) -> list[str]:
    """As "3 replay", for each cause that there was; what bears the same name is added up."""
    total: dict[str, int] = {}
    for each in counts:
        for cause, count in each.items():
            if isinstance(count, int) and count:
                total[cause] = total.get(cause, 0) + count
    return [f"{count} {cause.replace('_', ' ')}" for cause, count in total.items()]


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
