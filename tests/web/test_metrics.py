"""The metrics, read back by Prometheus' own parsers: names, types, help, and counters that never fall."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cryprq_proxy.status import read
from cryprq_proxy.web.metrics import MAX_LABEL, MAX_SERIES, Exposition
from tests.support.web_fakes import TUN, World, client_status

OPEN = "application/openmetrics-text; version=1.0.0"

PATHS = [{"number": 3, "kind": "tcp", "use": "in use"}, {"number": 4, "kind": "ws", "use": "standby"}]
EXIT: dict[str, Any] = {
    "role": "exit", "version": "0.1.0", "uptime": 12.5, "authorized": 3, "targets": 7, "handshakes": 1,
    "bytes": {"sent": 1000, "received": 2000}, "rotations": 5, "streams_total": 90,
    "streams_refused": {"not_allowed": 2}, "refused": {"not_authorized": 4, "no_handshake": 11},
    "lanes": {"sockets": [], "strangers": 6}, "names": {"running": 3, "waiting": 1, "cached": 40},
    "network": {"device": {"drops": {"no_link": 1}}, "drops": {"no_client": 2}},
    "sessions": [
        {"peer_id": "a" * 52, "link": "up", "streams": 4, "retained": 10, "paths": PATHS},
        {"peer_id": "b" * 52, "link": "down", "streams": 1, "retained": 20},
    ],
    "peers": [{"peer_id": "a" * 52, "name": "laptop", "sessions": 1, "since": 1.0, "last_seen": 2.0}],
}  # fmt: skip


def client(**changes: Any) -> dict[str, Any]:
    world = World()
    world.tun = TUN
    return client_status(world) | changes


def families(told: dict[str, Any], exposition: Exposition | None = None) -> dict[str, Metric]:
    body, kind = (exposition or Exposition()).write(read(told), "text/plain")
    assert kind.startswith("text/plain")
    return {family.name: family for family in parse_text(body.decode())}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """By the values of the labels, in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in family.samples
    }


def test_client() -> None:
    found = families(client())
    assert values(found["cryprq_link_up"]) == {(): 1}
    assert values(found["cryprq_link_bytes"]) == {("sent",): 48_300_000, ("received",): 1_260_000_000}
    assert values(found["cryprq_streams_opened"])[("block",)] == 1187
    assert values(found["cryprq_streams"]) == {(): 12}
    assert values(found["cryprq_streams_refused"]) == {("name_not_found",): 12, ("timed_out",): 3}
    assert values(found["cryprq_exit_healthy"]) == {("home",): 1, ("office",): 1, ("far",): 0}
    assert values(found["cryprq_exit_active"]) == {("home",): 1, ("office",): 0, ("far",): 0}
    trips = values(found["cryprq_round_trip_seconds"])
    assert trips.keys() == {("home",), ("office",)}, "what was not measured is left out"
    assert trips[("office",)] == 0.0412
    assert values(found["cryprq_epoch"])[("home",)] == 2
    assert values(found["cryprq_rotations"]) == {(): 13}
    assert values(found["cryprq_tunnel_drops"])[("replay", "home", "lane")] == 1
    assert values(found["cryprq_tunnel_drops"])[("no_link", "home", "device")] == 3
    assert values(found["cryprq_kill_switch_active"]) == {(): 1}
    assert values(found["cryprq_lockdown"]) == {(): 1}
    assert values(found["cryprq_tun_repairs"]) == {("kill switch",): 2, ("rules of others",): 0}
    assert values(found["cryprq_tun_trouble"]) == {("kill switch",): 0, ("rules of others",): 1}
    assert values(found["cryprq_dns_events"])[("cache_hits",)] == 2870
    assert values(found["cryprq_rule_names"]) == {(): 148_212}
    assert found["cryprq_build_info"].samples[0].labels == {"version": "0.1.0", "role": "client"}
    assert values(found["cryprq_log_messages"]) == {("warning",): 4, ("error",): 0}


