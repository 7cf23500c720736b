"""The table of `cryprq-proxy status`."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.status_view import duration, render, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072.0 TiB"),
        (None, "-"),
    ],
)
def test_size(count: object, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), ("x", "-")],
)
def test_duration(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"role": "exit"},
        {"role": "client", "session": None, "exit": None},
        {"role": "exit", "sessions": [{}, None, {"link": "down"}]},
        {"role": "client", "session": {"epoch": 3}, "listen": None},
    ],
)
def test_missing_fields_are_no_error(status: dict[str, Any]) -> None:
    assert "?" in render(status)


def test_nothing_reaches_the_terminal_raw() -> None:
    out = render({"role": "client", "link": "down", "last_error": "bad \x1b[31m [red]news\n", "waiting": 2})
    assert "\x1b" not in out
    assert r"down (bad \x1b[31m [red]news\n)" in out
    assert "2 requests" in out


# --- system-wide mode ---

LANE = {
    "up": True,
    "why": "probes are answered",
    "size": 1472,
    "round_trip": 0.0009,
    "offload": {"gso": True, "gro": False, "reason": ""},
    "sent": 12,
    "sent_bytes": 5300,
    "received": 11,
    "received_bytes": 100,
    "drops": {"replay": 2, "tag": 0, "malformed": 1},
    "path": {"falls": 3},
}
DEVICE = {
    "name": "cryprq0",
    "mtu": 1412,
    "reads": ["csum", "tso4"],
    "writes": [],
    "read_packets": 3,
    "read_bytes": 292,
    "written_packets": 4,
    "written_bytes": 2048,
    "drops": {"device queue full": 5},
}
SYSTEM: dict[str, Any] = {
    "device": DEVICE,
    "addresses": ["100.96.0.7", "fd63:7279:7071::7"],
    "ipv6": True,
    "kill_switch": {"on": True, "standing": True, "paused": 0, "kept_in": {"dns": 0, "blocked": 16}},
    "dns": {
        "resolver": "resolv.conf",
        "repairs": 0,
        "in_use": "exit",
        "counters": {"questions": 9, "cache_hits": 4, "blocked": 1, "stale": 0, "failures": 2},
        "upstreams": [{"name": "tls://x", "healthy": False, "last_error": "refused"}, {"name": "exit"}],
    },
    "repairs": 2,
}
WIDE: dict[str, Any] = {
    "role": "client",
    "packets": {
        "lane": LANE,
        "on_carrier": {"sent": 6, "received": 0},
        "dropped": {"packets": 1, "malformed": 1},
    },
    "system": SYSTEM,
}


def rows(status: dict[str, Any]) -> dict[str, str]:
    """The first column as keys."""
    lines = [line for line in render(status).splitlines() if "  " in line]
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines)}


def test_system_wide_mode() -> None:
    shown = rows(WIDE)
    assert shown["lane"] == (
        "up (probes are answered), 1472-byte datagrams, round trip 0.9 ms, UDP GSO, fell back 3 times so far"
    )
    assert shown["system-wide"] == "100.96.0.7, fd63:7279:7071::7 on cryprq0, MTU 1412"
    assert shown["offloads"] == "TUN reads csum tso4, TUN writes none"
    assert shown["packets"] == "3 sent (292 B), 4 received (2.0 KiB); a super-packet counts as one"
    assert shown["datagrams"] == "12 sent (5.2 KiB), 11 received (100 B)"
    assert shown["without lane"] == "6 packets sent, 0 received on the link"
    assert shown["dropped"] == (
        "2 replay, 2 malformed, 1 packets for want of room on the link, 5 device queue full"
    )
    assert shown["kill switch"] == "on; kept in: 16 blocked"
    assert shown["DNS"] == (
        "by resolv.conf, asks exit; 9 questions, 4 from the cache, 1 blocked, 0 stale, 2 failed, "
        "tls://x fails (refused)"
    )
    assert shown["put back"] == "2 routes"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"on": False}, "off"),
        ({"on": True, "standing": False}, "on, but another program has removed it: it comes back in 2 s"),
        ({"on": True, "standing": True, "paused": 61}, "on, PAUSED for 1 min 1 s more"),
    ],
)
def test_kill_switch(state: dict[str, Any], text: str) -> None:
    assert rows({**WIDE, "system": {**SYSTEM, "kill_switch": state}})["kill switch"] == text


def test_a_lane_that_is_down_says_why_and_nothing_measured() -> None:
    lane = {**LANE, "up": False, "why": "UDP is blocked", "path": {}, "offload": {"reason": "switched off"}}
    shown = rows({"role": "client", "packets": {"lane": lane}})
    assert shown["lane"] == "down (UDP is blocked), no UDP offload: switched off"
    assert "kill switch" not in shown


def test_nothing_is_said_of_what_is_not_there() -> None:
    shown = rows(
        {**WIDE, "packets": {"lane": None, "dropped": {"packets": 0}}, "system": {**SYSTEM, "dns": {}}}
    )
    assert not {"lane", "datagrams", "without lane", "DNS"} & shown.keys()
    quiet = {**SYSTEM, "device": {**DEVICE, "drops": {}}, "repairs": 0}
    assert not {"dropped", "put back"} & rows({**WIDE, "packets": None, "system": quiet}).keys()
    assert rows({**WIDE, "system": {**SYSTEM, "device": None}})["system-wide"] == "is being set up"
    assert "system-wide" not in rows({**WIDE, "system": {}})


def test_the_network_of_an_exit() -> None:
    status = {
        "role": "exit",
        "network": {
            "device": DEVICE,
            "clients": 2,
            "ipv6": False,
            "drops": {"device queue full": 1, "spoofed": 7},
        },
        "lanes": {
            "sockets": [{"address": "0.0.0.0:4433", "offload": {"gso": True, "gro": True}}],
            "strangers": 9,
        },
        "sessions": [
            {"peer_id": "a" * 52, "packets": {"lane": LANE}},
            {"peer_id": "b" * 52, "packets": None},
        ],
    }
    shown = rows(status)
    assert shown["lane sockets"] == "0.0.0.0:4433 (UDP GSO and GRO)"
    assert shown["network"] == "cryprq0, MTU 1412, 2 sessions with packets, IPv4 only"
    assert shown["packets"].startswith("3 to clients (292 B), 4 from clients (2.0 KiB)")
    assert shown["dropped"] == "6 device queue full, 7 spoofed, 9 datagrams of nobody known"
    assert shown["a" * 12].split()[:2] == ["?", "up"]
    assert shown["b" * 12].split()[:2] == ["?", "-"]


@pytest.mark.parametrize("part", ["packets", "system", "network", "lanes"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        "x",
        {"lane": {"x": 1}, "device": {"x": 1}, "sockets": [{}, None], "on_carrier": {"sent": 1}},
        {
            "lane": "x",
            "device": [],
            "kill_switch": None,
            "dns": {"upstreams": [None, {}]},
            "drops": {"a": "b"},
        },
    ],
)
@pytest.mark.parametrize("role", ["client", "exit"])
def test_parts_of_another_version_are_no_error(role: str, part: str, value: object) -> None:
    assert "?" in render({"role": role, part: value})


def test_nothing_of_the_lane_or_the_resolver_reaches_the_terminal_raw() -> None:
    dns = {
        "resolver": "\x1b[2J",
        "in_use": "\x07",
        "upstreams": [{"healthy": False, "last_error": "\x9b31m"}],
    }
    out = render({"packets": {"lane": {**LANE, "why": "\x1b]0;t\x07"}}, "system": {**SYSTEM, "dns": dns}})
    assert not {"\x1b", "\x07", "\x9b"} & set(out)
