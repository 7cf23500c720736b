"""The answer of a control socket as a table for a person.

What asks may be older or newer than what answers, so every field may be missing here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ...base.log import one_line
from ...base.text import duration, milliseconds, nonzero, part, size, up
from .tables import tables

_WIDTH: Final = 200
"""Columns of what is no terminal. What there is no room for is wrapped, which loses less than cells that are cut."""
_PROBLEMS: Final = 3
"""Broken lines of rule lists that are shown; `--json` has more."""
_DROPPED: Final = {
    "packets": "packets for want of room on the link",
    "datagrams": "datagrams for want of room",
}


def render(status: Mapping[str, Any], width: int = _WIDTH) -> str:
    """`status`, as `Client.status` or `Exit.status` gives it, in lines for standard output."""
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as text:
        console.print(view(status, width))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def view(status: Mapping[str, Any], width: int, more: Mapping[str, str] | None = None) -> Group:
    """The same for a Console of `width` columns. `more` are rows of whoever asks, like a rate."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = _exit_rows(status) if status.get("role") == "exit" else _client_rows(status)
    for name, value in (*rows, *(more or {}).items()):
        table.add_row(Text(name), Text(one_line(value)))
    return Group(table, *(piece for each in tables(status, width) for piece in (Text(), each)))


def _client_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    exit, session = part(status, "exit"), part(status, "session")
    yield "client", str(status.get("peer_id", "?"))
    yield "link", _link(status)
    yield "exit", f"{exit.get('peer_id', '?')} at {exit.get('address', '?')}"
    carrier = part(status, "carrier")
    if carrier:
        why = f": {carrier['why']}" if carrier.get("why") else ""
        yield "carrier", f"{carrier.get('kind', '?')} to {carrier.get('address', '?')}{why}"
    if "epoch" in session:
        yield "epoch", f"{session['epoch']}, {duration(session.get('epoch_age'))} old"
        yield "cipher", str(session.get("cipher", "?"))
        yield "round trip", milliseconds(session.get("round_trip"))
    yield "ML-KEM", str(status.get("provider", "?"))
    if session:
        yield "streams", str(session.get("streams", "?"))
        sent, received = session.get("bytes_sent"), session.get("bytes_received")
        yield "bytes", f"{size(sent)} sent, {size(received)} received"
    if status.get("waiting"):
        yield "waiting", f"{status['waiting']} requests for the link"
    yield from _traffic_rows(status)
    if status.get("rules"):
        yield from _rules_rows(part(status, "rules"))
    system, packets = part(status, "system"), part(status, "packets")
    if packets.get("lane"):
        yield "lane", _lane(part(packets, "lane"))
    if system:
        yield from _system_rows(system)
    yield from _packet_rows(packets, system)
    yield from _process_rows(status)


def _exit_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "exit", str(status.get("peer_id", "?"))
    yield "allowed peers", str(status.get("authorized", "?"))
    yield "ML-KEM", str(status.get("provider", "?"))
    yield "targets", str(status.get("targets", "?"))
    if isinstance(status.get("streams_total"), int):
        yield "streams", f"{status['streams_total']} so far"
    yield from _traffic_rows(status)
    sessions = status.get("sessions")
    yield "sessions", str(len(sessions) if isinstance(sessions, list) else "?")
    network, lanes = part(status, "network"), part(status, "lanes")
    sockets = lanes.get("sockets")
    if isinstance(sockets, list):
        shown = (
            f"{each.get('address', '?')} ({_offload(each)})" for each in sockets if isinstance(each, dict)
        )
        yield "lane sockets", ", ".join(shown)
    if network:
        device = part(network, "device")
        families = "IPv4 and IPv6" if network.get("ipv6") else "IPv4 only"
        clients = f"{network.get('clients', '?')} sessions with packets, {families}"
        yield "network", f"{_device(device)}, {clients}"
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "to clients", "from clients")
    drops = nonzero(part(part(network, "device"), "drops"), part(network, "drops"))
    if lanes.get("strangers"):
        drops.append(f"{lanes['strangers']} datagrams of nobody known")
    if drops:
        yield "dropped", ", ".join(drops)
    yield from _process_rows(status)


