"""Which routing rules of other programs decide for our packets before ours do."""

from __future__ import annotations

import ipaddress
from ipaddress import ip_address, ip_interface, ip_network
from socket import AF_INET
from typing import Any

import pytest

from tun.linux.routing.foreign_rules import ForeignRule, Surroundings, decide_before_ours, read_foreign_rule
from tun.linux.routing.networks import MAIN, UNICAST, DeviceAddress, KernelRoute, NetworkDevice, NextHop
from tun.settings import MARK

ETH0, TUN, WG0 = 2, 3, 4
EXIT = ip_address("5.75.10.2")
UNREACHABLE, THROW = 7, 9


def route(table: int, prefix: str, device: int | None, kind: int = UNICAST) -> KernelRoute:
    network = ipaddress.ip_network(prefix)
    hops = () if device is None else (NextHop(device, None),)
    return KernelRoute(network.version, table, kind, network, hops)


ROUTES = (
    route(MAIN, "0.0.0.0/0", ETH0),
    route(MAIN, "192.168.77.0/24", ETH0),
    route(100, "0.0.0.0/0", ETH0),
    route(51820, "0.0.0.0/0", WG0),
    route(52, "100.101.102.103/32", WG0),
    route(53, "0.0.0.0/1", WG0),
    route(53, "128.0.0.0/1", WG0),
    route(54, "0.0.0.0/0", None, UNREACHABLE),
    route(55, "0.0.0.0/0", None, THROW),
    route(56, "5.75.10.0/24", WG0),
    route(57, "0.0.0.0/0", TUN),
)
LINKS = (
    NetworkDevice(ETH0, "eth0", True),
    NetworkDevice(TUN, "cryprq0", True),
    NetworkDevice(WG0, "wg0", True),
)
ADDRESSES = (
    DeviceAddress(ETH0, ip_interface("192.168.77.2/24")),
    DeviceAddress(TUN, ip_interface("198.18.0.7/32")),
)


def decides(rule: ForeignRule, *, everything: bool = True) -> str:
    surroundings = Surroundings(ROUTES, LINKS, ADDRESSES, "cryprq0", MARK, everything)
    return decide_before_ours([rule], surroundings, {EXIT}).partition(" stands before ours: it sends ")[2]


BOTH = "the link to wg0 and this machine's traffic to wg0"
LINK_ONLY = "the link to wg0"
TRAFFIC = "this machine's traffic to wg0"
SOME = f"some of {TRAFFIC}"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (ForeignRule(4, 5270, table=51820), BOTH),
        (ForeignRule(4, 25399, table=51820, mark=(0xCA6C, 0xFFFF_FFFF), inverted=True), BOTH),  # wg-quick
        (ForeignRule(4, 25398, table=MAIN, shortest=1), ""),
        (ForeignRule(4, 5210, table=MAIN, mark=(0x80000, 0xFF0000)), ""),  # Tailscale
        (ForeignRule(4, 5270, table=52), ""),
        (ForeignRule(4, 5270, table=53), BOTH),
        (ForeignRule(4, 5270, table=54), "the link to nowhere and this machine's traffic to nowhere"),
        (ForeignRule(4, 5270, action=7), "the link to nowhere and this machine's traffic to nowhere"),
        (ForeignRule(4, 5270, table=55), ""),
        (ForeignRule(4, 5270, table=56), LINK_ONLY),
        (ForeignRule(4, 5270, table=57), "the link to cryprq0"),
        (ForeignRule(4, 5270, table=MAIN), "this machine's traffic to eth0"),
        (ForeignRule(4, 5270, table=100), "this machine's traffic to eth0"),
        (ForeignRule(4, 0, table=255), ""),
        (ForeignRule(4, 32766, table=51820), ""),
        (ForeignRule(4, 25410, table=51820), TRAFFIC),
        (ForeignRule(4, 9, table=51820, mark=(MARK, 0xFFFF_FFFF)), LINK_ONLY),
        (ForeignRule(4, 9, table=51820, to=ip_network("5.75.10.0/24")), LINK_ONLY),
        (ForeignRule(4, 9, table=51820, to=ip_network("192.0.2.0/24")), ""),
        (ForeignRule(4, 9, table=51820, source=ip_network("192.168.77.2/32")), LINK_ONLY),
        (ForeignRule(4, 9, table=100, source=ip_network("192.168.77.2/32")), ""),
        (ForeignRule(4, 9, table=51820, source=ip_network("192.0.2.0/24")), ""),
        (ForeignRule(4, 9, table=51820, users=(4321, 4321)), SOME),
        (ForeignRule(4, 300, table=51820, parts=("ipproto udp", "dport 53")), SOME),
        (
            ForeignRule(4, 300, action=6, parts=("ipproto udp", "dport 53")),
            "some of this machine's traffic to nowhere",
        ),
        (ForeignRule(4, 300, table=52, parts=("ipproto udp", "dport 53")), ""),
        (ForeignRule(4, 300, table=51820, parts=("dport 53",), mark=(1, 1)), ""),
        (ForeignRule(4, 300, table=51820, parts=("dport 53",), inverted=True), BOTH),
        (ForeignRule(4, 300, table=51820, users=(4321, 4321), inverted=True), BOTH),
        (ForeignRule(4, 9, table=51820, narrow=True), ""),
        (ForeignRule(6, 9, table=51820), ""),
    ],
    ids=str,
)
def test_only_rules_that_lead_our_packets_elsewhere_count(rule: ForeignRule, said: str) -> None:
    assert decides(rule) == said


