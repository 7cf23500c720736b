"""The table of `cryprq-proxy status`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cryprq_proxy.base.text import duration, size
from cryprq_proxy.commands.status.live import Rates, repeat, watch
from cryprq_proxy.commands.status.view import render as render_status
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.status import ClientStatus, Status, Traffic, read
from tests.support.background import PATIENCE
from tests.support.pairs import Setup
from tests.support.processes import call, command, environment


def render(told: dict[str, Any], width: int = 200) -> str:
    return render_status(read({"role": "client"} | told), width)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (None, "-")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"role": "exit"},
        {"role": "client", "session": None},
        {"role": "exit", "sessions": [{}, {"link": "down"}]},
        {"role": "client", "session": {"epoch": 3}, "of the future": [1]},
        {"packets": {"lane": {"x": 1}, "on_carrier": {"sent": 1}}},
        {"tun": {"device": {"x": 1}, "dns": {"upstreams": [{}], "drops": {"a": "b"}}}},
        {"role": "exit", "network": {"device": {}}, "lanes": {"sockets": [{}]}},
        {"exits": [{}, {}], "rules": {}, "connections": {}, "errors": [{}], "carrier": {}},
        {"role": "exit", "peers": [{}], "refused": {}},
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
TUN: dict[str, Any] = {
    "device": DEVICE,
    "addresses": ["198.18.0.7", "fd63:7279:7071::7"],
    "ipv6": True,
    "kill_switch": {"on": True, "standing": True, "paused": 0, "kept_in": {"dns": 0, "blocked": 16}},
    "dns": {
        "resolver": "resolv.conf",
        "in_use": "exit",
        "counters": {"questions": 9, "cache_hits": 4, "blocked": 1, "stale": 0, "failures": 2},
        "upstreams": [{"name": "tls://x", "healthy": False, "last_error": "refused"}, {"name": "exit"}],
    },
    "repairs": [
        {"name": "kill switch", "repairs": 2},
        {"name": "device MTU"},
        {"name": "rules of others", "found": "rule 5210", "trouble": "rule 5210 stands before ours"},
    ],
}
WIDE: dict[str, Any] = {
    "role": "client",
    "packets": {
        "lane": LANE,
        "on_carrier": {"sent": 6, "received": 0},
        "dropped": {"packets": 1, "malformed": 1},
    },
    "tun": TUN,
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
    early = {**WIDE, "packets": {"lane": {**LANE, "size": 1200, "searching": True}}}
    assert "1200-byte datagrams so far, round trip" in rows(early)["lane"]
    assert shown["system-wide"] == "198.18.0.7, fd63:7279:7071::7 on cryprq0, MTU 1412"
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
    assert shown["put back"] == "2 kill switch"
    assert shown["trouble"] == "rules of others: rule 5210 stands before ours"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"on": False}, "off"),
        ({"on": True, "standing": True, "lockdown": True}, "on, with lockdown"),
        ({"on": True, "standing": False}, "on, but another program has removed it: it is being put back"),
        ({"on": True, "standing": True, "paused": 61}, "on, PAUSED for 1 min 1 s more"),
    ],
)
def test_kill_switch(state: dict[str, Any], text: str) -> None:
    assert rows({**WIDE, "tun": {**TUN, "kill_switch": state}})["kill switch"] == text


LANE_PATH = {
    "kind": "lane", "use": "in use", "why": "UDP passes", "round_trip": 0.05, "rate": 23_000_000, "loss": 0.0123,
    "in_flight": 300_000, "bytes_sent": 5 << 20, "bytes_received": 7 << 30, "cipher": "AES_256_GCM",
}  # fmt: skip
TCP_PATH = {"number": 4, "kind": "tcp", "address": "exit.example:1", "use": "standby", "round_trip": 0.051}


def test_which_path_carries_what_and_why() -> None:
    shown = rows({"session": {"streams": 12, "paths": [TCP_PATH, LANE_PATH]}})
    assert shown["streams"] == "12, by the lane: UDP passes"
    assert " ".join(shown["4"].split()) == "standby tcp to exit.example:1 51.0 ms - - 0 B 0 B 0 B ?"
    assert " ".join(shown["-"].split()) == (
        "in use lane (UDP passes) 50.0 ms 21.9 MiB/s 1.2% 293.0 KiB 5.0 MiB 7.0 GiB AES_256_GCM"
    )


def test_which_path_carries_a_client_of_an_exit() -> None:
    """What an exit sends is the client's download. The lane has no number, and was called None."""
    session = {"peer_id": "c" * 52, "paths": [TCP_PATH, LANE_PATH]}
    told = "4 tcp standby, lane in use (at most 21.9 MiB/s, 1.2% lost)"
    assert told in render({"role": "exit", "sessions": [session]})
    session["paths"] = [{**TCP_PATH, "use": "in use"}, {**LANE_PATH, "use": "standby"}]
    assert "4 tcp in use, lane standby" in render({"role": "exit", "sessions": [session]})