def _traffic_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What has gone through since the start, over all links, and what was not let through."""
    total, connections = part(status, "bytes"), part(status, "connections")
    if total:
        yield (
            "traffic",
            f"{size(total.get('sent'))} sent, {size(total.get('received'))} received since the start",
        )
    if connections:
        ways = nonzero(part(connections, "by"))
        of_them = f": {', '.join(ways)}" if ways else ""
        yield (
            "connections",
            f"{connections.get('open', '?')} open, {connections.get('total', '?')} so far{of_them}",
        )
    if refused := nonzero(part(connections, "refused"), part(status, "refused")):
        yield "refused", ", ".join(refused)


def _rules_rows(rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loaded, names = rules.get("loaded_at"), rules.get("names")
    lists = f" and {names} names of lists" if names else ""
    age = f", read {duration(time.time() - loaded)} ago" if isinstance(loaded, int | float) else ""
    yield "rules", f"{rules.get('rules', '?')}{lists}, all else {rules.get('default', '?')}{age}"
    if rules.get("error"):
        yield "rules failed", str(rules["error"])
    problems = rules.get("problems")
    if isinstance(problems, list) and problems:
        more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
        yield "broken lines", "; ".join(map(str, problems[:_PROBLEMS])) + more


def _system_rows(system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """System-wide mode: tun/tunnel.py."""
    device, addresses = part(system, "device"), system.get("addresses")
    listed = ", ".join(map(str, addresses)) if isinstance(addresses, list) and addresses else "no address yet"
    yield "system-wide", f"{listed} on {_device(device)}" if device else "is being set up"
    if device:
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "sent", "received")
    yield "kill switch", _kill_switch(part(system, "kill_switch"))
    dns = part(system, "dns")
    if dns:
        yield "DNS", _dns(dns)
    repairs = {"routes": system.get("repairs"), "resolver": dns.get("repairs")}
    if shown := nonzero(repairs):
        yield "put back", ", ".join(shown)


def _packet_rows(packets: Mapping[str, Any], system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What crossed the link beside its streams, and what was dropped anywhere: carriers/lane/packet_link.py."""
    lane, on_link = part(packets, "lane"), part(packets, "on_carrier")
    if lane:
        yield (
            "datagrams",
            _both_ways(lane, ("sent", "sent", "sent_bytes"), ("received", "received", "received_bytes")),
        )
    if on_link.get("sent") or on_link.get("received"):
        sent, received = on_link.get("sent", "?"), on_link.get("received", "?")
        yield "without lane", f"{sent} packets sent, {received} received on the link"
    dropped = {_DROPPED.get(cause, cause): count for cause, count in part(packets, "dropped").items()}
    drops = nonzero(part(lane, "drops"), dropped, part(part(system, "device"), "drops"))
    if drops:
        yield "dropped", ", ".join(drops)


def _process_rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    listen = status.get("listen")
    yield "listens on", ", ".join(map(str, listen)) if isinstance(listen, list) else "?"
    if status.get("admin"):
        yield "dashboard", f"{status['admin']} (cryprq-proxy dashboard opens it)"
    yield "running for", duration(status.get("uptime"))
    yield "version", f"{status.get('version', '?')}, process {status.get('pid', '?')}"


def _link(status: Mapping[str, Any]) -> str:
    error = status.get("last_error")
    state = str(status.get("link", "?"))
    return f"{state} ({error})" if error and state != "up" else state


def _lane(lane: Mapping[str, Any]) -> str:
    measured = f", {lane.get('size', '?')}-byte datagrams, round trip {milliseconds(lane.get('round_trip'))}"
    falls = part(lane, "path").get("falls")
    fell = f", fell back {falls} times so far" if falls else ""
    offload = f", {_offload(lane)}"
    return f"{up(lane)} ({lane.get('why', '?')}){measured if lane.get('up') else ''}{offload}{fell}"


def _offload(socket: Mapping[str, Any]) -> str:
    """What the kernel does of the batching on a UDP socket."""
    offload = part(socket, "offload")
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
    kept = nonzero(part(state, "kept_in"))
    return f"{shown}; kept in: {', '.join(kept)}" if kept else shown


def _dns(dns: Mapping[str, Any]) -> str:
    counters = part(dns, "counters")
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
