"""The status of a control socket, as a table for a person."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ...base.log import one_line
from ...base.program import to_run
from ...base.text import counted, duration, milliseconds, named_exit, nonzero, size
from ...status import (
    ClientStatus,
    DeviceStatus,
    DnsStatus,
    ExitStatus,
    KillSwitchStatus,
    LaneStatus,
    OffloadStatus,
    PacketLinkStatus,
    RepairStatus,
    RulesStatus,
    SessionPathStatus,
    Status,
    TunStatus,
)
from .tables import tables, up

_WIDTH: Final = 200
"""Columns without a terminal. Long cells wrap, which loses less than cutting them."""
_PROBLEMS: Final = 3
"""Shown invalid lines of rule lists; `--json` has more."""
_DROPPED: Final = {
    "packets": "packets for want of room on the link",
    "datagrams": "datagrams for want of room",
}


def render(status: Status, width: int = _WIDTH) -> str:
    """`status` in lines for standard output."""
    return draw(view(status, width), width)


def draw(piece: Group | Table, width: int) -> str:
    """In lines of at most `width` columns."""
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as text:
        console.print(piece)
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def view(status: Status, width: int, more: Mapping[str, str] | None = None) -> Group:
    """The same for a Console of `width` columns. `more` are further rows, like a rate."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = _exit_rows(status) if isinstance(status, ExitStatus) else _client_rows(status)
    for name, value in (*rows, *(more or {}).items()):
        table.add_row(Text(name), Text(one_line(value)))
    return Group(table, *(piece for below in tables(status, width) for piece in (Text(), below)))


def _client_rows(status: ClientStatus) -> Iterator[tuple[str, str]]:
    session, carrier, packets = status.session, status.carrier, status.packets
    yield "client", status.peer_id
    yield "link", _link(status)
    name = next((exit.name for exit in status.exits if exit.active), "")
    yield "exit", named_exit(name, status.exit.peer_id, status.exit.address)
    if carrier is not None:
        why = f": {carrier.why}" if carrier.why else ""
        yield "carrier", f"{carrier.kind} to {carrier.address}{why}"
        on = carrier.connection_round_trip
        chosen = "" if on is None else f", on a connection of {milliseconds(on)}"
        yield "congestion", f"{carrier.congestion or '?'} for what it sends{chosen}"
    if session is not None and session.epoch is not None:
        yield "epoch", f"{session.epoch}, {duration(session.epoch_age)} old"
        yield "cipher", session.cipher or "?"
        yield "round trip", milliseconds(session.round_trip)
    yield "ML-KEM", status.provider
    if session is not None:
        yield "streams", f"{session.streams}{_carried(session.paths)}"
        yield "bytes", f"{size(session.bytes_sent)} sent, {size(session.bytes_received)} received"
    if status.waiting:
        yield "waiting", f"{counted(status.waiting, 'request')} for the link"
    yield from _traffic_rows(status)
    if status.rules is not None:
        yield from _rules_rows(status.rules)
    for forward in status.forwards:
        yield (
            "forward",
            f"{forward.listen} to {forward.to}, {counted(forward.connections, 'connection')} so far",
        )
    if packets is not None and packets.lane is not None:
        yield "lane", _lane(packets.lane)
    if status.tun is not None:
        yield from _tun_rows(status.tun)
    yield from _packet_rows(packets or PacketLinkStatus(), status.tun)
    if status.admin:
        yield "dashboard", f"{status.admin} ({to_run('dashboard')} opens it)"
    yield from _process_rows(status)


