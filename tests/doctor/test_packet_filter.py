"""What rules of nftables do with the first packet of a client. Those of nft: tests/lab/test_doctor_lab.py."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.doctor.packet_filter import Fate, FirstPacket, culprit, matched

PACKET = FirstPacket(4, "tcp", 4433)


def chain(*rules: list[dict[str, Any]], policy: str = "drop", name: str = "input", **more: Any) -> list[Any]:
    where = {"family": "inet", "table": "filter"}
    base = {"name": name, "type": "filter", "hook": "input", "prio": 0, "policy": policy, **where, **more}
    return [{"chain": base}, *({"rule": {"chain": name, "expr": rule, **where}} for rule in rules)]


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
SENDER = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE = {"ct": {"key": "state"}}
ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}


def fate(ruleset: list[Any], packet: FirstPacket = PACKET) -> str:
    found = culprit(ruleset, "input", packet)
    return "passed" if found is None else str(found.fate)


@pytest.mark.parametrize(
    ("rules", "policy", "expected"),
    [
        ([], "drop", "dropped"),
        ([], "accept", "passed"),
        ([[match(PORT, 4433), ACCEPT]], "drop", "passed"),
        ([[match(PORT, 4434), ACCEPT]], "drop", "dropped"),
        ([[match(PORT, 4433), DROP]], "accept", "dropped"),
        ([[match(PORT, 4433), {"reject": {"type": "icmp"}}]], "accept", "dropped"),
        ([[match(PORT, {"set": [22, {"range": [4000, 5000]}]}), ACCEPT]], "drop", "passed"),
        ([[match(PORT, 4433, "!="), DROP]], "accept", "passed"),
        ([[match(PORT, "@ports"), ACCEPT]], "drop", "some"),
        ([[match(SENDER, "10.0.0.1"), match(PORT, 4433), ACCEPT]], "drop", "some"),
        ([[match(SENDER, "10.0.0.1"), DROP]], "accept", "passed"),
        ([[match(STATE, ["established", "related"], "in"), ACCEPT]], "drop", "dropped"),
        ([[match(STATE, {"set": ["new"]}), ACCEPT]], "drop", "passed"),
        ([[match({"meta": {"key": "iifname"}}, "lo"), ACCEPT]], "drop", "dropped"),
        ([[match({"meta": {"key": "iifname"}}, "lo", "!="), DROP]], "accept", "dropped"),
        ([[match({"meta": {"key": "iifname"}}, "eth0"), ACCEPT]], "drop", "some"),
        ([[match({"meta": {"key": "l4proto"}}, "udp"), ACCEPT]], "drop", "dropped"),
        ([[match({"payload": {"protocol": "udp", "field": "dport"}}, 4433), ACCEPT]], "drop", "dropped"),
        ([[match({"payload": {"protocol": "th", "field": "dport"}}, 4433), ACCEPT]], "drop", "passed"),
        ([[match({"payload": {"protocol": "ip", "field": "protocol"}}, "tcp"), ACCEPT]], "drop", "passed"),
        ([[match({"payload": {"protocol": "udp", "field": "dport"}}, 22, "!="), DROP]], "accept", "passed"),
        (
            [[match({"payload": {"protocol": "ip6", "field": "saddr"}}, "::1", "!="), ACCEPT]],
            "drop",
            "dropped",
        ),
        ([[match({"meta": {"key": "nfproto"}}, "ipv6"), ACCEPT]], "drop", "dropped"),
        ([[{"xt": {"type": "match", "name": "recent"}}, ACCEPT]], "drop", "some"),
        ([[{"limit": {"rate": 1}}, ACCEPT]], "drop", "some"),
        ([[{"counter": {"packets": 0}}, {"log": None}, DROP]], "accept", "dropped"),
        ([[{"queue": {"num": 1}}]], "drop", "passed"),
        ([[{"return": None}], [ACCEPT]], "drop", "dropped"),
        ([[{"vmap": {"key": STATE, "data": {"set": [["new", ACCEPT]]}}}]], "drop", "passed"),
        ([[{"vmap": {"key": STATE, "data": {"set": [["invalid", DROP]]}}}], [ACCEPT]], "drop", "passed"),
        ([[{"vmap": {"key": PORT, "data": "@map"}}]], "drop", "dropped"),
        ([[match([PORT, SENDER], "@both"), ACCEPT]], "drop", "some"),
    ],
)
def test_rules(rules: list[list[dict[str, Any]]], policy: str, expected: str) -> None:
    assert fate(chain(*rules, policy=policy)) == expected


@pytest.mark.parametrize(
    ("jump", "inner", "expected"),
    [
        ([{"jump": {"target": "more"}}], [[match(PORT, 4433), ACCEPT]], "passed"),
        ([{"jump": {"target": "more"}}], [[{"return": None}], [ACCEPT]], "dropped"),
        ([{"jump": {"target": "more"}}], [[DROP]], "dropped"),
        ([{"goto": {"target": "more"}}], [], "dropped"),
        ([match(SENDER, "@x"), {"jump": {"target": "more"}}], [[ACCEPT]], "some"),
        ([match(SENDER, "@x"), {"jump": {"target": "more"}}], [[DROP]], "dropped"),
        ([{"jump": {"target": "input"}}], [], "dropped"),
        ([{"jump": {"target": "nowhere"}}], [], "dropped"),
    ],
)
def test_chains_that_call_chains(jump: list[Any], inner: list[Any], expected: str) -> None:
    other = [{"rule": {"family": "inet", "table": "filter", "chain": "more", "expr": rule}} for rule in inner]
    assert fate([*chain(jump), *other]) == expected


def test_a_jump_that_goes_on_behind_it() -> None:
    other = [{"rule": {"family": "inet", "table": "filter", "chain": "more", "expr": [{"return": None}]}}]
    assert fate([*chain([{"jump": {"target": "more"}}], [ACCEPT]), *other]) == "passed"
    assert fate([*chain([{"goto": {"target": "more"}}], [ACCEPT]), *other]) == "dropped"


def test_only_what_is_about_the_packet_counts() -> None:
    assert fate(chain(family="ip6")) == "passed"
    assert fate(chain(family="ip6"), PACKET._replace(version=6)) == "dropped"
    for other in ({"hook": "output"}, {"type": "nat"}, {"family": "arp"}, {"table": "cryprq_exit"}):
        assert fate(chain(**other)) == "passed"


def test_the_chain_that_drops_all_is_named_before_one_that_drops_some() -> None:
    some = chain([match(SENDER, "@x"), ACCEPT], name="first", table="a")
    found = culprit([*some, *chain(name="second", table="b")], "input", PACKET)
    assert found is not None and (found.chain, found.fate) == ("second", Fate.DROPPED)


def test_a_device_that_is_known() -> None:
    inside = PACKET._replace(device="cryprq-exit0")
    left = {"meta": {"key": "iifname"}}
    assert matched({"op": "==", "left": left, "right": "cryprq-exit0"}, inside) is True
    assert matched({"op": "==", "left": left, "right": "eth0"}, inside) is False
    assert matched({"op": "!=", "left": left, "right": "eth0"}, inside) is True
