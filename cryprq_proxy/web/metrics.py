"""The status as Prometheus metrics: names, units and types after its conventions, the same on client and exit.

    status -> families(status) -> Steady: counters never fall -> text or OpenMetrics

Every label has few values: names of configured exits and listed peers, and listed causes. What a stranger can choose
(targets, peers' own words) never becomes one. What was not measured gives no metric, rather than a zero that means
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import structs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..base.text import named
from ..status import (
    ClientStatus,
    ConnectionCounts,
    DeviceStatus,
    ExitStatus,
    KnownExit,
    LaneStatus,
    NamesStatus,
    PacketLinkStatus,
    PeerStatus,
    RepairStatus,
    RulesStatus,
    SessionPathStatus,
    Status,
    TunNetworkStatus,
    TunStatus,
)

MAX_LABEL: Final = 64
"""Characters of a label's value."""
MAX_SERIES: Final = 256
"""Sets of labels of one metric; further ones are left out."""

type _Row = tuple[tuple[str, ...], float | None]
"""The values of a metric's labels, and its own."""


class Exposition:
    """Writes the metrics. Has a registry of its own; between two scrapes it keeps only what keeps counters steady."""

    def __init__(self) -> None:
        self._status = _StatusCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._status)
        ProcessCollector(registry=self._registry)

    def write(self, status: Status, accept: str) -> tuple[bytes, str]:
        """The metrics of this `status`, and their media type: OpenMetrics if `accept` has it, else the text format."""
        encoder, kind = choose_encoder(accept)
        self._status.status = status
        return encoder(self._registry), kind


class _StatusCollector(Collector):
    def __init__(self) -> None:
        self.status: Status = ClientStatus()
        self._steady = Steady()

    def collect(self) -> Iterator[Metric]:
        for family in families(self.status):
            self._steady.smooth(family)
            yield family


class Steady:
    """Counters that never fall. A link's counters begin again with its next session; here they go on from where they
    were, as Prometheus expects while the process lives."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
        """By name and labels: what is added, and the last value."""

    def smooth(self, family: Metric) -> None:
        # The bytes of a peer are counted over all its sessions, and which peers there are changes with the list.
        if family.type != "counter" or family.name == "cryprq_peer_bytes":
            return
        for index, sample in enumerate(family.samples):
            key = sample.name, tuple(sample.labels.values())
            base, last = self._seen.get(key, (0.0, 0.0))
            if sample.value < last:
                base += last
            self._seen[key] = base, sample.value
            if base:
                family.samples[index] = sample._replace(value=base + sample.value)


def families(status: Status) -> Iterator[Metric]:
    """All metrics of a role's status."""
    role = "exit" if isinstance(status, ExitStatus) else "client"
    build = {"version": _label(status.version), "role": role}
    yield InfoMetricFamily("cryprq_build", "Which program this is, and in which role it runs.", build)
    yield from _gauge("uptime_seconds", "How long the process has been running.", status.uptime)
    rows = [(("sent",), status.bytes.sent), (("received",), status.bytes.received)]
    yield from _counters("link_bytes", "Payload that crossed the link, in bytes.", ("direction",), rows)
    yield from _counters("rotations", "Key rotations inside the link.", (), [((), status.rotations)])
    yield from _exit(status) if isinstance(status, ExitStatus) else _client(status)
    yield from _counters(
        "log_messages", "Warnings and errors that were logged.", ("level",), _counts(status.logged)
    )


def _client(status: ClientStatus) -> Iterator[Metric]:
    yield from _gauge("link_up", "Whether the link to the exit in use is up.", status.link == "up")
    yield from _gauge("waiting_requests", "Requests that wait for the link.", status.waiting)
    if status.session is not None:
        yield from _gauge(
            "retained_bytes", "Bytes kept until the exit has acknowledged them.", status.session.retained
        )
    yield from _exits(status.exits)
    if status.connections is not None:
        yield from _connections(status.connections)
    if status.rules is not None:
        yield from _rules(status.rules)
    active = next((_label(exit.name) for exit in status.exits if exit.active), "default")
    packets, device = status.packets or PacketLinkStatus(), None if status.tun is None else status.tun.device
    if packets.lane is not None:
        yield from _lane(packets.lane, active)
    places = (
        ("lane", {} if packets.lane is None else packets.lane.drops),
        ("link", packets.dropped),
        ("device", {} if device is None else device.drops),
    )
    drops = [((place, active, *cause), count) for place, counts in places for cause, count in _counts(counts)]
    yield from _counters(
        "tunnel_drops", "Packets and datagrams that were dropped here.", ("place", "exit", "cause"), drops
    )
    if status.tun is not None:
        yield from _tun(status.tun)


