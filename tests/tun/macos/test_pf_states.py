"""pf's states: how they are read, and which have no reason any more."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from cryprq_proxy.rules.syntax import Verdict
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.macos.pf_states import MANY, Reasons, State, read_states, to_kill

LISTED = """\
ALL tcp 192.168.1.5:52345 -> 17.57.144.84:5223       ESTABLISHED:ESTABLISHED
en0 tcp 198.18.0.2:50000 -> 192.168.1.5:61000 -> 93.184.216.34:443       ESTABLISHED:ESTABLISHED
ALL udp 192.168.1.5:5353 <- 192.168.1.9:5353       NO_TRAFFIC:SINGLE
utun9 udp fd63::2[50000] -> 2606:4700::1111[443]       MULTIPLE:MULTIPLE
ALL icmp 192.168.1.5:8 -> 1.1.1.1       0:0
ALL tcp nonsense
   age 00:00:11, expires in 23:59:54
"""
SETTINGS = FilterSettings(
    tun="utun9",
    mark=1,
    exits=frozenset({ExitEndpoint(ip_address("5.75.10.2"), 443)}),
    tunnel4=IPv4Address("198.18.0.2"),
    lan=frozenset({ip_network("192.168.1.0/24")}),
)
OUT = State("ALL", "tcp", False, ip_address("192.168.1.5"), ip_address("93.184.216.34"), 443, False)
LAN = OUT._replace(remote=ip_address("192.168.1.9"))
EXIT = OUT._replace(remote=ip_address("5.75.10.2"))
TUNNELLED = OUT._replace(interface="utun9", local=ip_address("198.18.0.2"))
TRANSLATED = OUT._replace(interface="en0", local=ip_address("198.18.0.2"), translated=True)
DIRECT = FilterRules((FilterRule(Verdict.DIRECT, (ip_network("93.184.216.0/24"),)),))


def test_states_are_read_with_this_machines_end_first() -> None:
    found = list(read_states(LISTED.splitlines()))
    assert [(str(each.local), str(each.remote), each.port) for each in found] == [
        ("192.168.1.5", "17.57.144.84", 5223),
        ("198.18.0.2", "93.184.216.34", 443),
        ("192.168.1.5", "192.168.1.9", 5353),
        ("fd63::2", "2606:4700::1111", 443),
        ("192.168.1.5", "1.1.1.1", 0),
    ]
    assert [each.translated for each in found] == [False, True, False, False, False]
    # pf's source of what came in is the other end.
    assert found[2].ends == ("192.168.1.9", "192.168.1.5")


@pytest.mark.parametrize(
    ("state", "changes", "ends"),
    [
        (OUT, {}, True),
        (OUT, {"kill_switch": False}, False),
        (OUT, {"excluded": frozenset({ip_network("93.0.0.0/8")})}, False),
        (OUT, {"included": frozenset({ip_network("8.8.8.0/24")})}, False),
        (OUT, {"rules": DIRECT}, False),
        (OUT._replace(incoming=True), {}, True),
        (LAN, {}, False),
        (LAN, {"lan_allowed": False}, True),
        (LAN._replace(port=53), {}, True),
        (EXIT, {}, False),
        (EXIT._replace(port=80), {}, True),
        (OUT._replace(interface="lo0"), {}, False),
        (TUNNELLED, {}, False),
        (TUNNELLED, {"rules": DIRECT}, True),
        (TUNNELLED, {"tunnel4": IPv4Address("198.18.0.3")}, True),
        (TRANSLATED, {}, True),
        (TRANSLATED, {"rules": DIRECT}, False),
        (TRANSLATED, {"excluded_uids": frozenset({501})}, False),
    ],
)
def test_which_states_end(state: State, changes: dict[str, object], ends: bool) -> None:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    assert Reasons(settings, keep_inbound=False, paused=False).ends(state) is ends


def test_what_came_in_is_kept_where_it_is_to_be() -> None:
    assert not Reasons(SETTINGS, keep_inbound=True, paused=False).ends(OUT._replace(incoming=True))
    assert Reasons(SETTINGS, keep_inbound=True, paused=False).ends(OUT)
    assert not Reasons(SETTINGS, keep_inbound=False, paused=True).ends(OUT)


def test_many_are_ended_by_their_own_end() -> None:
    reasons = Reasons(SETTINGS, keep_inbound=False, paused=False)
    states = [OUT._replace(remote=ip_address(f"93.184.0.{number}")) for number in range(MANY + 1)]
    assert to_kill(states[1:] * 2, reasons) == sorted(each.ends for each in states[1:])
    assert to_kill(states, reasons) == [("192.168.1.5",)]