def test_streams_on_a_record_path_say_why_it_is_not_the_lane() -> None:
    lane = {**LANE_PATH, "use": "standby", "why": "the round trip of 0.3 ms is so short that TCP costs less"}
    shown = rows({"session": {"streams": 3, "paths": [{**TCP_PATH, "use": "in use"}, lane]}})
    assert shown["streams"] == "3, by tcp: the round trip of 0.3 ms is so short that TCP costs less"
    assert rows({"session": {"streams": 3, "paths": [{**TCP_PATH, "use": "in use"}]}})["streams"] == "3"


def test_a_lane_that_is_down_says_why_and_nothing_measured() -> None:
    lane = {**LANE, "up": False, "why": "UDP is blocked", "path": {}, "offload": {"reason": "switched off"}}
    shown = rows({"role": "client", "packets": {"lane": lane}})
    assert shown["lane"] == "down (UDP is blocked), no UDP offload: switched off"
    assert "kill switch" not in shown


def test_nothing_is_said_of_what_is_not_there() -> None:
    shown = rows({**WIDE, "packets": {"lane": None, "dropped": {"packets": 0}}, "tun": {**TUN, "dns": None}})
    assert not {"lane", "datagrams", "without lane", "DNS"} & shown.keys()
    quiet = {**TUN, "device": {**DEVICE, "drops": {}}, "repairs": []}
    assert not {"dropped", "put back", "trouble"} & rows({**WIDE, "packets": None, "tun": quiet}).keys()
    assert rows({**WIDE, "tun": {**TUN, "device": None}})["system-wide"] == "is being set up"
    assert "system-wide" not in rows({**WIDE, "tun": None})


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
    assert shown["dropped"] == "6 device queue full, 7 spoofed, 9 datagrams of no known lane"
    assert shown["a" * 8 + "..."].split()[:2] == ["?", "up"]
    assert shown["b" * 8 + "..."].split()[:2] == ["?", "-"]


def test_nothing_of_the_lane_or_the_resolver_reaches_the_terminal_raw() -> None:
    dns = {
        "resolver": "\x1b[2J",
        "in_use": "\x07",
        "upstreams": [{"healthy": False, "last_error": "\x9b31m"}],
    }
    out = render({"packets": {"lane": {**LANE, "why": "\x1b]0;t\x07"}}, "tun": {**TUN, "dns": dns}})
    assert not {"\x1b", "\x07", "\x9b"} & set(out)


# --- exits, rules, connections, epochs, errors ---

