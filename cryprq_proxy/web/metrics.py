"""The status as Prometheus metrics: names, units and types after its conventions, the same on client and exit.

    status (plain JSON values) -> families(status) -> Steady: counters never fall -> text or OpenMetrics

Every label has few values: names of configured exits and listed causes. What a stranger can choose (targets, peers'
own words) never becomes one. Whatever the status does not have gives no metric, rather than a zero that means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MAX_LABEL: Final = 64
"""Characters of a label's value."""
MAX_SERIES: Final = 256
"""Sets of labels of one metric; further ones are left out."""

type _Row = tuple[tuple[str, ...], object]
"""The values of a metric's labels, and its own."""


class Exposition:
    """Writes the metrics; keeps between two scrapes only what makes counters steady. Has a registry of its own."""

    def __init__(self) -> None:
        self._status = _StatusCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._status)
        ProcessCollector(registry=self._registry)

    def write(self, status: Mapping[str, Any], accept: str) -> tuple[bytes, str]:
        """The metrics of this `status`, and their media type: OpenMetrics for who accepts it, else the text format."""
        encoder, kind = choose_encoder(accept)
        self._status.status = status
        return encoder(self._registry), kind


class _StatusCollector(Collector):
    def __init__(self) -> None:
        self.status: Mapping[str, Any] = {}
        self._steady = Steady()

    def collect(self) -> Iterator[Metric]:
        for family in families(self.status):
            self._steady.smooth(family)
            yield family


class Steady:
    """A link's counters begin again with its next session; here they go on from where they were, as a counter of
    Prometheus should while the process lives."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
        """By name and labels: what has to be added, and the last value that was told."""

    def smooth(self, family: Metric) -> None:
        if family.type != "counter":
            return
        for index, sample in enumerate(family.samples):
            key = sample.name, tuple(sample.labels.values())
            base, last = self._seen.get(key, (0.0, 0.0))
            if sample.value < last:
                base += last
            self._seen[key] = base, sample.value
            if base:
                family.samples[index] = sample._replace(value=base + sample.value)


def families(status: Mapping[str, Any]) -> Iterator[Metric]:
    """All metrics of a role's status. Unknown and missing keys are left out: it may come from any version."""
    build = {name: _label(status.get(name, "?")) for name in ("version", "role")}
    yield InfoMetricFamily("cryprq_build", "Which program this is, and in which role it runs.", build)
    yield from _gauge("uptime_seconds", "How long the process has been running.", status.get("uptime"))
    yield from _moved(status)
    if status.get("role") == "exit":
        yield from _exit(status)
    else:
        yield from _client(status)
    yield from _counters(
        "log_messages", "Warnings and errors that were logged.", ("level",), _counts(status.get("logged"))
    )


def _moved(status: Mapping[str, Any]) -> Iterator[Metric]:
    moved = _part(status, "bytes")
    rows = [((way,), moved.get(way)) for way in ("sent", "received")]
    yield from _counters("link_bytes", "Payload that crossed the link, in bytes.", ("direction",), rows)
    yield from _counters("rotations", "Key rotations inside the link.", (), [((), status.get("rotations"))])


def _client(status: Mapping[str, Any]) -> Iterator[Metric]:
    exits, session = _exits(status), _part(status, "session")
    yield from _gauge("link_up", "Whether the link to the exit in use is up.", status.get("link") == "up")
    yield from _gauge("waiting_requests", "Requests that wait for the link.", status.get("waiting"))
    per_exit = ("exit",)
    for name, text, key in (
        ("exit_link_up", "Whether the link to this exit is up.", "link"),
        ("exit_healthy", "Whether this exit takes new streams.", "healthy"),
        ("exit_active", "Whether this exit is the one in use.", "active"),
        ("round_trip_seconds", "The link's last measured round trip.", "round_trip"),
    ):
        rows = [((each,), exit.get(key) == "up" if key == "link" else exit.get(key)) for each, exit in exits]
        yield from _gauges(name, text, per_exit, rows)
    yield from _gauges(
        "epoch",
        "Number of the keys in use, from 0 with each carrier.",
        per_exit,
        [((name,), _part(exit, "session").get("epoch")) for name, exit in exits],
    )
    yield from _gauges(
        "epoch_age_seconds",
        "How long the present keys have been in use.",
        per_exit,
        [((name,), _part(exit, "session").get("epoch_age")) for name, exit in exits],
    )
    yield from _counters(
        "carriers",
        "Carriers that were set up.",
        per_exit,
        [((name,), exit.get("carriers")) for name, exit in exits],
    )
    yield from _gauge(
        "retained_bytes", "Bytes kept until the exit has them for sure.", session.get("retained")
    )
    yield from _connections(_part(status, "connections"), session)
    yield from _rules(_part(status, "rules"))
    active = next((name for name, exit in exits if exit.get("active")), "default")
    yield from _tunnel(_part(status, "packets"), _part(status, "system"), active)
    yield from _system(_part(status, "system"))


def _connections(connections: Mapping[str, Any], session: Mapping[str, Any]) -> Iterator[Metric]:
    yield from _gauge("streams", "Streams that are open.", connections.get("open", session.get("streams")))
    yield from _counters(
        "streams_opened",
        "Requests of applications, by what the rules made of them.",
        ("route",),
        _counts(connections.get("by")),
    )
    yield from _counters(
        "streams_refused", "Streams that were not opened.", ("reason",), _counts(connections.get("refused"))
    )


