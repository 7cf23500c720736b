"""The client's anchor: what comes in, what cannot be done, and that its text is one that pfctl takes and prints."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.syntax import Verdict
from tests.support.macos.both_filters import EXIT, FOUR, OWN, SETTINGS, SIX, TUN, UPLINKS, WIFI
from tests.support.macos.pf_grammar import parse
from tests.support.macos.pf_model import Judgement, PfPacket, judge, with_anchor
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.filter_settings import Cgroup, FilterSettings, PagePlace
from tun.firewall.inbound import NOT_KEPT, Inbound
from tun.macos.asked import FIRST
from tun.macos.pf_rules import CLOSED, COUNTERS, Opened, anchor_rules
from tun.macos.pfctl import ANCHORS
from tun.settings import RESOLVER4

KEPT = Inbound(ephemeral=(49152, 65535))
FAR, NEIGHBOUR = "203.0.113.9", "192.168.1.9"


def comes_in(
    interface: str,
    to: Any,
    settings: FilterSettings = SETTINGS,
    inbound: Inbound = NOT_KEPT,
    *,
    source: str = FAR,
    opened: Opened = CLOSED,
    others: str = "",
    before: bool = True,
    **more: Any,
) -> Judgement:
    """`others`: rules of another program, before ours or behind."""
    values: dict[str, Any] = {"proto": "tcp", "source_port": 50000, "destination_port": 22} | more
    text = anchor_rules(settings, inbound, opened, UPLINKS)
    packet = PfPacket("in", interface, ip_address(source), ip_address(str(to)), **values)
    pf = with_anchor(ANCHORS["client"], text)
    pf.main.rules = others + pf.main.rules if before else pf.main.rules + others
    return judge(pf, packet)


def test_neighbours_do_not_reach_the_tunnels_address() -> None:
    for address, source in ((FOUR, "192.168.1.66"), (SIX, "fd00:1::66")):
        found = comes_in(WIFI, address, source=source)
        assert (found.passes, found.returns, found.label) == (False, False, "guard")
        assert comes_in("lo0", address, source=source).passes


@pytest.mark.parametrize(
    ("packet", "passes"),
    [
        ({"flags": "S"}, False),
        ({"flags": "SA"}, True),
        ({"flags": "A"}, True),
        ({"proto": "udp"}, False),
        ({"proto": "icmp", "icmp_type": 8}, False),
        ({"proto": "icmp", "icmp_type": 3}, True),
        ({"proto": "icmp", "icmp_type": 11}, True),
    ],
)
def test_the_tunnel_brings_answers_only(packet: dict[str, Any], passes: bool) -> None:
    found = comes_in(TUN, FOUR, **packet)
    assert found.passes is passes and (passes or found.label == "unsolicited")
    # An address that is not the tunnel's is nobody's to answer.
    assert not comes_in(TUN, OWN[4], **packet).passes


def test_what_programs_ask_of_the_device_itself_comes_back() -> None:
    asked: dict[str, Any] = {"proto": "udp", "destination_port": 53, "source": str(FOUR)}
    assert comes_in(TUN, RESOLVER4, **asked).passes
    assert comes_in(TUN, FOUR, proto="udp", source_port=53, source=str(RESOLVER4)).passes
    assert not comes_in(TUN, RESOLVER4, **asked | {"destination_port": 22}).passes


def test_inbound_keep_answers_by_the_uplink() -> None:
    found = comes_in(WIFI, OWN[4], inbound=KEPT)
    assert found.passes and found.keeps and not found.bound
    assert found.reply_to == (WIFI, "192.168.1.1")
    found = comes_in(WIFI, OWN[6], inbound=KEPT, source="2001:db8:9::1")
    assert found.reply_to == (WIFI, "fe80::1%en0")
    # A neighbour is answered itself, not through the gateway.
    found = comes_in(WIFI, OWN[4], inbound=KEPT, source="192.168.1.9")
    assert found.keeps and found.bound and found.reply_to is None
    # An answer to what began here before the tunnel is no new conversation.
    for packet in (
        {"flags": "A"},
        {"proto": "udp", "destination_port": 50001},
        {"proto": "udp", "source_port": 443},
    ):
        found = comes_in(WIFI, OWN[4], inbound=KEPT, **packet)
        assert found.passes and not found.keeps


# --- without it ---

OTHERS = "pass in all flags S/SA keep state\n"
"""What another program lets in; the state of it lets answers out, and no rule of ours is asked."""
NEW: list[dict[str, Any]] = [{}, {"proto": "udp", "destination_port": 137}, {"proto": "icmp", "icmp_type": 8}]
RULES = FilterRules((FilterRule(Verdict.BLOCK, None, ((25, 25),)),))


@pytest.mark.parametrize("packet", NEW)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("changed", [{}, {"rules": RULES}, {"lan": frozenset()}])
def test_who_may_not_be_answered_does_not_come_in(
    packet: dict[str, Any], before: bool, changed: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, **changed)
    for others in ("", OTHERS):
        found = comes_in(WIFI, OWN[4], settings, others=others, before=before, **packet)
        assert (found.passes, found.returns, found.keeps) == (False, False, False)
        strict = replace(settings, lan_allowed=False)
        assert not comes_in(
            WIFI, OWN[4], strict, source=NEIGHBOUR, others=others, before=before, **packet
        ).passes


@pytest.mark.parametrize("packet", NEW)
@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ({}, NEIGHBOUR),
        ({"lan_allowed": False, "excluded": frozenset({ip_network("203.0.113.0/24")})}, FAR),
        ({"lan_allowed": False, "guests": frozenset({ip_network("203.0.113.0/24")})}, FAR),
        ({"kill_switch": False}, FAR),
        # Who is answered is not known by the address then.
        ({"excluded_uids": frozenset({501})}, FAR),
        ({"included": frozenset({ip_network("8.8.8.0/24")})}, FAR),
        ({"rules": FilterRules((FilterRule(Verdict.DIRECT, None, ((22, 22),)),))}, FAR),
    ],
)
def test_who_may_be_answered_comes_in_as_others_decide(
    packet: dict[str, Any], changed: dict[str, Any], source: str
) -> None:
    settings = replace(SETTINGS, **changed)
    assert comes_in(WIFI, OWN[4], settings, source=source, **packet).passes
    assert comes_in(WIFI, OWN[4], settings, source=source, others=OTHERS, **packet).keeps
    others = "block drop in all\n"
    assert not comes_in(WIFI, OWN[4], settings, source=source, others=others, before=False, **packet).passes


def test_in_a_pause_everybody_comes_in() -> None:
    assert comes_in(WIFI, OWN[4], opened=Opened("open-1", True)).passes


def test_rules_are_not_about_answers_to_neighbours() -> None:
    found = comes_in(WIFI, OWN[4], replace(SETTINGS, rules=RULES), source=NEIGHBOUR)
    assert found.keeps and found.bound


@pytest.mark.parametrize(
    ("source", "packet"),
    [
        (str(EXIT), {"flags": "SA", "source_port": 443, "destination_port": 50001}),
        (str(EXIT), {"proto": "udp", "source_port": 4433, "destination_port": 62000}),
        (FAR, {"proto": "udp", "source_port": 53, "destination_port": 50001}),
        ("192.168.1.1", {"proto": "udp", "source_port": 67, "destination_port": 68}),
        (FAR, {"proto": "icmp", "icmp_type": 3}),
    ],
)
def test_answers_to_what_is_sent_past_the_tunnel_come_in(source: str, packet: dict[str, Any]) -> None:
    for settings in (SETTINGS, replace(SETTINGS, lan_allowed=False), replace(SETTINGS, rules=RULES)):
        found = comes_in(WIFI, OWN[4], settings, source=source, **packet)
        assert found.passes and not found.keeps


def test_text_that_pfctl_prints_is_taken_again() -> None:
    settings = replace(
        SETTINGS,
        excluded_uids=frozenset({0, 1, 2, 501, 600, 601}),
        excluded=frozenset({ip_network("9.9.9.0/24")}),
        page=PagePlace(ip_address("127.0.0.1"), 8080),  # type: ignore[arg-type]
    )
    opened = Opened("open-1", True, frozenset({ip_address("9.9.9.9")}))
    found = parse(anchor_rules(settings, KEPT, opened, UPLINKS))
    tables = "".join(f"table <{name}>\n" for name in found.tables)
    printed = "".join(f"{rule}\n" for rule in [*found.nat, *found.rules])
    again = parse(tables + printed)
    assert (again.nat, again.rules) == (found.nat, found.rules)
    assert found.rules[0].label == FIRST
    labels = {rule.label for rule in found.rules[1:]} - {"", "open-1"}
    assert labels <= set(COUNTERS)
    assert "user <= 2" in printed and "user 599 >< 602" in printed and "user = 501" in printed


def test_our_own_page_is_at_port_80_of_loopback() -> None:
    page = PagePlace(ip_address("127.0.0.1"), 8080)  # type: ignore[arg-type]
    found = comes_in(
        "lo0", "127.0.0.1", replace(SETTINGS, page=page), source="127.0.0.1", destination_port=80
    )
    assert found.passes and found.packet is not None and found.packet.destination_port == 8080


def test_what_pf_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="macOS has no cgroups"):
        anchor_rules(replace(SETTINGS, excluded_cgroups=frozenset({Cgroup("a", 1, 1)})))


def test_a_device_that_is_not_there_yet_lets_nothing_into_any_tunnel() -> None:
    """`utun` alone is the group of all such devices, other VPNs' too."""
    early = replace(SETTINGS, tun="utun", tunnel4=None, tunnel6=None, dns_port=None)
    pf = with_anchor(ANCHORS["client"], anchor_rules(early))
    for interface in ("utun3", WIFI):
        packet = PfPacket("out", interface, OWN[4], ip_address(FAR), "tcp", 50000, 443, uid=501)
        assert not judge(pf, packet).passes