def _exits(exits: Sequence[KnownExit]) -> Iterator[Metric]:
    for name, text, value in _PER_EXIT:
        yield from _gauges(name, text, ("exit",), [((_label(exit.name),), value(exit)) for exit in exits])
    rows = [((_label(exit.name),), exit.carriers) for exit in exits]
    yield from _counters("carriers", "Carriers that were set up.", ("exit",), rows)
    links = [(_label(exit.name), exit.carrier) for exit in exits]
    yield from _gauges(
        "exit_carrier",
        "1 for the kind of the carrier to this exit, and the congestion control of what is sent to it.",
        ("exit", "kind", "congestion"),
        [((name, _label(on.kind), _label(on.congestion)), 1) for name, on in links if on is not None],
    )
    paths = Counter(
        (_label(exit.name), _label(path.kind), _label(path.use))
        for exit in exits
        if exit.session is not None
        for path in exit.session.paths
    )
    text = "Paths of the session with this exit, by the kind of their carriers and what they are there for."
    yield from _gauges("exit_paths", text, ("exit", "kind", "use"), list(paths.items()))
    in_use = [
        ((_label(exit.name), _label(path.kind)), path)
        for exit in exits
        if exit.session is not None
        for path in exit.session.paths
        if path.use == "in use"
    ]
    for name, text, figure in _PER_PATH:
        yield from _gauges(name, text, ("exit", "kind"), [(labels, figure(path)) for labels, path in in_use])


_PER_PATH: Final[tuple[tuple[str, str, Callable[[SessionPathStatus], float | None]], ...]] = (
    (
        "path_round_trip_seconds",
        "Smoothed round trip of the path in use.",
        lambda path: path.round_trip or None,
    ),
    ("path_rate_bytes_per_second", "What it sends at most.", lambda path: path.rate),
    ("path_loss_ratio", "Share of lost datagrams, where it is the lane.", lambda path: path.loss),
    ("path_in_flight_bytes", "Bytes that the exit has not acknowledged on it.", lambda path: path.in_flight),
    ("path_sent_bytes", "Bytes that it has carried to the exit.", lambda path: path.bytes_sent),
    ("path_received_bytes", "Bytes that it has carried from the exit.", lambda path: path.bytes_received),
)
_PER_EXIT: Final[tuple[tuple[str, str, Callable[[KnownExit], float | None]], ...]] = (
    ("exit_link_up", "Whether the link to this exit is up.", lambda exit: exit.link == "up"),
    ("exit_healthy", "Whether this exit takes new streams.", lambda exit: exit.healthy),
    ("exit_active", "Whether this exit is the one in use.", lambda exit: exit.active),
    ("round_trip_seconds", "The smoothed round trip of the TCP path in use.", lambda exit: exit.round_trip),
    (
        "epoch",
        "Number of the keys in use, from 0 with each session.",
        lambda exit: None if exit.session is None else exit.session.epoch,
    ),
    (
        "epoch_age_seconds",
        "How long the present keys have been in use.",
        lambda exit: None if exit.session is None else exit.session.epoch_age,
    ),
)


def _connections(connections: ConnectionCounts) -> Iterator[Metric]:
    yield from _gauge("streams", "Streams that are open.", connections.open)
    yield from _counters(
        "streams_opened",
        "Requests of applications, by what the rules made of them.",
        ("route",),
        _counts(connections.by),
    )
    yield from _counters(
        "streams_refused", "Streams that were not opened.", ("reason",), _counts(connections.refused)
    )
    yield from _counters(
        "streams_early",
        "Applications that were answered before the exit had connected their target.",
        (),
        [((), connections.early)],
    )
    yield from _counters(
        "streams_early_refused",
        "Of these, connections that were reset because it was not connected.",
        ("reason",),
        _counts(connections.early_refused),
    )