EPOCHS = [
    {
        "number": 9 - place,
        "since": 10.0 + 300 * place,
        "bytes_sent": 2048,
        "bytes_received": 1 << 20,
        "exchange": "X25519 + ML-KEM-768",
        "cipher": "CHACHA20_POLY1305",
    }
    for place in range(8)
]
EXITS = [
    {
        "name": "home",
        "priority": 1,
        "active": False,
        "pinned": False,
        "healthy": False,
        "link": "down",
        "carrier": None,
        "round_trip": None,
        "last_error": "the exit at home.example:4433 cannot be reached: connection refused",
    },
    {
        "name": "work",
        "priority": 2,
        "active": True,
        "pinned": True,
        "healthy": True,
        "link": "up",
        "carrier": {
            "kind": "wss",
            "address": "wss://work.example/x",
            "why": "it answered first",
            "congestion": "bbr",
            "connection_round_trip": 0.0119,
        },
        "round_trip": 0.0123,
        "last_error": "of yesterday",
    },
]
DAILY: dict[str, Any] = {
    "role": "client",
    "pid": 7,
    "peer_id": "a" * 52,
    "link": "up",
    "exit": {"peer_id": "b" * 52, "address": "wss://work.example/x"},
    "carrier": EXITS[1]["carrier"],
    "session": {"epoch": 9, "epoch_age": 10, "cipher": "x", "round_trip": 0.0123, "epochs": EPOCHS},
    "exits": EXITS,
    "rules": {
        "rules": 12,
        "names": 500_000,
        "default": "tunnel",
        "broken": 3000,
        "problems": [f"ads.txt, line {line}: no name" for line in range(1, 21)],
        "loaded_at": 1,
        "error": "everything stays as it was: client.toml: rule 3: no such exit",
    },
    "connections": {
        "open": 3,
        "total": 40,
        "by": {"tunnel": 30, "direct": 8, "block": 2, "exit": 0},
        "refused": {"not_allowed": 2},
    },
    "bytes": {"sent": 1000, "received": 5 << 20},
    "errors": [{"at": 0, "level": "warning", "text": f"number {each}"} for each in range(9)],
    "admin": "http://127.0.0.1:1081/",
}


def test_what_daily_use_shows() -> None:
    shown = rows(DAILY)
    assert shown["carrier"] == "wss to wss://work.example/x: it answered first"
    assert shown["congestion"] == "bbr for what it sends, on a connection of 11.9 ms"
    assert shown["traffic"] == "1000 B sent, 5.0 MiB received since the start"
    assert shown["connections"] == "3 open, 40 so far: 30 tunnel, 8 direct, 2 block"
    assert shown["refused"] == "2 not allowed"
    assert shown["rules"].startswith("12 and 500000 names of lists, all else tunnel, read ")
    assert shown["rules failed"].endswith("rule 3: no such exit")
    assert shown["broken lines"] == (
        "ads.txt, line 1: no name; ads.txt, line 2: no name; ads.txt, line 3: no name; and 2997 more"
    )
    assert shown["dashboard"].startswith("http://127.0.0.1:1081/")
    assert " ".join(shown["home"].split()) == (
        "1 - ill down - - - the exit at home.example:4433 cannot be reached: connection refused"
    )
    assert " ".join(shown["work"].split()) == "2 pinned healthy up wss bbr 12.3 ms"
    assert [shown[str(number)].split()[-1] for number in (9, 5)] == ["CHACHA20_POLY1305"] * 2
    assert "X25519 + ML-KEM-768" in shown["9"]
    assert "4" not in shown  # only the newest ones
    text = render(DAILY)
    assert "number 0" in text and "number 4" in text and "number 5" not in text, "the newest ones"


def test_what_came_again_and_again_is_one_line() -> None:
    errors = [{"at": 0, "text": "once", "count": 1}, {"at": 0, "text": "often", "count": 7}]
    text = render({"errors": errors})
    assert "often (7 times)" in text
    assert "once (" not in text


def test_who_was_answered_early_and_reset_then() -> None:
    assert "answered early" not in rows(DAILY)
    connections = {"early": 812, "early_refused": {"timed_out": 3, "connection_refused": 1}}
    shown = rows({**DAILY, "connections": connections})
    assert shown["answered early"] == "812; reset then: 3 timed out, 1 connection refused"
    assert rows({**DAILY, "connections": {"early": 1}})["answered early"] == "1"


def test_one_exit_is_no_table() -> None:
    assert "last error" not in render({**DAILY, "exits": EXITS[1:]})


