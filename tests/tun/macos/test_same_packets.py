"""One table of packets, which the filters of Linux and macOS must answer alike: nft's script and pf's anchor, each by a
model of its own. Where they differ, the difference stands in the table with its reason.

The models also have the routes that the filters are made for: marks and rules on Linux, prefixes on macOS.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryprq_proxy.rules.syntax import Verdict
from tests.support.macos.both_filters import (
    EXIT,
    EXIT6,
    FOUR,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    OWN,
    ROOT,
    SETTINGS,
    USER,
    Mode,
    Sent,
    by_linux,
    by_macos,
)
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.inbound import Inbound, InboundConnection


def with_(**changes: Any) -> Mode:
    return Mode(replace(SETTINGS, **changes))


PLAIN = Mode()
NO_LAN = with_(lan_allowed=False)
OPEN = with_(kill_switch=False)
EXCLUDING = with_(excluded=frozenset({ip_network("9.9.0.0/16")}))
INCLUDING = with_(included=frozenset({ip_network("8.8.0.0/16")}))
USERS = with_(excluded_uids=frozenset({OTHER}))
RULES = with_(
    rules=FilterRules(
        (
            FilterRule(Verdict.TUNNEL, (ip_network("9.9.1.0/24"),)),
            FilterRule(Verdict.DIRECT, (ip_network("9.9.0.0/16"),)),
            FilterRule(Verdict.BLOCK, None, ((25, 25), (6000, 6063))),
            FilterRule(Verdict.DIRECT, None, ((2222, 2222), (853, 853))),
            FilterRule(Verdict.BLOCK, None, ((853, 853),)),
        )
    )
)
BLOCKING = with_(rules=FilterRules(default=Verdict.BLOCK))
PAUSED = Mode(paused=True)
ASKING = Mode(resolvers=frozenset({ip_address("192.168.1.1"), ip_address("1.1.1.1")}))
INBOUND = Mode(
    inbound=Inbound(frozenset({InboundConnection(OWN[4], 22, IPv4Address(OUTSIDE), 40000)}), (49152, 65535))
)
SERVERS = with_(name_servers=frozenset({ip_address("192.168.1.9")}))
_SSH = Sent(OUTSIDE, port=40000, source_port=22, source=str(OWN[4]))


def nd(to: str, kind: int) -> Sent:
    return Sent(to, "ipv6-icmp", icmp_type=kind, hop_limit=255)


ALIKE: list[tuple[str, Mode, Sent, str]] = [
    ("tunnelled", PLAIN, Sent(OUTSIDE, port=443), "tunnel"),
    ("tunnelled, IPv6", PLAIN, Sent(OUTSIDE6, port=443), "tunnel"),
    ("tunnelled ping", PLAIN, Sent(OUTSIDE, "icmp", icmp_type=8), "tunnel"),
    ("tunnelled, to port 853", PLAIN, Sent(OUTSIDE, port=853), "tunnel"),
    ("a question to a server outside", PLAIN, Sent("8.8.8.8", "udp", 53), "forwarder"),
    ("a socket from before the tunnel", PLAIN, Sent(OUTSIDE, port=443, source=str(OWN[4])), "kept"),
    ("the tunnel's address past the tunnel", PLAIN, Sent("192.168.1.9", port=80, source=str(FOUR)), "kept"),
    ("the link", PLAIN, Sent(str(EXIT), port=443, uid=ROOT, link=True), "out"),
    ("the link's datagrams", PLAIN, Sent(str(EXIT), "udp", 443, uid=ROOT, link=True), "out"),
    ("the link, IPv6", PLAIN, Sent(str(EXIT6), port=443, uid=ROOT, link=True), "out"),
    ("DHCP", PLAIN, Sent("255.255.255.255", "udp", 67, 68, uid=ROOT), "out"),
    ("DHCP, to the server", NO_LAN, Sent("192.168.1.1", "udp", 67, 68, uid=ROOT), "out"),
    ("DHCPv6", PLAIN, Sent("ff02::1:2", "udp", 547, 546, uid=ROOT), "out"),
    ("router solicitation", NO_LAN, nd("ff02::2", 133), "out"),
    ("neighbour solicitation", NO_LAN, nd("ff02::1:ff00:1", 135), "out"),
    ("neighbour advertisement", NO_LAN, nd("fe80::1", 136), "out"),
    ("a redirect", NO_LAN, nd("fe80::1", 137), "kept"),
    ("a report on multicast", NO_LAN, Sent("ff02::16", "ipv6-icmp", icmp_type=143), "out"),
    ("the LAN", PLAIN, Sent("192.168.1.9", port=22), "out"),
    ("the LAN, IPv6", PLAIN, Sent("fd00:1::9", port=22), "out"),
    ("the LAN, link-local", PLAIN, Sent("fe80::9", port=22), "out"),
    ("the LAN is blocked", NO_LAN, Sent("192.168.1.9", port=22), "kept"),
    ("the LAN, to port 853", PLAIN, Sent("192.168.1.9", port=853), "kept"),
    ("LLMNR", PLAIN, Sent("224.0.0.252", "udp", 5355), "kept"),
    ("mDNS", PLAIN, Sent("224.0.0.251", "udp", 5353), "out"),
    ("mDNS, IPv6", PLAIN, Sent("ff02::fb", "udp", 5353), "out"),
    ("SSDP", PLAIN, Sent("239.255.255.250", "udp", 1900), "out"),
    ("mDNS, the LAN is blocked", NO_LAN, Sent("224.0.0.251", "udp", 5353), "kept"),
    ("other multicast", PLAIN, Sent("225.1.1.1", "udp", 5000), "kept"),
    ("excluded", EXCLUDING, Sent("9.9.9.9", port=443), "out"),
    ("not excluded", EXCLUDING, Sent("9.10.9.9", port=443), "tunnel"),
    ("included", INCLUDING, Sent("8.8.8.8", port=443), "tunnel"),
    ("not included", INCLUDING, Sent(OUTSIDE, port=443), "out"),
    ("not included, to port 853", INCLUDING, Sent(OUTSIDE, port=853), "kept"),
    ("an excluded user", USERS, Sent(OUTSIDE, port=443, uid=OTHER), "out"),
    ("an excluded user, IPv6", USERS, Sent(OUTSIDE6, "udp", 443, uid=OTHER), "out"),
    ("an excluded user's question", USERS, Sent("8.8.8.8", "udp", 53, uid=OTHER), "forwarder"),
    ("another user", USERS, Sent(OUTSIDE, port=443), "tunnel"),
    ("a rule: direct", RULES, Sent("9.9.9.9", port=443), "out"),
    ("a rule: direct, a ping", RULES, Sent("9.9.9.9", "icmp", icmp_type=8), "out"),
    ("a rule: tunnel, before direct", RULES, Sent("9.9.1.9", port=443), "tunnel"),
    ("a rule: block", RULES, Sent(OUTSIDE, port=25), "kept"),
    ("a rule: block, on the LAN", RULES, Sent("192.168.1.9", "udp", 6001), "kept"),
    ("a rule: direct by port", RULES, Sent(OUTSIDE, port=2222), "out"),
    ("a rule: direct, but DNS over TLS", RULES, Sent("9.9.9.9", port=853), "tunnel"),
    ("a rule: direct, but a question", RULES, Sent("9.9.9.9", "udp", 53), "forwarder"),
    ("a rule: nothing said", RULES, Sent(OUTSIDE, port=443), "tunnel"),
    ("rules: block by default", BLOCKING, Sent(OUTSIDE, port=443), "kept"),
    ("rules: block by default, a question", BLOCKING, Sent("8.8.8.8", "udp", 53), "forwarder"),
    ("rules: block by default, DHCP", BLOCKING, Sent("255.255.255.255", "udp", 67, 68, uid=ROOT), "out"),
    ("rules: block by default, ND", BLOCKING, nd("fe80::1", 135), "out"),
    ("rules: block by default, the link", BLOCKING, Sent(str(EXIT), port=443, uid=ROOT, link=True), "out"),
    ("no kill switch", OPEN, Sent(OUTSIDE, port=443), "tunnel"),
    ("no kill switch, the LAN", OPEN, Sent("192.168.1.9", port=22), "out"),
    ("no kill switch, the tunnel's address", OPEN, Sent("192.168.1.9", port=80, source=str(FOUR)), "kept"),
    (
        "no kill switch, the LAN is blocked",
        with_(kill_switch=False, lan_allowed=False),
        Sent("192.168.1.9", port=22),
        "kept",
    ),
    ("paused", PAUSED, Sent(OUTSIDE, port=443), "out"),
    ("paused, a question", PAUSED, Sent("8.8.8.8", "udp", 53), "out"),
    ("paused, IPv6", PAUSED, Sent(OUTSIDE6, port=443), "out"),
    (
        "the link asks the resolver from before",
        ASKING,
        Sent("192.168.1.1", "udp", 53, uid=ROOT, link=True),
        "out",
    ),
    ("the link asks one outside", ASKING, Sent("1.1.1.1", "udp", 53, uid=ROOT, link=True), "out"),
    (
        "the forwarder asks a server of the LAN",
        SERVERS,
        Sent("192.168.1.9", "udp", 53, uid=ROOT, link=True),
        "out",
    ),
    ("kept from before", INBOUND, _SSH, "out"),
    ("not kept", PLAIN, _SSH, "kept"),
]

OPEN_NO_LAN = with_(kill_switch=False, lan_allowed=False)
DIFFERENT: list[tuple[str, Mode, Sent, str, str]] = [
    ("pf knows the link by root, addresses and ports", PLAIN, Sent(str(EXIT), port=443, uid=ROOT), "tunnel", "out"),
    ("macOS routes all of an exit's address past the tunnel", PLAIN, Sent(str(EXIT), port=443), "tunnel", "kept"),
    ("macOS routes all of an exit's address past the tunnel", PLAIN, Sent(str(EXIT), port=80), "tunnel", "kept"),
    ("pf cannot bring what leaves to another address", PLAIN, Sent("8.8.8.8", "tcp", 53), "forwarder", "kept"),
    ("only what enters the device is answered", PLAIN, Sent("192.168.1.1", "udp", 53), "forwarder", "kept"),
    ("only what enters the device is answered", OPEN, Sent("192.168.1.1", "udp", 53), "forwarder", "kept"),
    ("pf does not know the hop limit", NO_LAN, Sent("fe80::1", "ipv6-icmp", icmp_type=135), "kept", "out"),
    ("pf knows users of TCP and UDP only", USERS, Sent(OUTSIDE, "icmp", icmp_type=8, uid=OTHER), "out", "tunnel"),
    ("without the kill switch Linux keeps them in", OPEN_NO_LAN, nd("fe80::1", 135), "kept", "out"),
    ("macOS routes multicast by itself", OPEN, Sent("225.1.1.1", "udp", 5000), "kept", "out"),
    ("a bound socket's source is translated on Linux", RULES,
     Sent("192.168.1.9", port=2222, source=str(FOUR)), "out", "kept"),
    ("low ports are anybody's on macOS", NO_LAN, Sent("192.168.1.1", "udp", 67, 68), "out", "kept"),
    ("low ports are anybody's on macOS", NO_LAN, Sent("fe80::1", "udp", 547, 546), "out", "kept"),
]  # fmt: skip


@pytest.mark.parametrize(("title", "mode", "sent", "meant"), ALIKE, ids=[row[0] for row in ALIKE])
def test_both_answer_alike(title: str, mode: Mode, sent: Sent, meant: str) -> None:
    assert (by_linux(mode, sent), by_macos(mode, sent)) == (meant, meant)


@pytest.mark.parametrize(
    ("reason", "mode", "sent", "linux", "macos"),
    DIFFERENT,
    ids=[f"{row[0]}: {row[2].to}" for row in DIFFERENT],
)
def test_where_they_differ(reason: str, mode: Mode, sent: Sent, linux: str, macos: str) -> None:
    assert (by_linux(mode, sent), by_macos(mode, sent)) == (linux, macos)


# --- settings and packets that nobody has thought of ---

PLACES = (
    "192.168.1.9",
    "192.168.1.1",
    "8.8.8.8",
    "9.9.9.9",
    "93.184.216.34",
    "5.75.10.2",
    "224.0.0.251",
    "225.1.1.1",
)
PLACES6 = ("fd00:1::9", "fe80::9", "ff02::fb", "ff02::16", "ff0e::1", "2606:2800::1", "2a01::2")
NETWORKS = st.sampled_from(
    [
        ip_network(text)
        for text in ("8.8.0.0/16", "9.9.9.0/24", "9.0.0.0/8", "192.168.1.0/28", "2606:2800::/32")
    ]
)
PORTS = st.sampled_from([22, 25, 53, 67, 80, 443, 547, 853, 5353, 5355, 6000])
RULE = st.builds(
    FilterRule,
    st.sampled_from([Verdict.TUNNEL, Verdict.DIRECT, Verdict.BLOCK]),
    st.none() | st.lists(NETWORKS, max_size=2).map(tuple),
    st.lists(st.tuples(PORTS, st.integers(0, 99)).map(lambda pair: (pair[0], sum(pair))), max_size=2).map(
        tuple
    ),
)
MODES = st.builds(
    Mode,
    st.builds(
        lambda **changes: replace(SETTINGS, **changes),
        lan_allowed=st.booleans(),
        kill_switch=st.booleans(),
        dns_port=st.sampled_from([5300, None]),
        excluded=st.frozensets(NETWORKS, max_size=2),
        included=st.frozensets(NETWORKS, max_size=2),
        excluded_uids=st.frozensets(st.sampled_from([OTHER, OTHER + 1, 900]), max_size=3),
        rules=st.builds(
            FilterRules,
            st.lists(RULE, max_size=4).map(tuple),
            st.sampled_from([Verdict.TUNNEL, Verdict.DIRECT, Verdict.BLOCK]),
        ),
    ),
    paused=st.booleans(),
)


@st.composite
def packets(draw: st.DrawFn) -> Sent:
    to = draw(st.sampled_from(PLACES + PLACES6))
    six = ":" in to
    proto = draw(st.sampled_from(["tcp", "udp", "ipv6-icmp" if six else "icmp"]))
    uid = draw(st.sampled_from([USER, OTHER, ROOT]))
    if proto not in ("tcp", "udp"):
        kind = draw(st.sampled_from([128, 133, 135, 136, 143] if six else [8]))
        return Sent(to, proto, source_port=0, uid=uid, icmp_type=kind, hop_limit=255)
    return Sent(to, proto, draw(PORTS), draw(st.sampled_from([50000, 68, 546])), uid)


def reason_to_differ(mode: Mode, sent: Sent) -> str:
    """Why the answers may be others, as in DIFFERENT; empty if they must be equal."""
    found, destination = mode.settings, ip_address(sent.to)
    ported = sent.proto in ("tcp", "udp")
    if any(destination == exit.address for exit in found.exits):
        return "macOS routes all of an exit's address past the tunnel"
    if ported and sent.port == 53:
        return "DNS"
    if sent.uid in found.excluded_uids and not ported:
        return "pf knows users of TCP and UDP only"
    if destination.is_multicast:
        return "macOS routes multicast by itself"
    if mode.paused:
        return "in a pause macOS has no route into the tunnel"
    if sent.proto == "udp" and (sent.source_port, sent.port) in ((68, 67), (546, 547)) and sent.uid != ROOT:
        return "low ports are anybody's on macOS"
    if not found.kill_switch and not found.lan_allowed:
        return "without the kill switch Linux keeps DHCP and ND of a blocked LAN in"
    return ""


@settings(max_examples=60)
@given(MODES, packets())
def test_both_answer_alike_whatever_is_set_and_sent(mode: Mode, sent: Sent) -> None:
    linux, macos = by_linux(mode, sent), by_macos(mode, sent)
    reason = reason_to_differ(mode, sent)
    if not reason:
        assert linux == macos
    if macos == "out" and linux != "out" and mode.settings.kill_switch and not mode.paused:
        # What is kept in on Linux leaves by none of the differences, but for those that are named.
        assert reason.startswith("macOS routes all") and sent.uid == ROOT and sent.port == 443


@settings(max_examples=60)
@given(MODES, packets())
def test_no_question_leaves_past_the_kill_switch(mode: Mode, sent: Sent) -> None:
    if mode.paused or not mode.settings.kill_switch or sent.proto not in ("tcp", "udp"):
        return
    for port in (53, 853):
        asked = replace(sent, port=port)
        assert by_macos(mode, asked) != "out"