def _rules(rules: RulesStatus) -> Iterator[Metric]:
    yield from _gauge("rules", "Rules in use.", rules.rules)
    yield from _gauge("rule_names", "Names in the lists of the rules.", rules.names)
    yield from _gauge("rule_problems", "Broken lines in the lists.", rules.broken)
    yield from _gauge("rules_loaded_timestamp_seconds", "When the rules were read.", rules.loaded_at)
    yield from _gauge(
        "rules_last_load_successful", "Whether the last reading of the rules worked.", not rules.error
    )


def _lane(lane: LaneStatus, exit: str) -> Iterator[Metric]:
    yield from _gauge("lane_up", "Whether the datagram lane is in use.", lane.up)
    yield from _gauge("lane_datagram_size_bytes", "Largest datagram that passes on the lane.", lane.size)
    yield from _gauge("lane_round_trip_seconds", "The lane's smoothed round trip.", lane.round_trip)
    labels = ("exit", "direction")
    rows = [((exit, "sent"), lane.sent), ((exit, "received"), lane.received)]
    yield from _counters("lane_datagrams", "Datagrams on the lane.", labels, rows)
    rows = [((exit, "sent"), lane.sent_bytes), ((exit, "received"), lane.received_bytes)]
    yield from _counters("lane_bytes", "Bytes in datagrams on the lane.", labels, rows)


def _device(device: DeviceStatus) -> Iterator[Metric]:
    text = "What applications sent and got through the interface, in"
    labels = ("direction",)
    rows = [(("sent",), device.read_packets), (("received",), device.written_packets)]
    yield from _counters("tunnel_packets", f"{text} packets.", labels, rows)
    rows = [(("sent",), device.read_bytes), (("received",), device.written_bytes)]
    yield from _counters("tunnel_bytes", f"{text} bytes.", labels, rows)


def _repairs(repairs: Sequence[RepairStatus]) -> Iterator[Metric]:
    rows = [((repair.name,), repair.repairs) for repair in repairs]
    yield from _counters("tun_repairs", "How often a fact was put back.", ("fact",), rows)
    rows = [((repair.name,), bool(repair.trouble)) for repair in repairs]
    yield from _gauges("tun_trouble", "Whether a fact does not stand, or not for long.", ("fact",), rows)


def _tun(tun: TunStatus) -> Iterator[Metric]:
    switch, dns = tun.kill_switch, tun.dns
    yield from _repairs(tun.repairs)
    if tun.device is not None:
        yield from _device(tun.device)
    yield from _gauge("kill_switch_active", "Whether the kill switch stands.", switch.on and switch.standing)
    yield from _gauge("lockdown", "Whether a block stands while no client runs.", switch.lockdown)
    yield from _counters(
        "kill_switch_packets",
        "Packets that the kill switch kept in.",
        ("cause",),
        _counts(switch.kept_in),
    )
    if dns is not None:
        yield from _counters(
            "dns_events", "What the resolver did.", ("event",), _counts(structs.asdict(dns.counters))
        )
        yield from _gauge("dns_cache_entries", "Answers in the resolver's cache.", dns.cache_entries)


