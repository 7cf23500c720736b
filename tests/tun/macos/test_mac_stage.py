"""What the tests on a Mac are made of, as far as it runs without one."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from tests.support.canary_packets import packet
from tests.support.far_side import FarSide, answer
from tests.support.mac_stage import ANCHOR, IPV4, IPV6, Family, changed, rules
from tests.support.macos.machine import FakeMac
from tests.support.macos.pf_model import Judgement, PfPacket, judge, with_anchor
from tests.support.macos.state import Pf
from tun.device.packets import ICMP, ICMP6, TCP, UDP, checksum
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.macos import pfctl
from tun.macos.exit_rules import ExitView, Outward
from tun.macos.exit_rules import text as exit_text
from tun.macos.main_ruleset import not_evaluated
from tun.macos.networks import Address
from tun.macos.pf_rules import anchor_rules
from tun.settings import ExitNetworkSettings

POOLS = {"inet": "198.18.0.0/16", "inet6": "fd63:7279:7071::/64"}
OWN = {"inet": "198.18.0.1", "inet6": "fd63:7279:7071::1"}


def whole(protocol: int, address: str, body: bytes) -> bytes:
    """A packet from 10.9.9.9 or fd00::9 with right lengths."""
    made = packet(protocol, address, 4000, body)
    if made[0] >> 4 == 4:
        return made[:2] + len(made).to_bytes(2) + made[4:12] + ip_address("10.9.9.9").packed + made[16:]
    return made[:8] + ip_address("fd00::9").packed + made[24:]


def test_a_ping_is_answered_with_right_checksums() -> None:
    said = answer(whole(ICMP, "203.0.113.1", b"cqleak"))
    assert said is not None
    assert (said[12:16], said[16:20]) == (ip_address("203.0.113.1").packed, ip_address("10.9.9.9").packed)
    assert said[20] == 0 and said.endswith(b"cqleak")
    assert checksum(said[:20]) == 0 and checksum(said[20:]) == 0
    said = answer(whole(ICMP6, "2001:db8:78::1", b"cqleak"))
    assert said is not None
    assert said[40] == 129
    pseudo = said[8:40] + struct.pack("!II", len(said) - 40, ICMP6)
    assert checksum(pseudo + said[40:]) == 0


def test_a_datagram_comes_back() -> None:
    for address, size in (("203.0.113.1", 20), ("2001:db8:78::1", 40)):
        sent = whole(UDP, address, b"cqleak")
        said = answer(sent)
        assert said is not None
        assert said[size : size + 4] == sent[size + 2 : size + 4] + sent[size : size + 2]
        ends = said[12:20] if size == 20 else said[8:40]
        assert checksum(ends + struct.pack("!II", len(said) - size, UDP) + said[size:]) == 0


def test_anything_else_gets_no_answer() -> None:
    for data in (
        b"",
        b"\x45",
        whole(TCP, "203.0.113.1", b""),
        whole(TCP, "2001:db8:78::1", b""),
        b"\x46" + whole(UDP, "203.0.113.1", b"")[1:],
        whole(UDP, "203.0.113.1", b"")[:6] + b"\x20\x00" + whole(UDP, "203.0.113.1", b"")[8:],
    ):
        assert answer(data) is None


def test_the_far_side_answers_on_a_device() -> None:
    ours, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.settimeout(20)
    with ours, given, FarSide(given.fileno()) as far:
        sent = whole(ICMP, "203.0.113.1", b"cqleak")
        ours.send(b"\0\0\0\x02" + sent)
        assert ours.recv(2048) == b"\0\0\0\x02" + (answer(sent) or b"")
        ours.send(b"\0\0\0\x1e" + whole(ICMP6, "2001:db8:78::1", b"cqleak"))
        assert ours.recv(2048)[:4] == b"\0\0\0\x1e"
        assert far.seen[0] == sent


def test_the_rules_that_let_one_kernel_be_both_ends() -> None:
    assert IPV4.behind("192.0.2.53") == "203.0.113.53"
    assert IPV6.behind("2001:db8:77::1") == "2001:db8:78::1"
    text = rules([IPV4, IPV6], client="utun4", exit="utun5", far="utun6", pools=POOLS, own=OWN)
    assert text.splitlines() == [
        "rdr on utun5 inet from 198.18.0.0/16 to 192.0.2.1 -> 203.0.113.1",
        "rdr on utun5 inet from 198.18.0.0/16 to 192.0.2.53 -> 203.0.113.53",
        "rdr on utun5 inet6 from fd63:7279:7071::/64 to 2001:db8:77::1 -> 2001:db8:78::1",
        "pass quick on utun4 all no state",
        "pass out quick on utun6 reply-to (utun5 198.18.0.1) inet from any to 203.0.113.0/24 flags any keep state",
        "pass out quick on utun6 reply-to (utun5 fd63:7279:7071::1) inet6 from any to 2001:db8:78::/48 "
        "flags any keep state",
    ]


CLIENT4, CLIENT6 = IPv4Address("198.18.3.4"), IPv6Address("fd63:7279:7071::34")
HOME = "192.168.1.20"


def all_anchors() -> Pf:
    """pf as it is while the test on a Mac runs: the rules of client, exit and test, on utun4, utun5 and utun6."""
    own = (*map(ip_address, (IPV4.far, IPV6.far, HOME)), CLIENT4, CLIENT6)
    outward = (
        ("en0", HOME),
        ("utun6", IPV4.far),
        ("utun6", IPV6.far),
        ("utun4", CLIENT4),
        ("utun4", CLIENT6),
    )
    view = ExitView(tuple(Outward(name, ip_address(str(each))) for name, each in outward), own)
    settings = ExitNetworkSettings(
        device="utun5",
        offload=False,
        pool4=IPv4Network(POOLS["inet"]),
        pool6=IPv6Network(POOLS["inet6"]),
        isolate=True,
        state=Path("/nowhere"),
    )
    client = FilterSettings(
        tun="utun4",
        mark=1,
        exits=frozenset({ExitEndpoint(IPv4Address("127.0.0.1"), 4433)}),
        tunnel4=CLIENT4,
        tunnel6=CLIENT6,
        included=frozenset(map(ip_network, (IPV4.included, IPV6.included))),
        uplinks=frozenset({"en0"}),
    )
    texts = {
        ANCHOR: rules([IPV4, IPV6], client="utun4", exit="utun5", far="utun6", pools=POOLS, own=OWN),
        pfctl.ANCHORS["client"]: anchor_rules(client),
        pfctl.ANCHORS["exit"]: exit_text(settings, view, ipv6=True),
    }
    anchors = {path: with_anchor(path, text).anchors[path] for path, text in texts.items()}
    pf = with_anchor(ANCHOR, texts[ANCHOR])
    return replace(pf, anchors=dict(sorted(anchors.items())))


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_packets_find_their_path_through_the_rules_of_both_ends(family: Family) -> None:
    pf = all_anchors()
    source, target = CLIENT4 if family is IPV4 else CLIENT6, ip_address(family.targets[0])
    behind, far = ip_address(family.behind(family.targets[0])), ip_address(family.far)

    def judged(way: str, interface: str, source: Address, destination: Address) -> Judgement:
        return judge(pf, PfPacket(way, interface, source, destination, "udp", 4000, 443))

    assert judged("out", "utun4", source, target).passes
    into_exit = judged("in", "utun5", source, target)
    assert into_exit.passes and into_exit.keeps
    assert into_exit.packet is not None and into_exit.packet.destination == behind
    on = judged("out", "utun6", source, behind)
    assert on.passes and on.keeps and on.reply_to == ("utun5", OWN[family.name])
    assert on.packet is not None and on.packet.source == far
    assert judged("in", "utun4", target, source).passes
    # With the client killed, what it had in its tunnel is led to the uplink by the routes, and does not leave.
    home = ip_address(HOME) if family is IPV4 else ip_address("2001:db8:1::20")
    assert not judged("out", "en0", home, target).passes
    assert judged("out", "en0", home, ip_address("93.184.20.10" if family is IPV4 else "2606::1")).passes


def test_only_the_test_may_put_such_rules_in_front(tmp_path: Path) -> None:
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        pf = all_anchors()
        state.pf = replace(pf, main=replace(pf.main, rules=state.pf.main.rules))
    assert not_evaluated(mac.run) == ""
    with mac.change() as state:
        state.pf.anchors["com.apple/000.other"] = state.pf.anchors.pop(ANCHOR)
    assert "of the anchor com.apple/000.other stands in front" in not_evaluated(mac.run)


def test_what_has_changed() -> None:
    before = {"routes": ["a", "b"], "utun": [], "pf enabled": False}
    assert changed(before, dict(before)) == ""
    assert changed(before, before | {"routes": ["a"]}) == 'routes: ["a", "b"] became ["a"]'