def _exit_rows(status: ExitStatus) -> Iterator[tuple[str, str]]:
    yield "exit", status.peer_id
    yield "allowed peers", str(status.authorized)
    yield "ML-KEM", status.provider
    yield "targets", str(status.targets)
    yield "streams", f"{status.streams_total} so far"
    if status.names is not None:
        names = status.names
        yield "names", f"by {names.by}; {names.running} being looked up, {names.waiting} waiting"
    yield from _traffic_rows(status)
    yield "sessions", str(len(status.sessions))
    if status.handshakes or status.strangers:
        yield (
            "knocking",
            f"{counted(status.strangers, 'stranger')}, {counted(status.handshakes, 'handshake')}",
        )
    network, lanes = status.network, status.lanes
    drops = []
    if lanes is not None:
        shown = (f"{socket.address} ({_offload(socket.offload)})" for socket in lanes.sockets)
        yield "lane sockets", ", ".join(shown)
    if network is not None:
        device = network.device or DeviceStatus()
        families = "IPv4 and IPv6" if network.ipv6 else "IPv4 only"
        yield "network", f"{_device(device)}, {counted(network.clients, 'session')} with packets, {families}"
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "to clients", "from clients")
        yield from _repair_rows(network.repairs)
        drops = nonzero(device.drops, network.drops)
    if lanes is not None and lanes.strangers:
        drops.append(f"{lanes.strangers} datagrams of no known lane")
    if drops:
        yield "dropped", ", ".join(drops)
    yield from _process_rows(status)


def _traffic_rows(status: Status) -> Iterator[tuple[str, str]]:
    """The traffic since the start, over all links, and what was refused."""
    total = status.bytes
    yield "traffic", f"{size(total.sent)} sent, {size(total.received)} received since the start"
    refused = []
    if isinstance(status, ExitStatus):
        refused = nonzero(status.refused)
    elif status.connections is not None:
        routes = nonzero(status.connections.by)
        of_them = f": {', '.join(routes)}" if routes else ""
        yield "connections", f"{status.connections.open} open, {status.connections.total} so far{of_them}"
        refused = nonzero(status.connections.refused)
        if status.connections.early:
            cut = nonzero(status.connections.early_refused)
            reset = f"; reset then: {', '.join(cut)}" if cut else ""
            yield "answered early", f"{status.connections.early}{reset}"
    if refused:
        yield "refused", ", ".join(refused)


def _rules_rows(rules: RulesStatus) -> Iterator[tuple[str, str]]:
    lists = f" and {rules.names} names of lists" if rules.names else ""
    age = f", read {duration(time.time() - rules.loaded_at)} ago" if rules.loaded_at else ""
    yield "rules", f"{rules.rules}{lists}, all else {rules.default}{age}"
    if rules.error:
        yield "rules failed", rules.error
    if rules.problems:
        more = f"; and {rules.broken - _PROBLEMS} more" if rules.broken > _PROBLEMS else ""
        yield "broken lines", "; ".join(rules.problems[:_PROBLEMS]) + more


def _tun_rows(tun: TunStatus) -> Iterator[tuple[str, str]]:
    """System-wide mode: tun/tunnel.py."""
    device, dns = tun.device, tun.dns
    listed = ", ".join(tun.addresses) or "no address yet"
    yield "system-wide", f"{listed} on {_device(device)}" if device is not None else "is being set up"
    if device is not None:
        yield "offloads", _device_offloads(device)
        yield "packets", _device_packets(device, "sent", "received")
    yield "kill switch", _kill_switch(tun.kill_switch)
    if dns is not None:
        yield "DNS", _dns(dns)
    yield from _repair_rows(tun.repairs)


def _repair_rows(repairs: Sequence[RepairStatus]) -> Iterator[tuple[str, str]]:
    """What other programs have changed: tun/reconciler.py."""
    if put_back := nonzero({repair.name: repair.repairs for repair in repairs}):
        yield "put back", ", ".join(put_back)
    for repair in repairs:
        if repair.trouble:
            yield "trouble", f"{repair.name}: {repair.trouble}"