def _rules(rules: Mapping[str, Any]) -> Iterator[Metric]:
    if not rules:
        return
    problems = rules.get("problems")
    yield from _gauge("rules", "Rules in use.", rules.get("rules"))
    yield from _gauge("rule_names", "Names in the lists of the rules.", rules.get("names"))
    yield from _gauge(
        "rule_problems", "Broken lines in the lists.", len(problems) if isinstance(problems, list) else None
    )
    yield from _gauge("rules_loaded_timestamp_seconds", "When the rules were read.", rules.get("loaded_at"))
    yield from _gauge(
        "rules_last_load_successful", "Whether the last reading of the rules worked.", not rules.get("error")
    )


def _tunnel(packets: Mapping[str, Any], system: Mapping[str, Any], exit: str) -> Iterator[Metric]:
    lane, device = _part(packets, "lane"), _part(system, "device")
    if lane:
        yield from _gauge("lane_up", "Whether the datagram lane is in use.", lane.get("up"))
        yield from _gauge(
            "lane_datagram_size_bytes", "Largest datagram that passes on the lane.", lane.get("size")
        )
        yield from _gauge("lane_round_trip_seconds", "The lane's last round trip.", lane.get("round_trip"))
        ways = ("sent", "received")
        labels = ("exit", "direction")
        yield from _counters(
            "lane_datagrams", "Datagrams on the lane.", labels, [((exit, way), lane.get(way)) for way in ways]
        )
        yield from _counters(
            "lane_bytes",
            "Bytes in datagrams on the lane.",
            labels,
            [((exit, way), lane.get(f"{way}_bytes")) for way in ways],
        )
    drops = [
        ((place, exit, *labels), value)
        for place, part in (
            ("lane", lane.get("drops")),
            ("link", packets.get("dropped")),
            ("device", device.get("drops")),
        )
        for labels, value in _counts(part)
    ]
    yield from _counters(
        "tunnel_drops", "Packets and datagrams that were dropped here.", ("place", "exit", "cause"), drops
    )
    if device:
        directions = (("sent", "read"), ("received", "written"))
        for unit in ("packets", "bytes"):
            yield from _counters(
                f"tunnel_{unit}",
                f"What applications sent and got through the interface, in {unit}.",
                ("direction",),
                [((way,), device.get(f"{key}_{unit}")) for way, key in directions],
            )


def _system(system: Mapping[str, Any]) -> Iterator[Metric]:
    if not system:
        return
    switch, dns = _part(system, "kill_switch"), _part(system, "dns")
    yield from _gauge(
        "kill_switch_active",
        "Whether the kill switch stands.",
        bool(switch.get("on") and switch.get("standing")),
    )
    yield from _counters(
        "kill_switch_packets",
        "Packets that the kill switch kept in.",
        ("cause",),
        _counts(switch.get("kept_in")),
    )
    yield from _counters("dns_events", "What the resolver did.", ("event",), _counts(dns.get("counters")))
    yield from _gauge("dns_cache_entries", "Answers in the resolver's cache.", dns.get("cache_entries"))


def _exit(status: Mapping[str, Any]) -> Iterator[Metric]:
    sessions = [each for each in _list(status.get("sessions")) if isinstance(each, Mapping)]
    yield from _gauges(
        "sessions",
        "Sessions of peers, by the state of their link.",
        ("link",),
        [((state,), sum(each.get("link") == state for each in sessions)) for state in ("up", "down")],
    )
    yield from _gauge("peers_authorized", "Peers that may come in.", status.get("authorized"))
    yield from _gauge(
        "streams", "Streams that are open.", sum(_number(each.get("streams")) for each in sessions)
    )
    yield from _gauge("targets", "Connections to targets.", status.get("targets"))
    yield from _gauge("handshakes", "Handshakes under way.", status.get("handshakes"))
    retained = sum(_number(each.get("retained")) for each in sessions)
    yield from _gauge("retained_bytes", "Bytes kept until the peers have them for sure.", retained)
    yield from _counters(
        "streams_opened", "Streams that peers opened.", (), [((), status.get("streams_total"))]
    )
    yield from _counters(
        "streams_refused",
        "Streams that were not opened.",
        ("reason",),
        _counts(status.get("streams_refused")),
    )
    yield from _counters(
        "connections_refused",
        "Connections that were not let in.",
        ("reason",),
        _counts(status.get("refused")),
    )
    lanes, network = _part(status, "lanes"), _part(status, "network")
    yield from _counters(
        "lane_strangers", "Datagrams that belong to no lane.", (), [((), lanes.get("strangers"))]
    )
    device = _part(network, "device")
    drops = [
        ((place, *labels), value)
        for place, part in (("device", device.get("drops")), ("network", network.get("drops")))
        for labels, value in _counts(part)
    ]
    yield from _counters("tunnel_drops", "Packets that were dropped here.", ("place", "cause"), drops)


def _exits(status: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and row of each exit; of a status that knows but one, that one is called "default"."""
    rows = [each for each in _list(status.get("exits")) if isinstance(each, Mapping)]
    if rows:
        return [(_label(each.get("name", "?")), each) for each in rows]
    only = {"active": True, "round_trip": _part(status, "session").get("round_trip")}
    return [("default", {**status, **only})]


# --- families with their bounds ---


def _gauge(name: str, text: str, value: object) -> Iterator[Metric]:
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
        if isinstance(value, int | float) and labels not in seen and len(seen) < MAX_SERIES:
            seen.add(labels)
            family.add_metric(labels, value)
    if family.samples:
        yield family


def _counts(part: object) -> list[_Row]:
    """A mapping of causes to numbers as rows."""
    return [((_label(cause),), value) for cause, value in part.items()] if isinstance(part, Mapping) else []


def _label(value: object) -> str:
    """Bounded, and text that UTF-8 can carry; line ends and quotes are escaped by the exposition."""
    return str(value)[:MAX_LABEL].encode("utf-8", "replace").decode()


def _part(status: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = status.get(key)
    return part if isinstance(part, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0
