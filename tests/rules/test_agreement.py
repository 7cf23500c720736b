"""The same rules in three places, on large generated sets: the proxy, the PAC file and system-wide mode agree.

    proxy          RuleSet.decide
    PAC file       FindProxyForURL in QuickJS: DIRECT, or the proxy, which decides then
    system-wide    the forwarder's word on a name and the filter's chain, as tests/support/filter_model.py models them

tests/lab/test_rules_lab.py asks the kernel's own filter about the addresses of the same sets. Sets for system-wide mode
leave out the rules that it refuses, and port 53, where no rule applies to it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.pac.script import pac
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support import rule_cases
from tests.support.filter_model import filtered, named
from tests.support.pac_engine import DIRECT as PAC_DIRECT
from tests.support.pac_engine import HTTP, SOCKS, Engine, is_canonical
from tun.firewall.policy import Policy, check

ACTIONS = (RuleAction(Verdict.TUNNEL), RuleAction(Verdict.DIRECT), RuleAction(Verdict.BLOCK))
SEEDS = range(12)
RULES, TARGETS = 150, 2500


@functools.cache
def accepted(seed: int, directory: Path | None = None) -> tuple[RuleSet, tuple[Destination, ...]]:
    """Rules that all three accept, and targets for them."""
    cases = rule_cases.cases(seed, RULES, TARGETS, directory, actions=ACTIONS)
    kept: list[Rule] = []
    # Rules for addresses and ports are few among the cases, and names cannot be direct.
    networks = [ip_network(text) for text in rule_cases.NETWORKS if not text.endswith("/0")]
    for index, rule in enumerate(cases.rules):
        tried = [rule]
        if index % 3 == seed % 3:
            cidrs = tuple(networks[(index + step) % len(networks)] for step in range(1 + index % 2))
            ports = rule.ports or rule_cases.PORTS[index % len(rule_cases.PORTS) :][:1]
            tried.append(Rule(action=ACTIONS[index % 5 % 3], cidrs=cidrs, ports=ports if index % 2 else ()))
        for each in tried:
            if not check(RuleSet([*kept, each], cases.default)):
                kept.append(each)
    targets = dict.fromkeys([*filter(is_canonical, cases.targets), *_literals()])
    return load_rules(kept, cases.default), tuple(targets)


def _literals() -> Iterator[Destination]:
    """Around both ends of each network, at ports around those of rules."""
    for network in map(ip_network, rule_cases.NETWORKS):
        first, size = int(network.network_address), network.num_addresses
        for value in (first - 1, first, first + size // 2, first + size - 1, first + size):
            if 0 <= value < 1 << network.max_prefixlen:
                address = IPv4Address(value) if network.version == 4 else IPv6Address(value)
                for port in (21, 22, 25, 80, 443, 444, 6000, 6150, 65535):
                    yield Destination(str(address), port)


@pytest.mark.parametrize("seed", SEEDS)
def test_proxy_pac_and_system_wide_mode_agree(seed: int) -> None:
    rules, targets = accepted(seed)
    policy = Policy(rules)
    pac_answers = Engine(pac(rules, SOCKS, HTTP)).decide(targets)
    for target, said in zip(targets, pac_answers, strict=True):
        verdict = rules.decide(*target).action.verdict
        assert (said == PAC_DIRECT) == (verdict is Verdict.DIRECT), target
        assert _system_wide(policy, target) in (verdict, None), target


@pytest.mark.parametrize("seed", SEEDS)
def test_with_lists(seed: int, tmp_path: Path) -> None:
    """What only the proxy knows, the PAC file leaves to it."""
    rules, targets = accepted(seed, tmp_path)
    assert any(rule.lists for rule in rules.rules)
    policy = Policy(rules)
    pac_answers = Engine(pac(rules, SOCKS, HTTP)).decide(targets)
    for target, said in zip(targets, pac_answers, strict=True):
        verdict = rules.decide(*target).action.verdict
        assert said != PAC_DIRECT or verdict is Verdict.DIRECT, target
        assert _system_wide(policy, target) in (verdict, None), target


def _system_wide(policy: Policy, target: Destination) -> Verdict | None:
    host, port = target
    if port == 53:
        return None
    return filtered(policy.filter, host, port) if target.is_ip else named(policy, host, port)


def test_the_sets_say_something() -> None:
    """Each answer comes often, for names and for addresses, and by many rules."""
    seen: Counter[tuple[bool, Verdict]] = Counter()
    by: set[tuple[int, int]] = set()
    for seed in SEEDS:
        rules, targets = accepted(seed)
        assert len(rules.rules) > 40
        for target in targets:
            decision = rules.decide(*target)
            seen[target.is_ip, decision.action.verdict] += 1
            by.add((seed, decision.index))
    assert min(seen[literal, action.verdict] for literal in (True, False) for action in ACTIONS) > 2000, seen
    assert len(by) > 20 * len(SEEDS)
