"""Rules in system-wide mode: what is kept is kept to the letter, and what is not is refused with its reason.

tests/support/filter_model.py models a running tunnel.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet, load_rules
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict, parse_cidr, parse_domain, parse_ports
from cryprq_proxy.service.system_wide import explain_rules
from cryprq_proxy.status import TunRules
from tests.support.filter_model import filtered, named
from tun.dns.names import from_text
from tun.firewall.policy import MAX_SHOWN, Policy, check, contradiction, filter_rules

BLOCK, DIRECT, TUNNEL = Verdict.BLOCK, Verdict.DIRECT, Verdict.TUNNEL
HOME = RuleAction(Verdict.EXIT, "home")


def rule(
    to: Verdict | RuleAction, hosts: str = "", ports: str = "", name: str = "", lists: tuple[Path, ...] = ()
) -> Rule:
    words = hosts.split()
    cidrs = [word for word in words if ":" in word or word[0].isdigit()]
    return Rule(
        action=to if isinstance(to, RuleAction) else RuleAction(to),
        domains=tuple(parse_domain(word) for word in words if word not in cidrs),
        cidrs=tuple(map(parse_cidr, cidrs)),
        ports=tuple(map(parse_ports, ports.split())),
        lists=lists,
        name=name,
    )


def rules(*found: Rule, default: Verdict | RuleAction = TUNNEL) -> RuleSet:
    return RuleSet(found, default if isinstance(default, RuleAction) else RuleAction(default))


LABELS = st.sampled_from(("a", "b", "ads"))
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "example"]))
DOMAINS = st.one_of(
    NAMES, NAMES.map(".{}".format), NAMES.map("*.{}".format), st.sampled_from(("ad*.example", "*a*"))
)
ADDRESSES = st.one_of(
    st.integers(0, 15).map(lambda number: f"192.0.2.{number}"),
    st.integers(0, 15).map(lambda number: f"2001:db8::{number:x}"),
    st.integers(0, 15).map(lambda number: f"::ffff:192.0.2.{number}"),
)
CIDRS = st.tuples(ADDRESSES, st.integers(0, 4)).map(
    lambda found: str(ip_network((found[0], (128 if ":" in found[0] else 32) - found[1]), strict=False))
)
PORTS = st.tuples(st.integers(1, 8), st.integers(0, 4)).map(lambda found: f"{found[0]}-{sum(found)}")
VERDICTS = st.sampled_from((BLOCK, DIRECT, TUNNEL))


@st.composite
def a_rule(draw: st.DrawFn) -> Rule:
    kind = draw(st.sampled_from(("names", "cidrs", "both", "ports")))
    hosts: list[str] = []
    if kind in ("names", "both"):
        hosts += draw(st.lists(DOMAINS, min_size=1, max_size=2))
    if kind in ("cidrs", "both"):
        hosts += draw(st.lists(CIDRS, min_size=1, max_size=3))
    # Names go with ports nowhere, which a single example shows as well as many.
    ports = draw(st.lists(PORTS, min_size=kind == "ports", max_size=2)) if kind in ("cidrs", "ports") else []
    verdict = draw(VERDICTS) if kind in ("cidrs", "ports") else draw(st.sampled_from((BLOCK, TUNNEL)))
    return rule(verdict, " ".join(hosts), " ".join(ports))


RULE_SETS = st.builds(
    lambda found, default: rules(*found, default=default),
    st.lists(a_rule(), max_size=5),
    st.one_of(st.just(TUNNEL), VERDICTS),
)


@given(RULE_SETS, st.lists(ADDRESSES, min_size=1, max_size=8), st.lists(NAMES, min_size=1, max_size=8))
def test_what_is_accepted_is_what_the_rules_say(
    found: RuleSet, addresses: list[str], names: list[str]
) -> None:
    assume(not check(found))
    policy = Policy(found)
    for port in range(1, 14):
        for address in addresses:
            literal = found.decide(address, port).action.verdict
            assert filtered(policy.filter, address, port) is literal
        for name in names:
            assert named(policy, name, port) is found.decide(name, port).action.verdict


@given(RULE_SETS)
def test_no_rule_that_goes_another_way_is_passed_over(found: RuleSet) -> None:
    """Each rule gets a name that only it matches: where the model disagrees, the rule is among the refused ones."""
    reasons = check(found)
    assume(reasons)
    fresh = [
        Rule(
            action=each.action,
            domains=(f"only{index}.example",) if each.domains else (),
            cidrs=each.cidrs,
            ports=each.ports,
        )
        for index, each in enumerate(found.rules)
    ]
    plain = RuleSet(fresh, found.default)
    assert check(plain) == reasons
    policy = Policy.__new__(Policy)
    loose = _unchecked(policy, plain)
    differ = {
        index
        for index in range(len(fresh))
        for port in range(1, 14)
        if named(loose, f"only{index}.example", port)
        is not plain.decide(f"only{index}.example", port).action.verdict
    }
    refused = {int(reason.split()[1]) - 1 for reason in reasons}
    assert {index for index in differ if fresh[index].domains} <= refused


def _unchecked(policy: Policy, found: RuleSet) -> Policy:
    policy.rules, policy.filter, policy.names = found, filter_rules(found), 1  # type: ignore[misc]
    return policy


# --- what is kept ---


def test_each_part_has_its_place(tmp_path: Path) -> None:
    ads = tmp_path / "ads.txt"
    ads.write_text("0.0.0.0 tracker.example\n||ads.example^\n@@||ok.ads.example^\n")
    found = load_rules(
        [
            rule(TUNNEL, "good.tracker.example"),
            rule(BLOCK, "192.0.2.0/24 .tracker.example", lists=(ads,)),
            rule(DIRECT, "10.0.0.0/8", "22"),
        ],
        RuleAction(TUNNEL),
    )
    policy = Policy(found)
    blocked = ("tracker.example", "a.tracker.example", "ads.example", "x.ads.example")
    assert [policy.blocks(from_text(name)) for name in blocked] == [True] * 4
    for name in ("good.tracker.example", "ok.ads.example", "www.example"):
        assert not policy.blocks(from_text(name))
    assert [(each.verdict, each.networks, each.ports) for each in policy.filter.rules] == [
        (BLOCK, (ip_network("192.0.2.0/24"),), ()),
        (DIRECT, (ip_network("10.0.0.0/8"),), ((22, 22),)),
    ]
    assert policy.status() == TunRules(rules=3, dns=2, filter=2, default="tunnel", direct=("10.0.0.0/8",))


def test_what_goes_past_the_tunnel_is_told_in_a_few_prefixes_or_not_at_all() -> None:
    def told(*found: Rule, default: Verdict = TUNNEL) -> object:
        return Policy(rules(*found, default=default)).status().direct

    assert told() == ()
    assert told(rule(DIRECT, "2001:db8::/32 10.0.0.0/9"), rule(DIRECT, "10.128.0.0/9", "22")) == (
        "10.0.0.0/8",
        "2001:db8::/32",
    )
    assert told(rule(DIRECT, ports="22")) is None
    assert told(default=DIRECT) is None
    many = " ".join(f"10.0.{number}.0/25" for number in range(MAX_SHOWN))
    assert told(rule(DIRECT, many)) is not None
    assert told(rule(DIRECT, many), rule(DIRECT, "11.0.0.0/8")) is None


@pytest.mark.parametrize(
    "wire",
    [
        b"\x041234\0",
        b"\x03192\x010\x012\x011\0",
        b"\x07www.ads\x07example\0",
        b"\x04\xff\x00ad\x07example\0",
        b"\0",
    ],
    ids=["number", "address", "dot in a label", "bytes", "root"],
)
def test_what_is_no_host_name_is_in_no_rule(wire: bytes) -> None:
    found = rules(rule(BLOCK, "*ad*.example 192.0.0.0/8 .ads.example"), default=BLOCK)
    assert not Policy(found).blocks(wire)


def test_a_rule_without_any_part_is_for_everything() -> None:
    policy = Policy(rules(rule(DIRECT), rule(TUNNEL, "192.0.2.0/24")))
    assert filtered(policy.filter, "192.0.2.1", 80) is DIRECT


def test_no_rules() -> None:
    policy = Policy(EVERYTHING)
    assert not policy.filter
    assert not policy.blocks(from_text("ads.example"))


def test_a_rule_for_ports_in_front_is_no_hindrance() -> None:
    found = rules(
        rule(DIRECT, ports="22"),
        rule(BLOCK, ports="25"),
        rule(TUNNEL, ".good.example"),
        rule(DIRECT, ports="22"),
    )
    assert check(found) == []
    every = rules(rule(TUNNEL, ports="1-65535"), rule(TUNNEL, "good.example"), default=DIRECT)
    assert check(every) == []
    blocks = rules(
        rule(BLOCK, ports="25"), rule(BLOCK, ".ads.example"), rule(DIRECT, ports="22"), default=DIRECT
    )
    assert check(blocks) == []


# --- what is refused ---


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (rules(default=HOME), r'the default "exit:home" picks an exit'),
        (
            rules(rule(HOME, "192.0.2.0/24")),
            r'rule 1 says "exit:home", and all packets go through the one that is',
        ),
        (
            rules(rule(BLOCK, ports="25"), rule(DIRECT, "corp.example")),
            r'rule 2 says "direct" for names, .*: give cidrs',
        ),
        (
            rules(rule(DIRECT, "corp.example 10.0.0.0/8", name="the office")),
            r'the office says "direct" for names',
        ),
        (rules(rule(BLOCK, "ads.example", "80")), r"rule 1 has names and ports, but a question for a name"),
        (
            rules(rule(TUNNEL, ports="22"), rule(BLOCK, "ads.example")),
            r"rule 2 blocks names, but rule 1 stands before it and lets .* put rule 2 first",
        ),
        (
            rules(rule(TUNNEL, "good.example"), rule(BLOCK, ports="25", name="no mail")),
            r'rule 1 says "tunnel" for names, but no mail decides by the port alone, .* put no mail first',
        ),
        (
            rules(rule(BLOCK, ports="1-100"), rule(TUNNEL, "good.example"), rule(DIRECT, ports="100-101")),
            r'rule 2 says "tunnel" for names, but rule 3 decides by the port alone',
        ),
        (rules(rule(TUNNEL, "good.example"), default=BLOCK), r'rule 1 says .* but the default is "block"'),
        (rules(rule(TUNNEL, "good.example"), default=DIRECT), r'rule 1 says .* but the default is "direct"'),
    ],
)
def test_what_is_refused(found: RuleSet, reason: str) -> None:
    (clause,) = check(found)
    with pytest.raises(ConfigError, match=f"^these rules do not work with --tun: {reason}") as caught:
        Policy(found)
    assert str(caught.value).endswith(clause)
    assert explain_rules(found, "192.0.2.1", 80) == f"system-wide mode refuses these rules: {clause}"


def test_the_rule_that_blocks_the_name_is_told_although_another_blocks_the_port() -> None:
    found = rules(rule(BLOCK, ports="25"), rule(BLOCK, ".ads.example"))
    assert explain_rules(found, "ads.example", 25) == "the DNS forwarder blocks the name, by rule 2"


def test_lists_are_names(tmp_path: Path) -> None:
    ads = tmp_path / "ads.txt"
    ads.write_text("ads.example\n")
    found = load_rules(
        [rule(DIRECT, lists=(ads,)), rule(BLOCK, lists=(ads,), ports="80")], RuleAction(TUNNEL)
    )
    assert [reason.split(",")[0] for reason in check(found)] == [
        'rule 1 says "direct" for names',
        "rule 2 has names and ports",
    ]
    with pytest.raises(ConfigError, match=r"instead \(and 1 more\)$"):
        Policy(found)


def test_contradictions() -> None:
    direct, block = rules(default=DIRECT), rules(default=BLOCK)
    assert not contradiction(EVERYTHING, lan=False, include=True)
    assert not contradiction(direct, lan=True, include=False)
    assert not contradiction(block, lan=False, include=False)
    assert "--include" in contradiction(block, lan=True, include=True)
    assert "--lan block" in contradiction(direct, lan=False, include=False)


# --- for people ---


EXPLAINED = rules(
    rule(BLOCK, ".ads.example 198.51.100.0/24"),
    rule(DIRECT, "10.0.0.0/8", name="the office"),
    rule(DIRECT, ports="22"),
    rule(BLOCK, ports="25"),
)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("www.ads.example", 443, "the DNS forwarder blocks the name, by rule 1"),
        ("198.51.100.7", 443, "the packet filter refuses it, by rule 1"),
        ("10.1.2.3", 443, "the packet filter sends it past the tunnel, by the office"),
        (
            "10.1.2.3",
            853,
            "it would go past the tunnel, by the office, but DNS in any form stays in the tunnel",
        ),
        ("10.1.2.3", 53, "the DNS forwarder answers whatever goes to port 53, and no rule concerns it"),
        (
            "www.example",
            22,
            "the packet filter sends it past the tunnel, by rule 3; a rule that names its address goes first",
        ),
        (
            "www.example",
            25,
            "the packet filter refuses it, by rule 4; a rule that names its address goes first",
        ),
        (
            "192.0.2.1",
            443,
            "it goes through the tunnel, if it is not on the LAN and not excluded, by default",
        ),
    ],
)
def test_explained(host: str, port: int, sentence: str) -> None:
    assert explain_rules(EXPLAINED, host, port) == sentence
