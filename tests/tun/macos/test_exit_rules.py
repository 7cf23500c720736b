"""The text of the exit's anchor. What the rules do with packets is in test_exit_packets.py."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError
from tun.macos.exit_rules import MAX_ADDRESSES, ExitView, Outward, text, view_of
from tun.macos.networks import MacInterface, MacState
from tun.settings import ExitNetworkSettings

VIEW = ExitView(
    (
        Outward("en0", ip_address("192.168.1.20")),
        Outward("en0", ip_address("2001:db8:1::20")),
        Outward("utun3", ip_address("10.8.0.2")),
    ),
    (
        ip_address("10.8.0.2"),
        ip_address("127.0.0.1"),
        ip_address("192.168.1.20"),
        ip_address("2001:db8:1::20"),
    ),
)


def settings(**changes: Any) -> ExitNetworkSettings:
    values: dict[str, Any] = {
        "device": "utun7",
        "offload": False,
        "pool4": IPv4Network("198.18.0.0/16"),
        "pool6": IPv6Network("fd63:7279:7071::/64"),
        "isolate": True,
        "state": Path("/nowhere"),
    }
    return ExitNetworkSettings(**values | changes)


def test_the_whole_text_for_ipv4() -> None:
    assert text(settings(), VIEW, ipv6=False).splitlines() == [
        "scrub on utun7 inet proto tcp all max-mss 1372",
        "nat on en0 inet from 198.18.0.0/16 to any -> 192.168.1.20",
        "nat on utun3 inet from 198.18.0.0/16 to any -> 10.8.0.2",
        'block drop in quick on ! lo0 inet from 198.18.0.1 to any label "first"',
        "block drop in quick on ! utun7 inet from ! 198.18.0.1 to 198.18.0.0/16",
        "block drop out quick on ! utun7 inet from ! 198.18.0.1 to 198.18.0.0/16",
        "block drop out quick on ! utun7 inet from 198.18.0.0/16 to ! 198.18.0.0/16",
        "block drop in quick on utun7 inet from ! 198.18.0.0/16 to any",
        "pass in quick on utun7 inet proto icmp from 198.18.0.0/16 to 198.18.0.1 icmp-type echoreq keep state",
        "block return in quick on utun7 inet from any to { 198.18.0.1, 10.8.0.2, 127.0.0.1, 192.168.1.20, "
        "127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }",
        "block return in quick on utun7 inet from any to 198.18.0.0/16",
        "pass in quick on utun7 inet from 198.18.0.0/16 to any flags any keep state",
        "block drop out quick on utun7 inet from ! 198.18.0.1 to any",
        "block drop quick on utun7 inet6 all",
    ]


def test_a_client_on_this_machine_is_no_uplink() -> None:
    tunnel = Outward("utun8", ip_address("198.18.3.4"))
    view = VIEW._replace(outward=(*VIEW.outward, tunnel))
    assert text(settings(), view, ipv6=False) == text(settings(), VIEW, ipv6=False)


def test_ipv6_has_the_same_rules_in_its_own_words() -> None:
    with6 = text(settings(), VIEW, ipv6=True)
    assert "scrub on utun7 inet6 proto tcp all max-mss 1352\n" in with6
    assert "nat on en0 inet6 from fd63:7279:7071::/64 to any -> 2001:db8:1::20\n" in with6
    assert "proto ipv6-icmp from fd63:7279:7071::/64 to fd63:7279:7071::1 icmp6-type echoreq" in with6
    assert "inet6 all" not in with6
    kinds = ["scrub", "nat", "block", "pass"]
    order = [kinds.index(line.split()[0]) for line in with6.splitlines()]
    # What pf.conf(5) demands: normalization, translation, filters.
    assert [min(kind, 2) for kind in order] == sorted(min(kind, 2) for kind in order)
    assert (
        len([line for line in with6.splitlines() if " inet6 " in line])
        == len([line for line in with6.splitlines() if " inet " in line]) - 1
    )  # en0 alone has an IPv6 address


def test_clients_that_are_not_isolated_reach_each_other_and_not_the_exit() -> None:
    lines = text(settings(isolate=False), VIEW, ipv6=False).splitlines()
    own = next(number for number, line in enumerate(lines) if "{ 198.18.0.1," in line)
    between = lines.index("pass in quick on utun7 inet from 198.18.0.0/16 to 198.18.0.0/16 no state")
    out = lines.index("pass out quick on utun7 inet from 198.18.0.0/16 to 198.18.0.0/16 no state")
    assert own < between < out < lines.index("block drop out quick on utun7 inet from ! 198.18.0.1 to any")
    assert "block return in quick on utun7 inet from any to 198.18.0.0/16" not in lines


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match="no name of a device"):
        text(settings(device="utun7 all"), VIEW, ipv6=False)


def interface(name: str, *addresses: str, flags: str = "UP", stale: str = "") -> MacInterface:
    return MacInterface(
        name,
        frozenset(flags.split(",")),
        1500,
        tuple(map(ip_interface, addresses)),
        frozenset(ip_interface(each) for each in stale.split()),
    )


def test_what_of_the_machine_the_rules_depend_on() -> None:
    state = MacState(
        (
            interface("lo0", "127.0.0.1/8", "::1/128", "fe80::1/64", flags="UP,LOOPBACK"),
            interface("utun7", "198.18.0.1/32"),
            interface(
                "en0",
                "192.168.1.20/24",
                "192.168.1.21/24",
                "fe80::2/64",
                "2001:db8:1::7/64",
                "2001:db8:1::20/64",
                stale="2001:db8:1::7/64",
            ),
            interface("en5", "10.0.0.9/24", flags="BROADCAST"),
            interface("utun3", "10.8.0.2/32", flags="UP,POINTOPOINT"),
            interface("utun0", "fe80::9/64", flags="UP,POINTOPOINT"),
        ),
        (),
    )
    view = view_of(state, "utun7")
    assert set(view.outward) == set(VIEW.outward)
    assert {str(each) for each in view.own} == {
        "127.0.0.1",
        "::1",
        "192.168.1.20",
        "192.168.1.21",
        "2001:db8:1::7",
        "2001:db8:1::20",
        "10.0.0.9",
        "10.8.0.2",
    }
    assert view_of(MacState(state.interfaces[::-1], ()), "utun7") == view


def test_a_machine_with_very_many_addresses_has_bounded_rules() -> None:
    many = tuple(
        interface(f"en{number}", f"10.0.{number >> 8}.{number & 255}/32")
        for number in range(MAX_ADDRESSES + 9)
    )
    view = view_of(MacState(many, ()), "utun7")
    assert (len(view.outward), len(view.own)) == (MAX_ADDRESSES, MAX_ADDRESSES)
