"""The same rules in three places, on large generated sets: the proxy, the PAC file and system-wide mode agree.

    proxy          RuleSet.decide
    PAC file       FindProxyForURL in QuickJS: DIRECT, or the proxy, which decides then
    system-wide    the forwarder's word on a name and the filter's chain, as tests/support/filter_model.py models them

tests/lab/test_rules_lab.py asks the kernel's own filter about the addresses of the same sets. Sets for system-wide mode
leave out the rules that it refuses, and port 53, where no rule applies to it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.pac.script import pac
from cryprq_proxy.rules.syntax import Verdict
from tests.support.agreed_rules import ACTIONS, SEEDS, accepted
from tests.support.filter_model import filtered, named
from tests.support.pac_engine import DIRECT as PAC_DIRECT
from tests.support.pac_engine import HTTP, SOCKS, Engine
from tun.firewall.policy import Policy


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
