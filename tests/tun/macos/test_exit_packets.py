"""What the exit's rules of pf do with packets, by the model of pf: the same as Linux's table (exit_table.py) says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.support.macos.pf_model import Judgement, PfPacket, judge, with_anchor
from tun.macos.exit_rules import ExitView, Outward, text
from tun.macos.pfctl import ANCHORS
from tun.settings import ExitNetworkSettings

TUN = "utun7"
VIEW = ExitView(
    (
        Outward("en0", ip_address("192.168.1.20")),
        Outward("en0", ip_address("2001:db8:1::20")),
        Outward("en1", ip_address("10.0.0.9")),
    ),
    tuple(map(ip_address, ("10.0.0.9", "127.0.0.1", "192.168.1.20", "2001:db8:1::20"))),
)
CLIENT, OTHER, EXIT = "198.18.0.5", "198.18.0.6", "198.18.0.1"
CLIENT6, OTHER6, EXIT6 = "fd63:7279:7071::5", "fd63:7279:7071::6", "fd63:7279:7071::1"
TARGET, TARGET6 = "93.184.20.10", "2606:2800:20::10"


def settings(*, isolate: bool = True) -> ExitNetworkSettings:
    return ExitNetworkSettings(
        device=TUN,
        offload=False,
        pool4=IPv4Network("198.18.0.0/16"),
        pool6=IPv6Network("fd63:7279:7071::/64"),
        isolate=isolate,
        state=Path("/nowhere"),
    )


def packet(
    way: str, interface: str, source: str, destination: str, proto: str = "udp", **more: Any
) -> PfPacket:
    ports: dict[str, Any] = {"source_port": 4000, "destination_port": 53} if proto in ("tcp", "udp") else {}
    if proto.endswith("icmp"):
        ports = {"icmp_type": 8 if proto == "icmp" else 128}
    return PfPacket(way, interface, ip_address(source), ip_address(destination), proto, **ports | more)


def judged(it: PfPacket, *, isolate: bool = True, ipv6: bool = True) -> Judgement:
    return judge(with_anchor(ANCHORS["exit"], text(settings(isolate=isolate), VIEW, ipv6=ipv6)), it)


PASS, DROP, REFUSE = "pass", "drop", "refuse"


def verdict(found: Judgement) -> str:
    return PASS if found.passes else REFUSE if found.returns else DROP


SAME = [
    # From clients outwards.
    ("a client's packet", packet("in", TUN, CLIENT, TARGET), PASS),
    ("a client's packet of IPv6", packet("in", TUN, CLIENT6, TARGET6), PASS),
    ("a connection that goes on", packet("in", TUN, CLIENT, TARGET, "tcp", flags="A"), PASS),
    ("a client's ping", packet("in", TUN, CLIENT, TARGET, "icmp"), PASS),
    # Spoofed.
    ("a source outside of the pool", packet("in", TUN, "10.1.1.1", TARGET), DROP),
    ("a source outside of the pool of IPv6", packet("in", TUN, "2001:db8:9::1", TARGET6), DROP),
    ("the exit's own source from a client", packet("in", TUN, EXIT, TARGET), DROP),
    ("the machine's own source from a client", packet("in", TUN, "192.168.1.20", TARGET), DROP),
    # Isolated.
    ("to another client", packet("in", TUN, CLIENT, OTHER), REFUSE),
    ("to another client of IPv6", packet("in", TUN, CLIENT6, OTHER6), REFUSE),
    # Local: to the exit itself.
    ("a ping of the exit's address", packet("in", TUN, CLIENT, EXIT, "icmp"), PASS),
    ("a ping of the exit's address of IPv6", packet("in", TUN, CLIENT6, EXIT6, "ipv6-icmp"), PASS),
    ("another message to the exit's address", packet("in", TUN, CLIENT, EXIT, "icmp", icmp_type=13), REFUSE),
    ("a service of the exit", packet("in", TUN, CLIENT, EXIT, "tcp"), REFUSE),
    ("a service of the exit by IPv6", packet("in", TUN, CLIENT6, EXIT6, "tcp"), REFUSE),
    ("the exit by its outer address", packet("in", TUN, CLIENT, "192.168.1.20", "tcp"), REFUSE),
    ("a ping of its outer address", packet("in", TUN, CLIENT, "192.168.1.20", "icmp"), REFUSE),
    ("the exit by another address", packet("in", TUN, CLIENT, "10.0.0.9"), REFUSE),
    ("the exit by its outer address of IPv6", packet("in", TUN, CLIENT6, "2001:db8:1::20", "tcp"), REFUSE),
    ("its loopback", packet("in", TUN, CLIENT, "127.0.0.1", "tcp"), REFUSE),
    ("its mDNS", packet("in", TUN, CLIENT, "224.0.0.251"), REFUSE),
    ("all nodes", packet("in", TUN, CLIENT6, "ff02::1"), REFUSE),
    # Into the tunnel: answers only, and those have a state.
    ("unsolicited, to a client", packet("out", TUN, TARGET, CLIENT), DROP),
    ("unsolicited, to a client of IPv6", packet("out", TUN, TARGET6, CLIENT6), DROP),
    ("from the exit itself", packet("out", TUN, EXIT, CLIENT, "icmp"), PASS),
    ("from the exit itself by IPv6", packet("out", TUN, EXIT6, CLIENT6, "ipv6-icmp"), PASS),
    # Guard: the pool from another device (CVE-2019-14899).
    ("to a client from the network", packet("in", "en0", TARGET, CLIENT), DROP),
    ("to the exit's tunnel address from the network", packet("in", "en0", "192.168.1.9", EXIT), DROP),
    ("to a client in the exit's name", packet("in", "en0", EXIT, CLIENT), DROP),
    ("to a client of IPv6 from the network", packet("in", "en1", TARGET6, CLIENT6), DROP),
    # Misrouted.
    ("an answer that leaves by another device", packet("out", "en0", TARGET, CLIENT), DROP),
    ("an answer of IPv6 that leaves by another device", packet("out", "en0", TARGET6, CLIENT6), DROP),
    # The host's own matter.
    ("the host's own packet", packet("out", "en0", "192.168.1.20", TARGET, "tcp"), PASS),
    ("a service of the host", packet("in", "en0", "192.168.1.9", "192.168.1.20", "tcp"), PASS),
    ("what the host says to itself", packet("in", "lo0", EXIT, EXIT, "tcp"), PASS),
    ("what the host says to itself, leaving", packet("out", "lo0", EXIT, EXIT, "tcp"), PASS),
    ("another VPN's packet", packet("in", "utun3", "10.99.0.1", "10.99.0.2", "tcp"), PASS),
]


@pytest.mark.parametrize(
    ("it", "wanted"), [(it, wanted) for _, it, wanted in SAME], ids=[name for name, *_ in SAME]
)
def test_what_becomes_of_a_packet(it: PfPacket, wanted: str) -> None:
    assert verdict(judged(it)) == wanted


@pytest.mark.parametrize(
    ("source", "interface", "target", "address"),
    [
        (CLIENT, "en0", TARGET, "192.168.1.20"),
        (CLIENT, "en1", "10.0.0.77", "10.0.0.9"),
        (CLIENT6, "en0", TARGET6, "2001:db8:1::20"),
    ],
)
@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_what_leaves_has_the_address_of_its_interface(
    proto: str, source: str, interface: str, target: str, address: str
) -> None:
    found = judged(packet("out", interface, source, target, proto))
    assert found.passes and found.keeps
    assert found.packet is not None
    assert (str(found.packet.source), str(found.packet.destination)) == (address, target)


def test_what_cannot_be_translated_does_not_leave() -> None:
    """By an interface without an address of the family, or one that came after the rules."""
    assert verdict(judged(packet("out", "en1", CLIENT6, TARGET6))) == DROP
    assert verdict(judged(packet("out", "en9", CLIENT, TARGET))) == DROP


def test_a_clients_flow_has_a_state_for_its_answers_and_a_ping_too() -> None:
    assert judged(packet("in", TUN, CLIENT, TARGET, "tcp")).keeps
    assert judged(packet("in", TUN, CLIENT, EXIT, "icmp")).keeps


def test_clients_that_are_not_isolated_reach_each_other_but_not_the_exit() -> None:
    for source, destination in ((CLIENT, OTHER), (CLIENT6, OTHER6)):
        for way in ("in", "out"):
            assert judged(packet(way, TUN, source, destination, "tcp"), isolate=False).passes
    assert verdict(judged(packet("in", TUN, CLIENT, EXIT, "tcp"), isolate=False)) == REFUSE
    for name, it, wanted in SAME:
        if wanted != PASS and "another client" not in name:
            assert verdict(judged(it, isolate=False)) == wanted, name


def test_without_ipv6_no_packet_of_it_passes_the_device() -> None:
    for it in (
        packet("in", TUN, CLIENT6, TARGET6),
        packet("in", TUN, CLIENT6, EXIT6, "ipv6-icmp"),
        packet("out", TUN, EXIT6, CLIENT6, "ipv6-icmp"),
        packet("out", TUN, "fe80::1", "ff02::2", "ipv6-icmp"),
    ):
        assert verdict(judged(it, ipv6=False)) == DROP
    assert judged(packet("in", "en0", "2001:db8:1::9", "2001:db8:1::20", "tcp"), ipv6=False).passes
    for name, it, wanted in SAME:
        if it.source.version == 4:
            assert verdict(judged(it, ipv6=False)) == wanted, name


def test_a_pf_that_is_off_lets_all_out_untranslated() -> None:
    """Why the program withholds packets then."""
    pf = replace(with_anchor(ANCHORS["exit"], text(settings(), VIEW, ipv6=True)), enabled=False)
    found = judge(pf, packet("out", "en0", CLIENT, TARGET))
    assert found.passes and found.packet is not None and str(found.packet.source) == CLIENT
