"""The client's filter as text: its rules and their order, its sets, and what cannot get into it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.syntax import Verdict
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.filter_settings import Cgroup, ExitEndpoint, FilterSettings, Openings, PagePlace
from tun.firewall.inbound import NOT_KEPT, Inbound, InboundConnection
from tun.linux.firewall.client_table import COUNTERS, script
from tun.linux.firewall.marks import MarkKind, Marks
from tun.system import Count

FOUR, SIX = IPv4Address("198.18.0.2"), IPv6Address("fd63::2")
SETTINGS = FilterSettings(
    tun="cryprq0",
    mark=0x6372,
    exits=frozenset({ExitEndpoint(ip_address("5.75.10.2"), 443), ExitEndpoint(ip_address("2a01::2"), 443)}),
    tunnel4=FOUR,
    tunnel6=SIX,
    dns_port=5300,
)
MINIMAL = FilterSettings(tun="cryprq0", mark=0x6372, exits=frozenset())
_CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"

WITHOUT_KILL_SWITCH = replace(SETTINGS, kill_switch=False)


def named(text: str, kind: str, title: str) -> list[str]:
    """The lines inside of `chain title` or `set title`."""
    lines = text.splitlines()
    start = lines.index(f"    {kind} {title} {{")
    return [line.strip() for line in lines[start + 1 : lines.index("    }", start)]]


def elements(text: str, title: str) -> list[str]:
    for line in named(text, "set", title):
        if line.startswith("elements = { "):
            return line.removeprefix("elements = { ").removesuffix(" }").split(", ")
    return []


def test_the_table_is_replaced_in_one_transaction() -> None:
    first, second, third, *_ = script(MINIMAL).splitlines()
    assert (first, second, third) == (
        "add table inet cryprq",
        "delete table inet cryprq",
        "table inet cryprq {",
    )


def test_the_output_chain() -> None:
    assert named(script(SETTINGS), "chain", "output") == [
        "type filter hook output priority filter; policy drop;",
        'oifname "lo" accept',
        "fib daddr type local accept",
        "ct mark != 0 jump marked",
        "meta mark 0x6372 jump link",
        'oifname "cryprq0" goto tunnel',
        "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
        "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept",
        "ip6 hoplimit 255 icmpv6 type { 133, 135, 136 } accept",
        "ip6 daddr ff02::/16 icmpv6 type { 131, 132, 143 } accept",
        "ct direction reply ct status dnat th sport 5300 accept",
        "meta l4proto { tcp, udp } th dport { 53, 853, 5355 } counter name dns goto refuse",
        "meta skuid @uids accept",
        "ip daddr @excluded4 accept",
        "ip daddr @guests4 accept",
        "ip daddr @lan4 accept",
        "ip daddr { 224.0.0.0/24, 239.255.255.250/32, 255.255.255.255/32 } accept",
        "ip6 daddr @excluded6 accept",
        "ip6 daddr @guests6 accept",
        "ip6 daddr @lan6 accept",
        "ip6 daddr & ff0f:: == { ff02::, ff05:: } accept",
        "counter name blocked goto refuse",
    ]


def test_what_the_link_may_reach() -> None:
    assert named(script(SETTINGS), "chain", "link") == [
        "meta l4proto { tcp, udp } ip daddr . th dport @exits4 accept",
        "meta l4proto { tcp, udp } th dport 53 ip daddr @bootstrap4 accept",
        "meta l4proto { tcp, udp } ip6 daddr . th dport @exits6 accept",
        "meta l4proto { tcp, udp } th dport 53 ip6 daddr @bootstrap6 accept",
    ]


# Of the run 5 and its pause 2.
MARKS = Marks(5, 2)
BYPASS, INBOUND, PAUSED, DIRECT, BLOCKED = (
    "0x63701401",
    "0x63701402",
    "0x63701413",
    "0x63701404",
    "0x63701405",
)
DIRECT_RULE = FilterRules((FilterRule(Verdict.DIRECT, (ip_network("10.0.0.0/8"),)),))


def test_a_mark_is_accepted_only_while_its_setting_holds() -> None:
    def accepted(inbound: Inbound = NOT_KEPT, pause: int = 0, **changes: Any) -> tuple[list[str], ...]:
        text = script(replace(SETTINGS, **changes), inbound, Openings(pause), marks=MARKS)
        return tuple(
            [line for line in named(text, "chain", chain) if "ct mark" in line and line.endswith(ending)]
            for chain, ending in (("marked", "accept"), ("forward", "accept"), ("sources", "masquerade"))
        )

    assert accepted() == ([], [], [])
    lasting = f"ct mark {{ {INBOUND} }} accept"
    assert accepted(Inbound()) == ([lasting], [lasting], [])
    marked, forwarded, sources = accepted(rules=DIRECT_RULE)
    assert marked == forwarded == [f"ct mark {{ {DIRECT} }} accept"]
    assert all(f"ct mark {{ {DIRECT} }}" in line for line in sources) and len(sources) == 2
    marked, forwarded, sources = accepted(pause=3)
    assert marked == [f"ct mark {PAUSED} meta nfproto @open accept"]
    assert not forwarded
    assert all(f"ct mark {{ {PAUSED} }}" in line for line in sources) and len(sources) == 2


@pytest.mark.parametrize("pause", [0, 3])
def test_the_mark_of_a_pause_that_is_over_is_refused_before_anything_else(pause: int) -> None:
    text = script(SETTINGS, Inbound(), Openings(pause), marks=MARKS)
    output = named(text, "chain", "output")
    assert output[3] == "ct mark != 0 jump marked"
    marked = named(text, "chain", "marked")
    assert marked[pause and 1 :] == [
        f"ct mark {BLOCKED} counter name by_rule goto refuse",
        "ct mark & 0xfff00007 == 0x63700003 counter name stale goto refuse",
        f"ct mark {{ {INBOUND} }} accept",
    ]
    assert named(text, "chain", "over") == marked[pause and 1 : -1]
    assert (PAUSED in text) == bool(pause)


def test_a_mark_of_an_earlier_run_is_judged_anew() -> None:
    another = "ct mark & 0xfff00000 == 0x63700000 ct mark & 0xfffffc00 != 0x63701400 jump earlier"
    text = script(replace(SETTINGS, rules=DIRECT_RULE), Inbound(), marks=MARKS)
    assert named(text, "chain", "mark_in")[2] == named(text, "chain", "mark_out")[3] == another
    assert named(text, "chain", "earlier") == [
        "ct mark & 0xfff00007 == 0x63700003 return",
        f"ct mark & 0xfff00007 == 0x63700001 ct mark set {BYPASS} return",
        f"ct mark & 0xfff00007 == 0x63700002 ct mark set {INBOUND} return",
        "ct mark & 0xfff00007 == 0x63700004 ct direction reply return",
        "ct mark set 0",
        "meta mark != 0x6372 ct direction original iifname != @uplinks fib daddr type != local jump rules",
    ]
    assert named(script(SETTINGS, marks=MARKS), "chain", "earlier")[2:] == ["ct mark set 0"]
    assert elements(text, "run") == ["0x63701400"]


def test_the_way_into_the_tunnel() -> None:
    assert named(script(SETTINGS), "chain", "tunnel") == [
        "ip6 saddr { ::, fe80::/10 } drop",
        "ip daddr 224.0.0.0/3 counter name blocked goto refuse",
        "ip6 daddr ff00::/8 counter name blocked goto refuse",
        "meta l4proto { tcp, udp } th dport { 53, 853 } jump dns_past",
        "ip saddr 198.18.0.2 accept",
        "ip6 saddr fd63::2 accept",
        "counter name stale goto refuse",
    ]
    assert named(script(MINIMAL), "chain", "tunnel") == [
        "ip6 saddr { ::, fe80::/10 } drop",
        "ip daddr 224.0.0.0/3 counter name blocked goto refuse",
        "ip6 daddr ff00::/8 counter name blocked goto refuse",
        "meta l4proto { tcp, udp } th dport { 53, 853 } jump dns_past",
        "counter name stale goto refuse",
    ]
    assert not any("dns_past" in line for line in named(script(WITHOUT_KILL_SWITCH), "chain", "tunnel"))


@pytest.mark.parametrize(
    ("changes", "past"),
    [
        ({}, ["ip daddr @excluded4", "ip daddr @lan4", "ip6 daddr @excluded6", "ip6 daddr @lan6"]),
        (
            {"excluded_uids": frozenset({7}), "lan_allowed": False},
            [
                "meta skuid @uids",
                *("ip daddr @excluded4", "ip daddr @guests4", "ip6 daddr @excluded6", "ip6 daddr @guests6"),
            ],
        ),
        (
            {"included": frozenset({ip_network("10.0.0.0/8")})},
            [
                *("ip daddr @excluded4", "ip daddr @lan4", "ip daddr != @included4"),
                *("ip6 daddr @excluded6", "ip6 daddr @lan6", "ip6 daddr != @included6"),
            ],
        ),
    ],
)
def test_dns_over_tls_past_the_tunnel_is_refused_though_it_is_routed_into_it(
    changes: dict[str, Any], past: list[str]
) -> None:
    settings = replace(SETTINGS, **{"excluded_uids": frozenset(), **changes})
    assert named(script(settings), "chain", "dns_past") == [
        f"{which} counter name dns goto refuse" for which in past
    ]


def test_the_forward_chain() -> None:
    assert named(script(replace(SETTINGS, tunnel6=None)), "chain", "forward") == [
        "type filter hook forward priority filter; policy drop;",
        f'oifname "cryprq0" {_CLAMP}',
        f'iifname "cryprq0" {_CLAMP}',
        'iifname "cryprq0" ct state established,related accept',
        'iifname "cryprq0" counter name unsolicited drop',
        "ct mark != 0 jump over",
        'oifname "cryprq0" iifname @uplinks counter name forwarded goto refuse',
        'oifname "cryprq0" ct state established ct status & snat == 0 counter name stale goto refuse',
        'oifname "cryprq0" meta l4proto { tcp, udp } th dport { 53, 853 } jump dns_past',
        'oifname "cryprq0" accept',
        "meta l4proto { tcp, udp } th dport { 53, 853, 5355 } counter name dns goto refuse",
        "ip daddr @excluded4 accept",
        "ip saddr @excluded4 ct state established,related accept",
        "ip saddr @lan4 ip daddr @lan4 accept",
        "ip6 daddr @excluded6 accept",
        "ip6 saddr @excluded6 ct state established,related accept",
        "ip6 saddr @lan6 ip6 daddr @lan6 accept",
        "counter name forwarded goto refuse",
    ]


def test_the_rules_of_a_person() -> None:
    ten, office, six = map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"))
    rules = FilterRules(
        (
            FilterRule(Verdict.TUNNEL, (office,)),
            FilterRule(Verdict.DIRECT, (ten, office, six), ((22, 22), (80, 90), (85, 91))),
            FilterRule(Verdict.BLOCK, None, ((25, 25),)),
            FilterRule(Verdict.BLOCK, (six,)),
        ),
        Verdict.DIRECT,
    )
    text = script(replace(SETTINGS, rules=rules), marks=MARKS)
    assert named(text, "chain", "rules") == [
        "meta l4proto { tcp, udp } th dport 53 return",
        "meta nfproto ipv4 udp sport 68 udp dport 67 return",
        "meta nfproto ipv6 udp sport 546 udp dport 547 return",
        "ip daddr @rule1_4 return",
        "ip daddr @rule2_4 meta l4proto { tcp, udp } th dport { 22, 80-91 } goto past_the_tunnel",
        "ip6 daddr @rule2_6 meta l4proto { tcp, udp } th dport { 22, 80-91 } goto past_the_tunnel",
        "meta l4proto { tcp, udp } th dport { 25 } goto blocked",
        "ip6 daddr @rule4_6 goto blocked",
        "goto past_the_tunnel",
    ]
    assert named(text, "chain", "past_the_tunnel") == [
        "meta l4proto { tcp, udp } th dport { 53, 853, 5355 } return",
        f"ct mark set {DIRECT}",
    ]
    assert named(text, "chain", "blocked") == [f"ct mark set {BLOCKED}"]
    assert elements(text, "rule2_4") == ["10.0.0.0-10.255.255.255"]
    assert elements(text, "rule2_6") == ["2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"]
    first = "ct state new ct mark 0 ct status & confirmed == 0 jump rules"
    assert f"iifname != @uplinks fib daddr type != local {first}" in named(text, "chain", "mark_in")
    out = named(text, "chain", "mark_out")
    # What is excused altogether is so before, and never judged: all that follows is the mark for the route.
    assert out[-2] == f"meta mark != 0x6372 {first}"


def test_rules_that_do_nothing_cost_nothing() -> None:
    idle = FilterRules((FilterRule(Verdict.TUNNEL, (ip_network("10.0.0.0/8"),)),))
    assert script(replace(SETTINGS, rules=idle)) == script(SETTINGS)
    assert "jump rules" not in script(SETTINGS)


def test_dns_is_redirected_once_the_forwarder_is_known() -> None:
    text = script(SETTINGS)
    assert named(text, "chain", "dns_out") == [
        "type nat hook output priority -105; policy accept;",
        # Where a device of this machine has the resolver's address.
        'oifname "lo" ip daddr 198.18.255.53 meta l4proto { tcp, udp } th dport 53 dnat ip to 198.18.0.2:5300',
        'oifname "lo" ip6 daddr fd63:7279:7071::53 meta l4proto { tcp, udp } th dport 53 '
        "dnat ip6 to [fd63::2]:5300",
        'oifname "lo" return',
        "meta mark 0x6372 return",
        "meta l4proto { tcp, udp } th dport 53 dnat ip to 198.18.0.2:5300",
        "meta l4proto { tcp, udp } th dport 53 dnat ip6 to [fd63::2]:5300",
    ]
    assert named(text, "chain", "dns_in")[1:6] == [
        'iifname { "cryprq0", "lo" } return',
        "iifname @uplinks return",
        "ip daddr 198.18.255.53 meta l4proto { tcp, udp } th dport 53 dnat ip to 198.18.0.2:5300",
        "ip6 daddr fd63:7279:7071::53 meta l4proto { tcp, udp } th dport 53 dnat ip6 to [fd63::2]:5300",
        "fib daddr type local return",
    ]
    assert "dnat" not in script(replace(SETTINGS, dns_port=None))
    only4 = script(replace(SETTINGS, tunnel6=None))
    assert "dnat ip to" in only4 and "dnat ip6" not in only4


def test_resolvers_of_the_lan_are_open_for_marked_packets_while_configured() -> None:
    servers = frozenset(map(ip_address, ("192.168.1.2", "192.168.1.1", "fd00::1")))
    lines = set(script(replace(SETTINGS, name_servers=servers)).splitlines())
    assert {line.strip() for line in lines - set(script(SETTINGS).splitlines())} == {
        "meta l4proto { tcp, udp } th dport 53 ip daddr { 192.168.1.1, 192.168.1.2 } accept",
        "meta l4proto { tcp, udp } th dport 53 ip6 daddr { fd00::1 } accept",
    }


def test_dns_while_paused_goes_to_the_first_resolver_of_each_family() -> None:
    settings = replace(SETTINGS, portal_resolvers=(ip_address("192.0.2.1"), ip_address("192.0.2.2")))
    open_now = script(settings, NOT_KEPT, Openings(3), marks=MARKS)
    paused = [line for line in named(open_now, "chain", "dns_out") if "ct mark" in line]
    assert paused == [f"ct mark {PAUSED} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to 192.0.2.1:53"]
    assert "192.0.2.1" not in script(settings)


def test_excluded_cgroups_are_marked_but_not_their_dns() -> None:
    text = script(replace(SETTINGS, excluded_cgroups=frozenset({Cgroup("a.slice/b", 2, 7)})))
    mark = f"{Marks().of(MarkKind.EXCLUDED):#x}"
    socket = 'socket cgroupv2 level 2 "a.slice/b"'
    first = f"{socket} ct state new ct mark 0 ct status & confirmed == 0"
    assert [line for line in named(text, "chain", "mark_out") if socket in line] == [
        f"{first} meta l4proto != {{ tcp, udp }} ct mark set {mark}",
        f"{first} meta l4proto {{ tcp, udp }} th dport != {{ 53, 853, 5355 }} ct mark set {mark}",
    ]
    # What began in an earlier run goes on, but only from the same cgroup.
    (earlier,) = [line for line in named(text, "chain", "earlier") if socket in line]
    assert earlier.endswith(f"ct mark set {mark} return")
    assert f"ct mark {{ {mark} }} accept" in named(text, "chain", "marked")
    other = script(SETTINGS)
    assert "cgroupv2" not in other and mark not in other


def test_the_lan_blocked() -> None:
    text = script(replace(SETTINGS, lan_allowed=False))
    output = named(text, "chain", "output")
    assert "ip daddr @guests4 accept" in output
    assert not [line for line in output if "@lan" in line or "224.0.0.0" in line]
    assert "ip saddr @guests4 ip daddr @guests4 accept" in named(text, "chain", "forward")


def test_only_included_prefixes() -> None:
    text = script(replace(SETTINGS, included=frozenset({ip_network("192.0.2.0/24")})))
    output = named(text, "chain", "output")
    direct = output.index("ip daddr != @included4 ip daddr != @lan4 accept")
    assert direct > output.index(
        "meta l4proto { tcp, udp } th dport { 53, 853, 5355 } counter name dns goto refuse"
    )
    assert "ip6 daddr != @included6 ip6 daddr != @lan6 accept" in output


def test_the_kill_switch_off() -> None:
    text = script(replace(SETTINGS, kill_switch=False))
    assert "policy drop" not in text
    assert named(text, "chain", "output")[-1] == 'oifname "cryprq0" goto tunnel'
    assert named(text, "chain", "guard") == named(script(SETTINGS), "chain", "guard")
    assert named(text, "chain", "dns_out") == named(script(SETTINGS), "chain", "dns_out")
    blocked = script(replace(SETTINGS, kill_switch=False, lan_allowed=False))
    assert "ip daddr @lan4 counter name blocked goto refuse" in named(blocked, "chain", "output")


def test_nothing_for_the_tunnel_address_leaves_by_another_device() -> None:
    """A socket bound to a device asks for a name: sent to the forwarder, it would still take that device."""
    leaving = named(script(SETTINGS), "chain", "leaving")
    for ip, address in (("ip", SETTINGS.tunnel4), ("ip6", SETTINGS.tunnel6)):
        assert f"{ip} daddr {address} counter name dns drop" in leaving
    assert leaving.index('oifname { "cryprq0", "lo" } accept') == 3
    assert "icmp type { 3, 4, 5, 11, 12 } @th,160,32 0xc6120002 counter name stale drop" in leaving
    quoted = "icmpv6 type { 1, 2, 3, 4 } @th,128,128 0xfd630000000000000000000000000002"
    assert f"{quoted} counter name stale drop" in leaving


def test_dns_in_the_clear_leaves_by_no_other_device_whatever_was_said_before() -> None:
    clear = "meta mark != 0x6372 meta l4proto { tcp, udp }"
    rules = [
        f"{clear} th dport {{ 53, 853 }} counter name dns drop",
        f"{clear} ct direction original ct original proto-dst {{ 53, 853 }} counter name dns drop",
    ]
    assert named(script(SETTINGS), "chain", "leaving")[-3:-1] == rules
    bound = "meta mark != 0x6372 fib daddr type local counter name blocked drop"
    assert named(script(SETTINGS), "chain", "leaving")[-4] == bound
    assert not set(rules) & set(named(script(replace(SETTINGS, kill_switch=False)), "chain", "leaving"))


def test_whatever_leaves_has_the_address_of_its_device() -> None:
    """Containers get the tunnel address by NAT, and so does nothing else; what still has a wrong source is dropped."""
    assert named(script(SETTINGS), "chain", "sources") == [
        "type nat hook postrouting priority 95; policy accept;",
        'oifname "cryprq0" ip saddr != 198.18.0.2 masquerade',
        'oifname "cryprq0" ip6 saddr != fd63::2 masquerade',
    ]
    leaving = named(script(SETTINGS), "chain", "leaving")
    for ip, address in (("ip", SETTINGS.tunnel4), ("ip6", SETTINGS.tunnel6)):
        assert f'oifname "cryprq0" {ip} saddr != {address} counter name stale drop' in leaving
        assert f"{ip} saddr {address} counter name stale drop" in leaving


def test_connections_from_outside() -> None:
    kept = InboundConnection(ip_address("192.0.2.1"), 22, ip_address("198.51.100.7"), 50000)
    text = script(SETTINGS, Inbound(frozenset({kept}), (30000, 40000)), marks=MARKS)
    fresh = "ct state new ct mark 0 fib daddr type local"
    assert named(text, "chain", "mark_in") == [
        "type filter hook prerouting priority -160; policy accept;",
        'iifname { "cryprq0", "lo" } return',
        "ct mark & 0xfff00000 == 0x63700000 ct mark & 0xfffffc00 != 0x63701400 jump earlier",
        f"{fresh} tcp flags & (syn | ack) == syn ct mark set {INBOUND}",
        f"{fresh} udp sport >= 1024 udp dport != 30000-40000 ct mark set {INBOUND}",
        f"{fresh} icmp type echo-request ct mark set {INBOUND}",
        f"{fresh} icmpv6 type echo-request ct mark set {INBOUND}",
        f"ip daddr . tcp dport . ip saddr . tcp sport @kept4 ct mark set {INBOUND}",
        f"ip6 daddr . tcp dport . ip6 saddr . tcp sport @kept6 ct mark set {INBOUND}",
        f"ct mark {{ {BYPASS}, {INBOUND} }} meta mark set 0x6372",
    ]
    assert elements(text, "kept4") == ["192.0.2.1 . 22 . 198.51.100.7 . 50000"]
    assert len(named(script(SETTINGS), "chain", "mark_in")) == 4


def test_the_sets() -> None:
    networks = frozenset(map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/24", "192.168.1.0/24")))
    text = script(
        replace(
            SETTINGS,
            lan=networks | {ip_network("fe80::/10")},
            uplinks=frozenset({"wlan0", "eth0"}),
            excluded_uids=frozenset({1000, 7}),
        ),
        NOT_KEPT,
        Openings(9, {ip_address("192.0.2.1"): 3, ip_address("2001:db8::1"): 4, ip_address("192.0.2.2"): 0}),
    )
    assert elements(text, "lan4") == ["10.0.0.0/8", "192.168.0.0/23"]
    assert elements(text, "lan6") == ["fe80::/10"]
    assert elements(text, "uplinks") == ['"eth0"', '"wlan0"']
    assert elements(text, "uids") == ["7", "1000"]
    assert elements(text, "exits4") == ["5.75.10.2 . 443"]
    assert elements(text, "exits6") == ["2a01::2 . 443"]
    assert elements(text, "open") == ["ipv4 timeout 9s", "ipv6 timeout 9s"]
    assert elements(text, "bootstrap4") == ["192.0.2.1 timeout 3s"]
    assert elements(text, "bootstrap6") == ["2001:db8::1 timeout 4s"]


def test_counters_begin_with_what_they_had() -> None:
    text = script(MINIMAL, counts={"dns": Count(3, 99)})
    assert "    counter dns { packets 3 bytes 99; }" in text
    assert all(f"counter {each} {{" in text for each in COUNTERS)


networks = st.frozensets(st.ip_addresses().map(ip_network), max_size=4)
settings = st.builds(
    FilterSettings,
    tun=st.just("cryprq0"),
    mark=st.integers(1, 0xFFFFFFFF),
    exits=st.frozensets(st.builds(ExitEndpoint, st.ip_addresses(), st.integers(1, 65535)), max_size=3),
    tunnel4=st.none() | st.ip_addresses(v=4),
    tunnel6=st.none() | st.ip_addresses(v=6),
    dns_port=st.none() | st.integers(1, 65535),
    lan=networks,
    guests=networks,
    excluded=networks,
    included=networks,
    excluded_uids=st.frozensets(st.integers(0, 0xFFFFFFFE), max_size=3),
    lan_allowed=st.booleans(),
    kill_switch=st.booleans(),
)


@given(settings)
def test_what_holds_for_all_settings(some: FilterSettings) -> None:
    """Braces balance, whatever is used is declared, and the kill switch decides about the policies."""
    text = script(some)
    assert text.count("{") == text.count("}")
    declared = {line.split()[1] for line in text.splitlines() if line.strip().startswith("set ")}
    used = {word[1:] for word in text.split() if word.startswith("@") and not word.startswith("@th,")}
    assert used <= declared
    for chain in ("output", "forward"):
        head, *_ = named(text, "chain", chain)
        assert head.endswith("policy drop;" if some.kill_switch else "policy accept;")
    if some.kill_switch:
        assert named(text, "chain", "output")[-1] == "counter name blocked goto refuse"


@pytest.mark.parametrize(
    "wrong",
    [
        {"tun": "cryprq*"},
        {"tun": 'a"b'},
        {"tun": ""},
        {"tun": "lo"},
        {"tun": "sixteen-letters-"},
        {"uplinks": frozenset({"eth 0"})},
        {"uplinks": frozenset({"cryprq0"})},
        {"mark": 0},
        {"mark": 0x100000000},
        {"dns_port": 0},
        {"dns_port": 65536},
        {"exits": frozenset({ExitEndpoint(FOUR, 0)})},
        {"excluded_uids": frozenset({-1})},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(SETTINGS, **wrong)


def test_containers_enter_the_tunnel_only_with_an_address_that_is_answered() -> None:
    accept = 'oifname "cryprq0" accept'
    assert accept in named(script(SETTINGS), "chain", "forward")
    without = replace(SETTINGS, tunnel4=None, tunnel6=None)
    assert accept not in named(script(without), "chain", "forward")


# --- our own page ---

PAGE = PagePlace(IPv4Address("127.8.7.6"), 4444)


def test_our_own_page_is_in_the_table_while_it_is_open() -> None:
    assert "127.8.7.6" not in script(SETTINGS)
    rules = named(script(replace(SETTINGS, page=PAGE)), "chain", "dns_out")
    assert rules.index(
        'oifname "lo" ip daddr 127.8.7.6 tcp dport 80 dnat ip to 127.8.7.6:4444'
    ) < rules.index('oifname "lo" return')


def test_what_goes_past_the_tunnel_does_not_come_to_our_own_page() -> None:
    excluding = replace(
        SETTINGS,
        page=PAGE,
        excluded_uids=frozenset({7}),
        excluded_cgroups=frozenset({Cgroup("system.slice/backup.service", 2, 7)}),
    )
    meant = 'oifname "lo" ip daddr 127.8.7.6 tcp dport 80'
    assert [rule for rule in named(script(excluding), "chain", "dns_out") if meant in rule] == [
        f'{meant} socket cgroupv2 level 2 "system.slice/backup.service" return',
        f"{meant} meta skuid @uids return",
        f"{meant} dnat ip to 127.8.7.6:4444",
    ]


def test_in_a_pause_a_question_for_our_own_name_still_comes_to_the_forwarder() -> None:
    """Before the rule that sends all others to the network's resolvers."""
    settings = replace(SETTINGS, portal_resolvers=(IPv4Address("192.168.1.1"), IPv6Address("2001:db8::1")))
    asks = "udp dport 53 @th,160,104 & 0xffdfdfdfdfdfdfffdfdfdfdfff == 0x06435259505251045445535400"
    assert asks not in script(settings)
    rules = named(script(settings, openings=Openings(5)), "chain", "dns_out")
    own = [rule for rule in rules if rule.startswith(asks)]
    assert own == [f"{asks} dnat ip to 198.18.0.2:5300", f"{asks} dnat ip6 to [fd63::2]:5300"]
    others = [number for number, rule in enumerate(rules) if "192.168.1.1" in rule or "2001:db8::1" in rule]
    assert len(others) == 2 and rules.index(own[1]) < min(others)
    assert asks not in script(replace(settings, dns_port=None), openings=Openings(5))