def test_an_exit_and_who_is_allowed() -> None:
    peers = [{"peer_id": f"{n:052}", "name": f"guest {n}", "sessions": int(n == 70)} for n in range(80)]
    status = {
        "role": "exit",
        "peers": peers,
        "streams_total": 12,
        "refused": {"NAME_NOT_FOUND": 3},
        "names": {"by": "DNS, from 192.0.2.1", "running": 2, "waiting": 1},
        "bytes": {"sent": 1, "received": 2},
    }
    text, shown = render(status), rows(status)
    assert shown["streams"] == "12 so far"
    assert "knocking" not in shown
    assert rows({**status, "strangers": 1200, "handshakes": 1})["knocking"] == "1200 strangers, 1 handshake"
    assert shown["refused"] == "3 NAME NOT FOUND"
    assert shown["names"] == "by DNS, from 192.0.2.1; 2 being looked up, 1 waiting"
    assert text.index("guest 70 (00000000...)") < text.index("guest 0 (00000000...)")
    assert "... and 30 more" in text


def test_who_is_connected_since_when_and_from_where() -> None:
    now = time.time()
    peers = [
        {"peer_id": "a" * 52, "name": "laptop", "sessions": 1, "since": now - 7290, "address": "192.0.2.1",
         "last_seen": now - 3.5, "bytes": {"sent": 2048, "received": 10}},
        {"peer_id": "b" * 52, "name": "phone", "address": "192.0.2.2", "last_seen": now - 3630},
        {"peer_id": "c" * 52},
    ]  # fmt: skip
    sessions = [{"peer_id": "a" * 52, "link": "up"}, {"peer_id": "d" * 52, "link": "up"}]
    lines = render({"role": "exit", "peers": peers, "sessions": sessions}).splitlines()
    told = {line.split("  ")[0]: " ".join(line.split()) for line in lines}
    assert told["laptop (aaaaaaaa...)"] == (
        "laptop (aaaaaaaa...) 1 for 2 h 1 min 192.0.2.1 3 s ago 2.0 KiB 10 B"
    )
    assert told["phone (bbbbbbbb...)"] == "phone (bbbbbbbb...) 0 - 192.0.2.2 1 h 0 min ago 0 B 0 B"
    assert told["cccccccc..."] == "cccccccc... 0 - - not since the start 0 B 0 B"
    # Who is on no list any more has no name.
    assert told["dddddddd..."].startswith("dddddddd... up")


def test_the_exit_in_use_is_named() -> None:
    status = {"exit": {"peer_id": "b" * 52, "address": "192.0.2.7:4433"}}
    assert rows(status)["exit"] == "bbbbbbbb... (192.0.2.7:4433)"
    exits = [{"name": "home", "active": True}]
    assert rows({**status, "exits": exits})["exit"] == "home (192.0.2.7:4433)"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(
    "status",
    [
        DAILY,
        WIDE,
        {
            "role": "exit",
            "sessions": [
                {
                    "peer_id": "a" * 52,
                    "link": "up",
                    "packets": {"lane": LANE},
                    "epoch": 12345,
                    "epoch_age": 299,
                    "cipher": "CHACHA20_POLY1305",
                    "round_trip": 0.2345,
                    "streams": 16384,
                    "bytes_sent": 1 << 40,
                    "bytes_received": 1 << 40,
                }
            ],
        },
    ],
    ids=["daily", "wide", "exit"],
)
def test_every_line_fits_the_terminal(status: dict[str, Any], width: int) -> None:
    text = render(status, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        assert "\u2026" not in text  # nothing is cut off


def test_times_that_no_clock_has_are_no_error() -> None:
    render({"errors": [{"at": at} for at in (1e300, -1e300, float("nan"), float("inf"))]})
    render({"session": {"epochs": [{"since": float("nan")}, {"since": float("inf")}]}})


def test_no_name_of_a_peer_or_rule_reaches_the_terminal_raw() -> None:
    evil = "\x1b]0;t\x07\x9b2J\u202e"
    out = render(
        {
            "exits": [{"name": evil, "link": evil, "last_error": evil, "carrier": {"kind": evil}}] * 2,
            "rules": {"rules": 1, "error": evil, "problems": [evil], "default": evil},
            "errors": [{"at": 0, "level": evil, "text": evil}],
            "connections": {"by": {evil: 1}, "refused": {evil: 1}},
            "session": {"epochs": [{"exchange": evil, "cipher": evil}]},
            "carrier": {"kind": evil, "address": evil, "why": evil},
            "admin": evil,
        }
    ) + render(
        {
            "role": "exit",
            "peers": [{"peer_id": evil, "name": evil, "address": evil}, {"peer_id": evil}],
            "sessions": [{"peer_id": evil}],
            "refused": {evil: 1},
        }
    )
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)