def _packet_rows(packets: PacketLinkStatus, tun: TunStatus | None) -> Iterator[tuple[str, str]]:
    """The packets of the link beside its streams, and all that were dropped: carriers/lane/packet_link.py."""
    lane, carrier = packets.lane, packets.on_carrier
    drops = {} if lane is None else lane.drops
    if lane is not None:
        sent = _packets(lane.sent, "sent", lane.sent_bytes)
        yield "datagrams", f"{sent}, {_packets(lane.received, 'received', lane.received_bytes)}"
    if carrier.sent or carrier.received:
        yield "without lane", f"{carrier.sent} packets sent, {carrier.received} received on the link"
    dropped = {_DROPPED.get(cause, cause): count for cause, count in packets.dropped.items()}
    device = {} if tun is None or tun.device is None else tun.device.drops
    if found := nonzero(drops, dropped, device):
        yield "dropped", ", ".join(found)


def _process_rows(status: Status) -> Iterator[tuple[str, str]]:
    yield "listens on", ", ".join(status.listen) or "?"
    yield "running for", duration(status.uptime)
    yield "version", f"{status.version}, process {status.pid}"


def _link(status: ClientStatus) -> str:
    return (
        f"{status.link} ({status.last_error})" if status.last_error and status.link != "up" else status.link
    )


def _carried(paths: Sequence[SessionPathStatus]) -> str:
    """By what streams are carried and why, if there is a choice."""
    lane = next((path for path in paths if path.kind == "lane"), None)
    by = next((path.kind for path in paths if path.use == "in use"), None)
    return "" if lane is None or by is None else f", by {'the lane' if by == 'lane' else by}: {lane.why}"


def _lane(lane: LaneStatus) -> str:
    measured = (
        f", {lane.size}-byte datagrams{' so far' if lane.searching else ''}, "
        f"round trip {milliseconds(lane.round_trip)}"
        if lane.up
        else ""
    )
    fell = f", fell back {counted(lane.path.falls, 'time')} so far" if lane.path.falls else ""
    return f"{up(lane)} ({lane.why}){measured}, {_offload(lane.offload)}{fell}"


def _offload(offload: OffloadStatus) -> str:
    """The kernel's share of the batching on a UDP socket."""
    used = [name for name, on in (("GSO", offload.gso), ("GRO", offload.gro)) if on]
    reason = f": {offload.reason}" if offload.reason else ""
    return f"UDP {' and '.join(used)}" if used else f"no UDP offload{reason}"


def _device(device: DeviceStatus) -> str:
    return f"{device.name}, MTU {device.mtu}"


def _device_offloads(device: DeviceStatus) -> str:
    return f"TUN reads {' '.join(device.reads) or 'none'}, TUN writes {' '.join(device.writes) or 'none'}"


def _device_packets(device: DeviceStatus, read: str, written: str) -> str:
    reads = _packets(device.read_packets, read, device.read_bytes)
    writes = _packets(device.written_packets, written, device.written_bytes)
    return f"{reads}, {writes}; a super-packet counts as one"


def _packets(number: int, direction: str, bytes: int) -> str:
    """As "12 sent (3.4 KiB)"."""
    return f"{number} {direction} ({size(bytes)})"


def _kill_switch(state: KillSwitchStatus) -> str:
    lockdown = ", with lockdown" if state.lockdown else ""
    if not state.on:
        shown = "off"
    elif state.standing:
        shown = f"on{lockdown}"
    else:
        shown = f"on{lockdown}, but another program has removed it: it is being put back"
    if state.paused:
        shown += f", PAUSED for {duration(state.paused)} more"
    kept = nonzero(state.kept_in)
    return f"{shown}; kept in: {', '.join(kept)}" if kept else shown


def _dns(dns: DnsStatus) -> str:
    counters = dns.counters
    shown = [
        counted(counters.questions, "question"),
        f"{counters.cache_hits} from the cache",
        f"{counters.blocked} blocked",
        f"{counters.stale} stale",
        f"{counters.failures} failed",
    ]
    ill = [
        f"{upstream.name} fails ({upstream.last_error or 'no answer'})"
        for upstream in dns.upstreams
        if not upstream.healthy
    ]
    return f"by {dns.resolver}, asks {dns.in_use}; {', '.join(shown + ill)}"