def test_traffic_that_need_not_enter_the_tunnel_may_go_elsewhere() -> None:
    assert decides(ForeignRule(4, 9, table=51820), everything=False) == LINK_ONLY


def message(flags: int = 0, src_len: int = 0, **attributes: Any) -> dict[str, Any]:
    return {
        "family": AF_INET,
        "dst_len": 0,
        "src_len": src_len,
        "tos": 0,
        "table": 254,
        "action": 1,
        "flags": flags,
        "attrs": list(attributes.items()),
    }


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            message(2, FRA_PRIORITY=25399, FRA_TABLE=51820, FRA_FWMARK=0xCA6C, FRA_FWMASK=0xFFFF_FFFF),
            "IPv4 rule 25399 (not fwmark 0xca6c lookup 51820)",
        ),
        (
            message(FRA_PRIORITY=5210, FRA_FWMARK=0x80000, FRA_FWMASK=0xFF0000),
            "IPv4 rule 5210 (fwmark 0x80000/0xff0000 lookup 254)",
        ),
        (message(src_len=24, FRA_SRC="10.1.0.0"), "IPv4 rule 0 (from 10.1.0.0/24 lookup 254)"),
        (
            message(FRA_PRIORITY=300, FRA_IP_PROTO=17, FRA_DPORT_RANGE="53:53", FRA_TABLE=51820),
            "IPv4 rule 300 (ipproto udp dport 53 lookup 51820)",
        ),
        (
            message(FRA_UID_RANGE="1000:2000", FRA_IP_PROTO=132, FRA_SPORT_RANGE="1:9", FRA_TABLE=51820),
            "IPv4 rule 0 (uidrange 1000-2000 ipproto 132 sport 1-9 lookup 51820)",
        ),
        *(
            ({**message(), "action": action}, f"IPv4 rule 0 ({word})")
            for action, word in ((6, "blackhole"), (7, "unreachable"), (8, "prohibit"), (3, "action 3"))
        ),
    ],
)
def test_rules_are_read_and_written_as_people_know_them(found: dict[str, Any], text: str) -> None:
    assert str(read_foreign_rule(found)) == text


def test_conditions_of_few_packets_are_noticed() -> None:
    assert not read_foreign_rule(message()).narrow
    for condition in ("FRA_L3MDEV", "FRA_IIFNAME", "FRA_OIFNAME"):
        found = message()
        found["attrs"].append((condition, "wg0"))
        assert read_foreign_rule(found).narrow
    assert read_foreign_rule(message(FRA_SUPPRESS_PREFIXLEN=0)).shortest == 1
    assert read_foreign_rule(message(FRA_UID_RANGE="5:7")).users == (5, 7)