def test_peers_of_an_exit_have_names() -> None:
    peers: list[dict[str, Any]] = [
        {"peer_id": "a" * 52, "name": 'lap"\n\x1btop', "since": 5.0, "last_seen": 7.0, "bytes": {"sent": 3}},
        {"peer_id": "b" * 52, "last_seen": 6.0, "bytes": {"received": 9}},
        {"peer_id": "c" * 52, "name": "never here"},
    ]
    exposition = Exposition()
    found = families({"role": "exit", "peers": peers}, exposition)
    one, two = r'lap"\n\x1btop (aaaaaaaa...)', "b" * 52
    assert values(found["cryprq_peer_connected"]) == {(one,): 1, (two,): 0}
    assert values(found["cryprq_peer_connected_since_timestamp_seconds"]) == {(one,): 5}
    assert values(found["cryprq_peer_last_seen_timestamp_seconds"]) == {(one,): 7, (two,): 6}
    assert values(found["cryprq_peer_bytes"]) == {
        ("sent", one): 3, ("received", one): 0, ("sent", two): 0, ("received", two): 9,
    }  # fmt: skip
    # Who comes and goes on the list leaves nothing behind here.
    for number in range(50):
        peers[0]["name"] = f"name {number}"
        families({"role": "exit", "peers": peers}, exposition)
    assert len(exposition._status._steady._seen) < 20


def test_all_broken_lines_count_and_not_only_those_that_are_told() -> None:
    rules = {"rules": 1, "broken": 4000, "problems": ["ads.txt, line 1: no name"]}
    assert values(families(client(rules=rules))["cryprq_rule_problems"]) == {(): 4000}


def test_paths_of_each_exit() -> None:
    exits = [{"name": name, "session": {"paths": PATHS[:count]}} for name, count in (("home", 2), ("far", 1))]
    assert values(families(client(exits=exits))["cryprq_exit_paths"]) == {
        ("home", "tcp", "in use"): 1,
        ("home", "ws", "standby"): 1,
        ("far", "tcp", "in use"): 1,
    }


def test_figures_of_the_path_in_use() -> None:
    lane = {"kind": "lane", "use": "in use", "loss": 0.01, "rate": 2.5e6, "in_flight": 9, "bytes_sent": 7}
    standby = {"number": 0, "kind": "tcp", "use": "standby", "rate": 1.0, "bytes_sent": 99}
    tcp = {"number": 8, "kind": "tcp", "use": "in use", "round_trip": 0.02, "bytes_received": 5}
    exits = [
        {"name": "home", "session": {"paths": [standby, lane]}},
        {"name": "far", "session": {"paths": [tcp]}},
    ]
    found = families(client(exits=exits))
    home, far = ("home", "lane"), ("far", "tcp")
    assert values(found["cryprq_path_loss_ratio"]) == {home: 0.01}
    assert values(found["cryprq_path_rate_bytes_per_second"]) == {home: 2.5e6}
    assert values(found["cryprq_path_round_trip_seconds"]) == {far: 0.02}, "0 is not measured"
    assert values(found["cryprq_path_in_flight_bytes"]) == {home: 9, far: 0}
    assert values(found["cryprq_path_sent_bytes"]) == {home: 7, far: 0}
    assert values(found["cryprq_path_received_bytes"]) == {home: 0, far: 5}


def test_exit() -> None:
    found = families(EXIT)
    assert values(found["cryprq_sessions"]) == {("up",): 1, ("down",): 1}
    assert values(found["cryprq_streams"]) == {(): 5}
    assert values(found["cryprq_streams_opened"]) == {(): 90}
    assert values(found["cryprq_connections_refused"]) == {("not_authorized",): 4, ("no_handshake",): 11}
    assert values(found["cryprq_tunnel_drops"]) == {("no_link", "device"): 1, ("no_client", "network"): 2}
    assert values(found["cryprq_retained_bytes"]) == {(): 30}
    assert values(found["cryprq_session_paths"]) == {("tcp", "in use"): 1, ("ws", "standby"): 1}
    assert values(found["cryprq_names"]) == {("looked_up",): 3, ("waiting",): 1, ("remembered",): 40}
    assert "cryprq_link_up" not in found


@pytest.mark.parametrize("make", [client, lambda: EXIT], ids=["client", "exit"])
def test_names_types_and_help(make: Callable[[], dict[str, Any]]) -> None:
    text = Exposition().write(read(make()), "")[0].decode()
    found = list(parse_text(text))
    assert any(family.name.startswith("process_cpu") for family in found)
    names = set()
    for family in found:
        assert family.documentation, family.name
        assert re.fullmatch("(cryprq|process)_[a-z][a-z0-9_]*", family.name)
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert all(re.fullmatch("[a-z_]+", label) for label in sample.labels)
            key = sample.name, *sorted(sample.labels.items())
            assert key not in names, f"{key} stands there twice"
            names.add(key)
    assert "_ms" not in text and "_kib" not in text.lower(), "base units only"


def test_openmetrics_is_well_formed() -> None:
    """Its parser refuses what the conventions forbid: a counter without _total, an unknown suffix, a missing end."""
    for status in (client(), EXIT):
        body, kind = Exposition().write(read(status), OPEN)
        assert kind.startswith("application/openmetrics-text")
        parsed = {family.name: family for family in parse_open(body.decode())}
        assert parsed["cryprq_build"].type == "info"
        assert parsed["cryprq_link_bytes"].type == "counter"


