"""The fake Mac's ifconfig, netstat and route: they print what the real ones print, and refuse what those refuse."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.macos import fake_netstat
from tests.support.macos.machine import FakeMac
from tests.support.macos.state import Route
from tests.support.macos.utun_pair import UtunPair
from tun.macos import networks
from tun.macos.programs import Command


@pytest.fixture
def mac(tmp_path: Path) -> FakeMac:
    return FakeMac(tmp_path / "mac")


def said(mac: FakeMac, line: str) -> tuple[int, str, str]:
    answer = mac.run(Command(tuple(line.split())))
    return answer.code, answer.out, answer.err


@pytest.mark.parametrize(
    ("destination", "flags", "shown"),
    [
        ("0.0.0.0/0", "UGScg", "default"),
        ("0.0.0.0/1", "USc", "0/1"),
        ("128.0.0.0/1", "USc", "128.0/1"),
        ("10.0.0.0/8", "UGSc", "10"),
        ("10.0.0.0/16", "UCS", "10/16"),
        ("10.181.10.0/23", "UCS", "10.181.10/23"),
        ("10.0.1.1/32", "UCS", "10.0.1.1/32"),
        ("127.0.0.1/32", "UH", "127.0.0.1"),
        ("169.254.0.0/16", "UCS", "169.254"),
        ("172.16.111.0/24", "UC", "172.16.111/24"),
        ("192.168.1.0/24", "UCS", "192.168.1"),
        ("224.0.0.0/4", "UmCS", "224.0.0/4"),
        ("255.255.255.255/32", "UCS", "255.255.255.255/32"),
        ("::/0", "UGcg", "default"),
        ("::/1", "USc", "::/1"),
        ("fe80::/64", "UCI", "fe80::%en0/64"),
        ("fe80::1/128", "UHLWIir", "fe80::1%en0"),
        ("2001:db8::/64", "UC", "2001:db8::/64"),
    ],
)
def test_destinations_are_shortened_as_netstat_does(destination: str, flags: str, shown: str) -> None:
    assert fake_netstat.shown(Route(destination, "link#6", "en0", flags)) == shown


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
    st.integers(0, 2**128 - 1),
    st.integers(0, 128),
    st.booleans(),
)
def test_each_prefix_that_netstat_shows_is_read_again(
    four: int, length4: int, six: int, length6: int, host: bool
) -> None:
    networks4 = ip_network((four, 32 if host else length4), strict=False)
    networks6 = ip_network((six, 128 if host else length6), strict=False)
    for prefix in (networks4, networks6):
        route = Route(str(prefix), "link#6", "en0", "UHS" if host else "USc")
        (read,) = networks.read_routes(
            f"{fake_netstat.shown(route)} link#6 {route.flags} en0 !", prefix.version
        )
        assert (read.prefix, read.interface) == (prefix, "en0")


def test_netstat_has_the_columns_of_today(mac: FakeMac) -> None:
    code, out, _ = said(mac, "netstat -rn -f inet")
    lines = out.splitlines()
    assert code == 0
    assert lines[:4] == [
        "Routing tables",
        "",
        "Internet:",
        "Destination        Gateway            Flags               Netif Expire ",
    ]
    assert lines[4] == "default            192.168.1.1        UGScg                 en0 "
    assert said(mac, "netstat -rn")[1].count("Destination") == 2
    assert said(mac, "netstat -x")[0] == 1


def test_what_is_read_of_the_programs_is_what_the_mac_has(mac: FakeMac) -> None:
    state, found = mac.read(), networks.look(mac.run)
    assert {(str(one.prefix), one.gateway, one.flags, one.interface) for one in found.routes} == {
        (one.destination, one.gateway, one.flags, one.interface) for one in state.routes
    }
    for one, there in zip(found.interfaces, state.interfaces, strict=True):
        assert (one.name, one.mtu, one.flags - {""}) == (there.name, there.mtu, set(there.flags))
        assert [str(address) for address in one.addresses] == [
            f"{address.address}/{address.prefix}" for address in there.addresses
        ]


def test_route_ends_with_0_and_says_what_failed(mac: FakeMac) -> None:
    before = mac.snapshot()
    add = "route -n add -inet 203.0.113.9 -gateway 192.168.1.1"
    assert said(mac, add) == (0, "add host 203.0.113.9: gateway 192.168.1.1\n", "")
    assert said(mac, add) == (
        0,
        "add host 203.0.113.9: gateway 192.168.1.1: File exists\n",
        "route: writing to routing socket: File exists\n",
    )
    (route,) = (each for each in mac.read().routes if each.destination == "203.0.113.9/32")
    assert (route.flags, route.interface, route.source) == ("UGHS", "en0", "192.168.1.23")
    assert said(mac, "route -q -n delete -inet 203.0.113.9") == (0, "", "")
    assert said(mac, "route -q -n delete -inet 203.0.113.9") == (
        0,
        "",
        "route: writing to routing socket: not in table\n",
    )
    assert mac.snapshot() == before


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("route -n add -inet 10.0.0.0/8 -interface utun9", 68, "bad address: utun9"),
        ("route -n add -inet fd00::/8 -interface en0", 68, "bad address: fd00::/8"),
        ("route -n add -inet 10.0.0.0/8 -gateway fe80::1", 68, "bad address: fe80::1"),
        ("route -n add -inet 10.0.0.0/8 -mark 7", 64, "botched keyword: mark"),
        ("route -n put -inet 10.0.0.0/8 192.168.1.1", 64, "botched keyword: put"),
        ("ifconfig utun9 mtu 1400", 1, "interface utun9 does not exist"),
        ("ifconfig en0 mtu 7", 1, "SIOCSIFMTU"),
        ("ifconfig en0 inet 10.0.0.1 -alias", 1, "Can't assign requested address"),
        ("ifconfig en0 inet 10.0.0.1/32 10.0.0.1 alias", 1, "usage"),
        ("ifconfig en0 promisc now", 1, "bad value"),
    ],
)
def test_what_they_refuse_changes_nothing(mac: FakeMac, line: str, code: int, words: str) -> None:
    before = mac.snapshot()
    found, _, complaint = said(mac, line)
    assert (found, words in complaint) == (code, True)
    assert mac.snapshot() == before


@pytest.mark.parametrize(
    "line",
    ["route -n add -inet 10.0.0.0/8 192.168.1.1", "ifconfig en0 mtu 1400", "ifconfig en0 down"],
)
def test_only_root_changes_anything(mac: FakeMac, line: str) -> None:
    before, user = mac.snapshot(), FakeMac(mac.directory, uid=501)
    code, _, complaint = said(user, line)
    assert code
    assert "must be root" in complaint or "not permitted" in complaint
    assert mac.snapshot() == before


def test_nothing_leads_to_a_gateway_while_there_is_no_network(mac: FakeMac) -> None:
    with mac.change() as state:
        state.routes = [route for route in state.routes if route.interface != "en0"]
    assert said(mac, "route -q -n add -inet 10.0.0.0/8 -gateway 192.168.1.1")[2] == (
        "route: writing to routing socket: Network is unreachable\n"
    )


def test_the_best_route_is_shown(mac: FakeMac) -> None:
    assert "gateway: 192.168.1.1\n  interface: en0" in said(mac, "route -n get -inet 203.0.113.9")[1]
    assert "interface: lo0" in said(mac, "route -n get -inet6 ::1")[1]
    with mac.change() as state:
        state.routes = []
    assert (
        said(mac, "route -n get -inet 203.0.113.9")[2] == "route: writing to routing socket: not in table\n"
    )


def test_a_route_has_the_source_that_its_device_had_and_goes_with_it(mac: FakeMac) -> None:
    before = mac.snapshot()
    pair = UtunPair(mac)
    descriptor, name = pair("utun")
    os.close(descriptor)
    said(mac, f"ifconfig {name} inet 198.18.0.2/32 198.18.0.2 alias")
    said(mac, f"ifconfig {name} up")
    said(mac, f"route -q -n add -inet 0.0.0.0/1 -interface {name}")
    assert ("0.0.0.0/1", "198.18.0.2") in {(each.destination, each.source) for each in mac.read().routes}
    said(mac, f"ifconfig {name} inet 198.18.0.2 -alias")
    assert not [each for each in mac.read().routes if each.interface == name]
    pair.end()
    assert mac.snapshot() == before
