"""A client and an exit that do not exist, for the pages that show them: plausible figures that move with a clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.actions import Actions
from cryprq_proxy.status import Status, Traffic, read

EXCHANGE = "X25519 + ML-KEM-768"
KEYS = {"cipher": "AES-256-GCM", "epoch": 13, "epoch_age": 61.0}
START = 1_700_000_000.0
TARGETS = (
    ("docs.example.org:443", "everything else"), ("mail.example.com:993", "everything else"),
    ("cdn.example.net:443", "everything else"), ("git.corp.example:22", "the office"),
    ("intranet.corp.example:443", "the office"), ("203.0.113.24:443", "everything else"),
    ("[2001:db8:7::42]:443", "everything else"), ("video.example.net:443", "films"),
    ("music.example.com:443", "films"), ("printer.home.example:631", "rule 2"),
    ("chat.example.org:443", "everything else"), ("packages.example.net:443", "everything else"),
)  # fmt: skip


class World(Actions):
    """`now` is the time; `advance` lets data flow. What was asked for stands in `closed`, `chosen` and `reloads`."""

    def __init__(self, streams: int = 12) -> None:
        self.now = START
        self.up = True
        self.sent, self.received = 48_300_000.0, 1_260_000_000.0
        self.pinned: str | None = None
        self.tun: Mapping[str, Any] | None = None
        self.problems: list[str] = []
        self.broken = 0
        self.extra: dict[str, Any] = {}
        self.elsewhere: list[dict[str, Any]] = []
        """The epochs of an exit that is not in use."""
        self.asked = 0
        self.closed: list[str] = []
        self.chosen: list[str] = []
        self.reloads = 0
        self.open = [stream(number) for number in range(streams)]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        at = self.now - START
        down = max(
            0.0, 3.1e6 + 2.2e6 * math.sin(at / 13) + 1.1e6 * math.sin(at / 3.1) + 4e5 * math.sin(at * 2.3)
        )
        up = max(0.0, 4.2e5 + 3.2e5 * math.sin(at / 9 + 1) + 9e4 * math.sin(at * 1.7))
        if not self.up:
            return
        self.received += down * seconds
        self.sent += up * seconds
        for index, each in enumerate(self.open):
            each["age"] += seconds
            each["received"] += int(down * seconds / (index + 2))
            each["sent"] += int(up * seconds / (index + 2))

    async def status(self) -> Status:
        self.asked += 1
        return read(client_status(self) | self.extra)

    def traffic(self) -> Traffic:
        device = (self.tun or {}).get("device", {})
        return Traffic(
            sent=int(self.sent) + device.get("read_bytes", 0),
            received=int(self.received) + device.get("written_bytes", 0),
        )

    def streams(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        return self.open

    def pac(self) -> str:
        return (
            'function FindProxyForURL(url, host) { return "SOCKS5 127.0.0.1:1080; PROXY 127.0.0.1:1080"; }\n'
        )

    def close(self, id: str) -> bool:
        self.closed.append(id)
        before = len(self.open)
        self.open = [each for each in self.open if each["id"] != id]
        return len(self.open) < before

    def choose_exit(self, name: str) -> None:
        if name not in ("auto", "home", "office", "far"):
            raise CryprqError("there is no exit of that name")
        self.chosen.append(name)
        self.pinned = None if name == "auto" else name

    async def reload(self) -> str:
        self.reloads += 1
        return "4 rules"


def stream(number: int) -> dict[str, Any]:
    target, rule = TARGETS[number % len(TARGETS)]
    to = {"the office": "exit:office", "rule 2": "direct"}.get(rule, "tunnel")
    exit = {"the office": "office", "rule 2": ""}.get(rule, "home")
    if number >= len(TARGETS):
        target = f"host{number}.example.net:443"
    return {
        "id": f"{exit or 'direct'}/{number + 17}",
        "target": target,
        "protocol": "udp" if number % len(TARGETS) == 7 else "tcp",
        "to": to,
        "rule": rule,
        "exit": exit,
        "age": 3.0 + 7.3 * number * (1 + number % 5),
        "sent": 2_400 + 9_700 * (number % 7),
        "received": 18_000 + 410_000 * ((number * 7) % 11),
    }


def epochs(now: float) -> list[dict[str, Any]]:
    age = 61 + (now - START) % 239
    moved = [
        (9_120_000, 241_000_000),
        (12_400_000, 502_000_000),
        (3_050_000, 88_400_000),
        (8_800_000, 190_000_000),
    ]
    return [
        {
            "number": 13 - index,
            "current": index == 0,
            "since": age + 300 * index,
            "lasted": age if index == 0 else 300.0,
            "bytes_sent": sent,
            "bytes_received": received,
            "exchange": EXCHANGE,
            "cipher": "AES-256-GCM",
        }
        for index, (sent, received) in enumerate(moved)
    ]


def paths(world: World, address: str) -> list[dict[str, Any]]:
    carried = {"cipher": "AES-256-GCM", "bytes_sent": 40_000_000, "bytes_received": 900_000_000}
    return [
        {"number": 3, "kind": "tcp", "address": address, "use": "standby", "round_trip": 0.0183, **carried},
        {
            "kind": "lane", "use": "in use", "why": "UDP passes", "round_trip": 0.0179, "rate": 22_500_000.0,
            "loss": 0.0124, "in_flight": 310_000, **carried,
        },
    ]  # fmt: skip


def exit_row(
    world: World, name: str, address: str, priority: int, round_trip: float | None
) -> dict[str, Any]:
    active = name == (world.pinned or "home")
    return {
        "name": name, "priority": priority, "active": active, "pinned": name == world.pinned,
        "healthy": world.up and round_trip is not None, "link": "up" if world.up and round_trip else "down",
        "peer_id": "b" * 52, "address": address,
        "carrier": {"kind": "wss" if name == "far" else "tcp", "address": address},
        "round_trip": round_trip if world.up else None,
        "last_error": None if round_trip else f"{address} did not answer in time", "carriers": 2,
        "session": {
            "epoch": 2, "epoch_age": 61.0, "rotations": 2, "epochs": world.elsewhere if name == "office" else [],
        },
    }  # fmt: skip


def client_status(world: World) -> dict[str, Any]:
    address = "203.0.113.7:4433"
    wobble = 0.0004 * math.sin(world.now)
    return {
        "role": "client", "version": "0.1.0", "pid": 4242, "uptime": 8130 + world.now - START,
        "listen": ["127.0.0.1:1080"],
        "peer_id": "a" * 52, "link": "up" if world.up else "down", "provider": "OpenSSL 3.5",
        "exit": {"peer_id": "b" * 52, "address": address},
        "carrier": {
            "kind": "tcp", "address": address, "why": "It was the first of two to answer, as the last time."
        } if world.up else None,
        "carriers": 2, "waiting": 0, "last_error": None if world.up else f"{address} did not answer in time",
        "rotations": 13,
        "bytes": {"sent": int(world.sent), "received": int(world.received)},
        "session": {
            "attached": world.up, "streams": len(world.open), "bytes_sent": int(world.sent),
            "bytes_received": int(world.received), "retained": 18_204, "rotations": 13, "epochs": epochs(world.now),
            "paths": paths(world, address) if world.up else [],
            **(KEYS | {"round_trip": 0.0183 + wobble} if world.up else {}),
        },
        "packets": {
            "lane": {
                "up": world.up, "why": "its probes are answered", "peer": address, "size": 1400,
                "round_trip": 0.0179 + wobble,
                "sent": 1200, "sent_bytes": 911_000, "received": 3400, "received_bytes": 4_100_000,
                "drops": {"replay": 1, "full": 0},
            },
            "on_carrier": {"sent": 0, "received": 0}, "dropped": {"datagrams": 2, "packets": 0, "malformed": 0},
        },
        "exits": [
            exit_row(world, "home", address, 1, 0.0183 + wobble),
            exit_row(world, "office", "198.51.100.20:4433", 2, 0.0412),
            exit_row(world, "far", "wss://exit.example.net/link", 3, None),
        ],
        "rules": {
            "rules": 4, "names": 148_212, "default": "tunnel", "broken": world.broken, "problems": world.problems,
            "loaded_at": START - 5000, "error": None,
        },
        "connections": {
            "open": len(world.open), "total": 5812, "by": {"tunnel": 4101, "direct": 312, "block": 1187, "exit": 212},
            "refused": {"name_not_found": 12, "timed_out": 3},
        },
        "tun": world.tun,
        "errors": [
            {"at": START - 340, "level": "warning", "text": "link down: nothing was heard for 20 s", "count": 1},
            {"at": START - 4_990, "level": "warning", "text": "ads.txt, line 3120: this is no domain", "count": 3},
        ],
        "logged": {"warning": 4, "error": 0}, "admin": "http://127.0.0.1:1081/", "log_level": "info",
    }  # fmt: skip


TUN = {
    "device": {
        "name": "cryprq0", "mtu": 1380, "read_packets": 10, "read_bytes": 10_000, "written_packets": 20,
        "written_bytes": 20_000, "drops": {"no_link": 3},
    },
    "addresses": ["10.44.0.2", "fd44::2"],
    "kill_switch": {
        "on": True,
        "standing": True,
        "lockdown": True,
        "paused": 0,
        "kept_in": {"dns": 12, "other": 4},
    },
    "dns": {
        "resolver": "systemd-resolved", "in_use": "the exit's resolver", "cache_entries": 212,
        "counters": {"questions": 4120, "cache_hits": 2870, "blocked": 611, "stale": 4, "failures": 2},
        "upstreams": [{"name": "the exit's resolver", "healthy": True}],
    },
    "repairs": [
        {"name": "kill switch", "repairs": 2},
        {"name": "rules of others", "trouble": "IPv4 rule 25399 stands before ours"},
    ],
}  # fmt: skip
"""`status["tun"]` in system-wide mode."""