def test_a_counter_never_falls() -> None:
    """Not when a link gets a new session, and not when another exit is in use: its lane has counters of its own."""
    exposition = Exposition()
    steps = []
    for sent in (10, 25, 3, 7, 0, 4):
        lane = {"up": True, "sent": sent, "received": 0, "drops": {"replay": sent}}
        found = families(client(packets={"lane": lane}), exposition)
        steps.append(values(found["cryprq_lane_datagrams"])[("sent", "home")])
    assert steps == [10, 25, 28, 32, 32, 36]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.just("client"),
                "bytes": st.fixed_dictionaries(
                    {"sent": st.integers(0, 100), "received": st.integers(0, 100)}
                ),
                "rotations": st.integers(0, 5),
                "connections": st.fixed_dictionaries(
                    {"by": st.dictionaries(st.sampled_from(["tunnel", "direct"]), st.integers(0, 9))}
                ),
            }
        ),
        max_size=6,
    )
)
def test_whatever_the_status_says_counters_are_monotonic(statuses: list[dict[str, Any]]) -> None:
    exposition = Exposition()
    last: dict[tuple[str, ...], float] = {}
    for status in statuses:
        for family in families(status, exposition).values():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    key = (sample.name, *sample.labels.values())
                    assert sample.value >= last.get(key, 0)
                    last[key] = sample.value


def test_labels_are_bounded_and_quoted() -> None:
    refused = {f"reason {number}": 1 for number in range(2 * MAX_SERIES)}
    hostile = 'x"} 1\ncryprq_link_up 0\n\\' + "y" * 2 * MAX_LABEL
    row = {"name": hostile, "active": True, "healthy": True, "link": "up"}
    found = families(client(connections={"refused": refused}, exits=[row]))
    assert len(found["cryprq_streams_refused"].samples) == MAX_SERIES
    assert values(found["cryprq_link_up"]) == {(): 1}
    (label,) = (sample.labels["exit"] for sample in found["cryprq_exit_healthy"].samples)
    assert label == hostile[:MAX_LABEL]


def test_there_is_no_global_state() -> None:
    before = list(REGISTRY._collector_to_names)
    one, two = Exposition(), Exposition()
    families(client(), one)
    assert list(REGISTRY._collector_to_names) == before
    assert values(families(EXIT, two)["cryprq_link_bytes"])[("sent",)] == 1000


# --- the samples for Grafana and Prometheus ---

CONFIGS = Path(__file__).parents[2] / "configs"
GRAFANA, ALERTS = CONFIGS / "grafana.json", CONFIGS / "prometheus-alerts.yml"
OF_PROMETHEUS = {"instance"}
"""Labels that Prometheus adds itself."""


LANE = {"kind": "lane", "use": "in use", "round_trip": 0.02, "loss": 0.01, "rate": 2.5e6}


def written() -> dict[str, set[str]]:
    """The labels of every sample that a client or an exit writes, by its name."""
    found: dict[str, set[str]] = {}
    with_lane = client(exits=[{"name": "home", "session": {"paths": [LANE]}}])
    for told in (client(), with_lane, EXIT):
        for family in families(told).values():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GRAFANA.read_text())["panels"]
    return found


def asked() -> Iterator[tuple[str, str]]:
    """Each expression, with the text that shows its labels."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for rule in ALERTS.read_text().split("- alert: ")[1:]:
        expression = re.search("expr: (.+)", rule)
        assert expression is not None, rule
        yield expression[1], rule.replace("$labels.", "")


@pytest.mark.parametrize(("expression", "shown"), list(asked()))
def test_metrics_and_labels_exist(expression: str, shown: str) -> None:
    metrics, samples = re.findall(r"cryprq_\w+", expression), written()
    assert metrics
    assert set(metrics) <= samples.keys()
    labels = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", shown)) | set(re.findall(r"[{,](\w+)=", expression))
    assert labels <= OF_PROMETHEUS.union(*(samples[metric] for metric in metrics))


def test_the_dashboard_knows_its_instances_by_a_metric_of_both_roles() -> None:
    assert "label_values(cryprq_build_info, instance)" in GRAFANA.read_text()
    assert "cryprq_build_info" in written()
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_alert_has_a_severity_and_a_sentence() -> None:
    text = ALERTS.read_text()
    assert text.count("- alert: ") == text.count("severity: ") == text.count("summary: ") > 0