def _exit(status: ExitStatus) -> Iterator[Metric]:
    sessions = status.sessions
    yield from _gauges(
        "sessions",
        "Sessions of peers, by the state of their link.",
        ("link",),
        [((state,), sum(session.link == state for session in sessions)) for state in ("up", "down")],
    )
    controls = Counter(session.congestion for session in sessions if session.link == "up")
    yield from _gauges(
        "session_congestion",
        "Sessions with a link, by the congestion control of what is sent to them.",
        ("congestion",),
        _counts(controls),
    )
    paths = Counter((_label(path.kind), _label(path.use)) for session in sessions for path in session.paths)
    text = "Paths of all sessions, by the kind of their carriers and what they are there for."
    yield from _gauges("session_paths", text, ("kind", "use"), list(paths.items()))
    yield from _gauge("peers_authorized", "Peers that may come in.", status.authorized)
    yield from _peers(status.peers)
    yield from _gauge("streams", "Streams that are open.", sum(session.streams for session in sessions))
    yield from _gauge("targets", "Connections to targets.", status.targets)
    yield from _gauge("strangers", "Connections without a valid first flight.", status.strangers)
    yield from _gauge("handshakes", "Handshakes from a valid first flight to the verdict.", status.handshakes)
    names = status.names or NamesStatus()
    states = [(("looked_up",), names.running), (("waiting",), names.waiting), (("remembered",), names.cached)]
    yield from _gauges("names", "Names of targets, by their state.", ("state",), states)
    retained = sum(session.retained for session in sessions)
    yield from _gauge("retained_bytes", "Bytes kept until the peers have acknowledged them.", retained)
    yield from _counters("streams_opened", "Streams that peers opened.", (), [((), status.streams_total)])
    refused = _counts(status.streams_refused)
    yield from _counters("streams_refused", "Streams that were not opened.", ("reason",), refused)
    refused = _counts(status.refused)
    yield from _counters("connections_refused", "Connections that were not let in.", ("reason",), refused)
    if status.lanes is not None:
        rows = [((), status.lanes.strangers)]
        yield from _counters("lane_strangers", "Datagrams that belong to no lane.", (), rows)
    network = status.network or TunNetworkStatus()
    yield from _repairs(network.repairs)
    places = (("device", {} if network.device is None else network.device.drops), ("network", network.drops))
    drops = [((place, *cause), count) for place, counts in places for cause, count in _counts(counts)]
    yield from _counters("tunnel_drops", "Packets that were dropped here.", ("place", "cause"), drops)


def _peers(peers: Sequence[PeerStatus]) -> Iterator[Metric]:
    """Those that have come since the start: of the others there is nothing to count."""
    seen = [(_label(named(peer.name, peer.peer_id)), peer) for peer in peers if peer.last_seen is not None]
    yield from _gauges(
        "peer_connected",
        "Whether this peer has a session with a link.",
        ("peer",),
        [((label,), peer.since is not None) for label, peer in seen],
    )
    yield from _gauges(
        "peer_connected_since_timestamp_seconds",
        "When the oldest session of this peer that has a link began.",
        ("peer",),
        [((label,), peer.since) for label, peer in seen],
    )
    yield from _gauges(
        "peer_last_seen_timestamp_seconds",
        "When this peer was last heard of.",
        ("peer",),
        [((label,), peer.last_seen) for label, peer in seen],
    )
    rows: list[_Row] = [
        ((label, direction), count)
        for label, peer in seen
        for direction, count in (("sent", peer.bytes.sent), ("received", peer.bytes.received))
    ]
    yield from _counters("peer_bytes", "Payload of this peer's sessions.", ("peer", "direction"), rows)


# --- families with their bounds ---


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    return _gauges(name, text, (), [((), value)])


def _gauges(name: str, text: str, labels: tuple[str, ...], rows: Iterable[_Row]) -> Iterator[Metric]:
    return _fill(GaugeMetricFamily(f"cryprq_{name}", text, labels=labels), rows)


def _counters(name: str, text: str, labels: tuple[str, ...], rows: Iterable[_Row]) -> Iterator[Metric]:
    """`name` is without the _total that the exposition puts behind it."""
    return _fill(CounterMetricFamily(f"cryprq_{name}", text, labels=labels), rows)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[_Row]) -> Iterator[Metric]:
    """The family with the rows that have a number; not at all without such."""
    seen: set[tuple[str, ...]] = set()
    for labels, value in rows:
        if value is not None and labels not in seen and len(seen) < MAX_SERIES:
            seen.add(labels)
            family.add_metric(labels, value)
    if family.samples:
        yield family


def _counts(counts: Mapping[str, int]) -> list[_Row]:
    """A mapping of causes to numbers as rows."""
    return [((_label(cause),), count) for cause, count in counts.items()]


def _label(value: str) -> str:
    """Bounded, and text that UTF-8 can carry; line ends and quotes are escaped by the exposition."""
    return value[:MAX_LABEL].encode("utf-8", "replace").decode()
