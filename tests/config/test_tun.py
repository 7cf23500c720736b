"""The sections [lane], [tun] and [tun.dns]: values, ranges and the words of the errors, for client and exit."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.config.both_roles import LaneTable
from cryprq_proxy.config.client import ClientConfig, client_from
from cryprq_proxy.config.exit import ExitConfig, ExitLaneTable, exit_from
from cryprq_proxy.config.tun import (
    MAX_UID,
    MAX_USERS,
    STATE,
    DnsTable,
    ExitTunTable,
    TunTable,
    parse_prefix,
    parse_split,
    parse_users,
)
from cryprq_proxy.errors import ConfigError

PEER = f'peer = "cryprq://{"a" * 52}@192.0.2.1:4433"\n'
ME = pwd.getpwuid(os.getuid()).pw_name


def client(text: str = "", flags: Mapping[str, object] | None = None) -> ClientConfig:
    return client_from(PEER + text, Path("client.toml"), True, flags or {})


def exit_peer(text: str = "", flags: Mapping[str, object] | None = None) -> ExitConfig:
    return exit_from(text, Path("exit.toml"), flags or {})


def test_without_a_word_the_system_is_left_alone() -> None:
    assert (client().tun, client().lane) == (TunTable(), LaneTable())
    assert (exit_peer().tun, exit_peer().lane) == (ExitTunTable(), ExitLaneTable())
    assert not client().tun.enabled and not exit_peer().tun.enabled
    assert (client().tun.kill_switch, client().tun.state_dir) == ("on", STATE)


def test_every_key_of_a_client(tmp_path: Path) -> None:
    read = client(
        f"""
        [lane]
        offload = "off"
        [tun]
        enabled = true
        exclude = ["192.0.2.0/24", "2001:db8::1"]
        include = "198.51.100.0/24"
        exclude_uid = ["{ME}", "1000", "100000-165535"]
        lan = "block"
        kill_switch = "off"
        inbound = "keep"
        resolver = "leave"
        confirm = 60
        offload = "off"
        state_dir = "state"
        [tun.dns]
        upstreams = ["exit", "tls://1.1.1.1#cloudflare-dns.com"]
        split = ["corp.example=10.0.0.1, 10.0.0.2"]
        blocklists = ["ads.txt", "/etc/hosts.ads"]
        block = ["ads.example"]
        allow = ["good.ads.example"]
        block_answer = "zero"
        cache_entries = 5
        cache_bytes = "1 MiB"
        stale = 0
        """
    )
    assert read.lane == LaneTable(offload="off")
    assert read.tun == TunTable(
        enabled=True,
        exclude=(ip_network("192.0.2.0/24"), ip_network("2001:db8::1")),
        include=(ip_network("198.51.100.0/24"),),
        exclude_uid=((os.getuid(), os.getuid()), (1000, 1000), (100_000, 165_535)),
        lan="block",
        kill_switch="off",
        inbound="keep",
        resolver="leave",
        confirm=60.0,
        offload="off",
        state_dir=Path("state"),
        dns=DnsTable(
            upstreams=("exit", "tls://1.1.1.1#cloudflare-dns.com"),
            split=(("corp.example", ("10.0.0.1", "10.0.0.2")),),
            blocklists=(Path("ads.txt"), Path("/etc/hosts.ads")),
            block=("ads.example",),
            allow=("good.ads.example",),
            block_answer="zero",
            cache_entries=5,
            cache_bytes=1 << 20,
            stale=0.0,
        ),
    )


def test_a_blocklist_may_be_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    read = client("[tun.dns]\nblocklists = ['~/ads.txt']")
    assert read.tun.dns.blocklists == (Path("/home/alice/ads.txt"),)


def test_every_key_of_an_exit() -> None:
    read = exit_peer(
        """
        [lane]
        enabled = false
        offload = "off"
        [tun]
        enabled = true
        pool4 = "10.99.0.0/24"
        pool6 = "fd00:1::/64"
        isolate = false
        offload = "off"
        state_dir = "/run/x"
        """
    )
    assert read.lane == ExitLaneTable(enabled=False, offload="off")
    assert read.tun == ExitTunTable(
        enabled=True,
        pool4=IPv4Network("10.99.0.0/24"),
        pool6=IPv6Network("fd00:1::/64"),
        isolate=False,
        offload="off",
        state_dir=Path("/run/x"),
    )


def test_flags_win_over_the_section_and_leave_the_rest_of_it() -> None:
    text = '[tun]\nlan = "block"\nexclude = ["192.0.2.0/24"]\n[tun.dns]\nstale = 7'
    read = client(text, {"tun.enabled": True, "tun.exclude": ("10.0.0.0/8",), "tun.confirm": 30.0})
    assert (read.tun.enabled, read.tun.lan, read.tun.confirm) == (True, "block", 30.0)
    assert read.tun.exclude == (IPv4Network("10.0.0.0/8"),)
    assert read.tun.dns.stale == 7.0
    untouched = {"tun.enabled": None, "tun.exclude": (), "tun.lan": None, "tun.confirm": None}
    assert client(text, untouched) == client(text)
    assert exit_peer("[tun]\nisolate = false", {"tun.enabled": True}).tun == ExitTunTable(
        enabled=True, isolate=False
    )


PREFIX = "expected an address or prefix like 192.0.2.0/24, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tun]\nexclude = 5", 'tun.exclude: expected a list of prefixes like "192.0.2.0/24", got the integer 5'),
        ("[tun]\nexclude = ['x']", f"tun.exclude: {PREFIX}'x'"),
        ("[tun]\ninclude = ['fe80::%eth0/64']", f"tun.include: {PREFIX}'fe80::%eth0/64'"),
        (
            "[tun]\nexclude = ['192.0.2.1/24']",
            "tun.exclude: 192.0.2.1/24 is an address within a prefix; write 192.0.2.0/24 for all of it",
        ),
        ("[tun]\nexclude_uid = 1000", 'tun.exclude_uid: expected a list of users like "alice", "1000" or "1000-1999"'),
        ("[tun]\nexclude_uid = 'no such user'", "tun.exclude_uid: there is no user 'no such user' here; give a name"),
        ("[tun]\nexclude_uid = '9-1'", "tun.exclude_uid: 9-1 is not a range of user ids: the smaller one comes first"),
        ("[tun]\nlan = 'maybe'", 'tun.lan: expected one of "allow", "block", got a string'),
        ("[tun]\nkill_switch = true", 'tun.kill_switch: expected one of "on", "off", got true'),
        ("[tun]\ninbound = 1", 'tun.inbound: expected one of "block", "keep", got the integer 1'),
        ("[tun]\nconfirm = -1", "tun.confirm: expected a number of seconds from 0 to 3600, got the integer -1"),
        ("[tun]\nconfirm = 3601", "tun.confirm: expected a number of seconds from 0 to 3600, got the integer 3601"),
        ("[tun]\nstate_dir = ''", "tun.state_dir: expected the path of a file"),
        ("[tun]\npool4 = '10.0.0.0/8'", "tun.pool4: unknown key; "),
        ("[tun]\ndns = 'exit'", "tun.dns: expected a table, [tun.dns], got a string"),
        ("[tun.dns]\nsplit = ['corp.example']", "tun.dns.split: expected DOMAIN=SERVER or DOMAIN=SERVER,SERVER, got"),
        ("[tun.dns]\nsplit = ['a=1.1.1.1,']", "tun.dns.split: expected DOMAIN=SERVER or DOMAIN=SERVER,SERVER, got"),
        ("[tun.dns]\nupstreams = 1", 'tun.dns.upstreams: expected a list of servers like "exit" or '),
        ("[tun.dns]\nblocklists = ['']", "tun.dns.blocklists: expected the path of a file"),
        ("[tun.dns]\ncache_entries = 0", "tun.dns.cache_entries: expected a whole number from 1 to 1000000, got"),
        ("[tun.dns]\ncache_bytes = 1", "tun.dns.cache_bytes: expected a size from 64 KiB to 1 GiB, in bytes or"),
        ("[tun.dns]\nstale = 'x'", "tun.dns.stale: expected a number of seconds from 0 to 259200, got a string"),
        ("[tun.dns]\nblok = []", 'tun.dns.blok: unknown key; did you mean "tun.dns.block"?'),
        ("[lane]\nenabled = false", "lane.enabled: unknown key; "),
        ("[lane]\ncongestion = 'reno'", 'lane.congestion: expected one of "bbr", "cubic", got a string'),
        ("[lane]\noffload = 'on'", 'lane.offload: expected one of "auto", "off", got a string'),
    ],
)  # fmt: skip
def test_an_error_names_file_key_and_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client(text)
    assert str(caught.value).startswith(f"client.toml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool4 = 'fd00::/64'", "exit.toml: tun.pool4: expected an IPv4 prefix, got fd00::/64"),
        ("pool6 = '10.0.0.0/8'", "exit.toml: tun.pool6: expected an IPv6 prefix, got 10.0.0.0/8"),
        ("pool4 = 7", 'exit.toml: tun.pool4: expected a prefix like "10.9.0.0/16", got the integer 7'),
        ("isolate = 'yes'", "exit.toml: tun.isolate: expected true or false, got a string"),
        ("kill_switch = 'on'", "exit.toml: tun.kill_switch: unknown key; "),
    ],
)
def test_the_same_for_the_exit(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        exit_peer(f"[tun]\n{text}")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tun.exclude": ("x",)}, f"--exclude: {PREFIX}'x'"),
        (
            {"tun.include": ("10.0.0.0/8", "10.0.0.1/8")},
            "--include: 10.0.0.1/8 is an address within a prefix",
        ),
        ({"tun.exclude_uid": ("nobody at all",)}, "--exclude-uid: there is no user 'nobody at all' here"),
        ({"tun.lan": "x"}, '--lan: expected one of "allow", "block"'),
        ({"tun.kill_switch": "x"}, '--kill-switch: expected one of "on", "off"'),
        ({"tun.confirm": 1e9}, "--confirm: expected a number of seconds from 0 to 3600"),
    ],
)
def test_an_error_names_the_flag(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client("", flags)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("0", (0, 0)),
        ("7-7", (7, 7)),
        (f"{MAX_UID}", (MAX_UID, MAX_UID)),
        (f"0-{MAX_USERS - 1}", (0, MAX_USERS - 1)),
        (ME, (os.getuid(), os.getuid())),
    ],
)
def test_users(text: str, users: tuple[int, int]) -> None:
    assert parse_users(text) == users


@pytest.mark.parametrize(
    "text",
    ["", "-", "-5", "5-", "1-2-3", "٣", "\0", "\udcff", f"{MAX_UID + 1}", f"0-{MAX_USERS}", "9" * 5000],
)
def test_what_is_nobody(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_users(text)


@pytest.mark.parametrize("parse", [parse_prefix, parse_users, parse_split])
@given(
    text=st.text(max_size=60)
    | st.from_regex(r"[0-9a-f:.]{0,20}(/[0-9]{0,3})?", fullmatch=True)
    | st.from_regex(r"[0-9-]{0,14}", fullmatch=True)
)
def test_only_one_sentence_leaves_the_parsers(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 300
