"""Words for what a start changes on Linux. The lab carries them out and compares."""

from __future__ import annotations

from ipaddress import ip_network
from socket import IPPROTO_TCP
from typing import Any

import pytest

from cryprq_proxy.errors import LocalError
from tun.linux.dry_run import _in_words, _undo_in_words
from tun.linux.resolver import resolved
from tun.linux.routing.route_rules import UNREACHABLE, RoutingRule
from tun.linux.routing.table_routes import TableRoute, into, unreachable
from tun.linux.routing.words import route_words, rule_words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            RoutingRule(4, 25400, mark=0x6372),
            "ip rule add priority 25400 fwmark 0x6372 table main protocol 114",
        ),
        (
            RoutingRule(6, 25401, UNREACHABLE, 0, mark=1),
            "ip -6 rule add priority 25401 fwmark 0x1 unreachable protocol 114",
        ),
        (
            RoutingRule(4, 25408, table=7, service=(IPPROTO_TCP, 53)),
            "ip rule add priority 25408 ipproto tcp dport 53 table 7 protocol 114",
        ),
        (
            RoutingRule(6, 25410, to=ip_network("2001:db8::/32")),
            "ip -6 rule add priority 25410 to 2001:db8::/32 table main protocol 114",
        ),
        (
            RoutingRule(4, 25411, uids=(5, 9)),
            "ip rule add priority 25411 uidrange 5-9 table main protocol 114",
        ),
    ],
)
def test_a_rule(rule: RoutingRule, words: str) -> None:
    assert rule_words("add", rule.arguments()) == words


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (unreachable(4), "ip route replace unreachable default metric 4294967295 table 25458 protocol 114"),
        (into(3, 4), "ip route replace default dev cryprq0 scope global table 25458 protocol 114"),
        (into(3, 6), "ip -6 route replace default dev cryprq0 metric 1024 table 25458 protocol 114"),
    ],
)
def test_a_route(route: TableRoute, words: str) -> None:
    assert route_words("replace", route.arguments(), "cryprq0") == words


@pytest.mark.parametrize("more", [{"priority_of_tomorrow": 1}, {"tos": 4}])
def test_what_has_no_words_is_not_left_out(more: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="no words"):
        rule_words("add", RoutingRule(4, 1).arguments() | more)
    with pytest.raises(LocalError, match="no words"):
        route_words("replace", unreachable(4).arguments() | more, "cryprq0")


def test_systemd_resolved() -> None:
    calls = resolved.calls(0, ["198.18.255.53", "fd63:7279:7071::53"])
    assert [_in_words(call, "cryprq0") for call in calls] == [
        "SetLinkLLMNR cryprq0 no",
        "SetLinkMulticastDNS cryprq0 no",
        "SetLinkDNSSEC cryprq0 no",
        "SetLinkDNSOverTLS cryprq0 no",
        "SetLinkDNS cryprq0 198.18.255.53 fd63:7279:7071::53",
        "SetLinkDomains cryprq0 ~.",
        "SetLinkDefaultRoute cryprq0 true",
        "FlushCaches",
    ]
    assert {_undo_in_words(call, "cryprq0") for call in calls} == {
        "systemd-resolved: RevertLink cryprq0; ends with the device",
        "nothing to undo",
    }