# --- status --watch ---


def test_rates_are_between_two_answers_of_one_process() -> None:
    rates = Rates()

    def row(pid: int, sent: int, now: float) -> str:
        return rates.row(ClientStatus(pid=pid, bytes=Traffic(sent=sent)), now).get("now", "")

    assert row(1, 0, 0) == ""
    assert row(1, 4096, 2) == "2.0 KiB/s sent, 0 B/s received"
    assert row(2, 0, 3) == ""
    assert row(1, 4096, 2) == ""  # no time has passed
    assert row(1, 0, 4) == "0 B/s sent, 0 B/s received"


def test_watching_shows_what_comes_and_goes_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich shows nothing live on a dumb one
    screen, slept = io.StringIO(), []
    answers = iter(
        [
            [read({**DAILY, "bytes": {"sent": 0, "received": 0}})],
            [read({**DAILY, "bytes": {"sent": 3 << 20, "received": 0}})],
            CryprqError("no cryprq-proxy is running \x1b[31m"),
        ]
    )

    def ask() -> list[Status]:
        answer = next(answers)
        if isinstance(answer, CryprqError):
            raise answer
        return answer  # type: ignore[return-value]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    console = Console(file=screen, force_terminal=True, width=80, height=60, color_system=None)
    watch(ask, 2.5, console, sleep, iter([10.0, 11.0]).__next__)
    out = screen.getvalue()
    assert slept == [2.5] * 3
    assert "3.0 MiB/s sent, 0 B/s received" in out
    assert r"no cryprq-proxy is running \x1b[31m" in out


class _Swallows:
    """What Python does with an exception here: it prints it and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("swallowed", [False, True], ids=["heard", "swallowed by a finalizer"])
def test_watching_ends_though_the_parent_ignored_the_signal(
    signal_number: signal.Signals, swallowed: bool
) -> None:
    """A shell without job control starts background jobs with SIGINT ignored."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 3, "nobody heard the signal"
        if swallowed:
            _Swallows()
        else:
            signal.raise_signal(signal_number)

    before = signal.signal(signal_number, signal.SIG_IGN)
    try:
        watch(list, 1.0, Console(file=io.StringIO(), width=80), sleep, lambda: 0.0)
        assert signal.getsignal(signal_number) is signal.SIG_IGN, "put back"
    finally:
        signal.signal(signal_number, before)
    assert slept == [1.0]


def test_watching_as_json_is_a_line_for_each_answer_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def sleep(seconds: float) -> None:
        assert seconds == 2.5
        signal.raise_signal(signal.SIGTERM)

    repeat(lambda: [{"role": "client"}, {"role": "exit"}], 2.5, sleep)
    assert capsys.readouterr().out == '{"role": "client"}\n{"role": "exit"}\n'


@pytest.mark.process
def test_the_command_on_a_terminal_and_in_a_pipe(tmp_path: Path) -> None:
    """Real processes: an exit, and `status --watch` on a terminal of 80 columns until Ctrl-C."""
    pair = Setup(tmp_path)
    with pair.exit():
        config = str(tmp_path / "exit.toml")
        refused = call("status", "--watch", "--config", config)
        assert (refused.returncode, "needs a terminal" in refused.stderr) == (2, True)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        watching = subprocess.Popen(
            command("status", "--watch", "0.2", "--config", config),
            env={**environment(), "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        try:
            os.close(slave)
            shown = b""
            while shown.count(b"allowed peers") < 2:  # drawn, and drawn again
                shown += os.read(master, 65536)
            assert pair.exit_id.encode() in shown
            watching.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # EIO is the end of a terminal
                while os.read(master, 65536):
                    pass
            assert watching.wait(PATIENCE) == 0
        finally:
            watching.kill()
            watching.wait()
            os.close(master)
