"""Decisions, held against a judge that goes through the rules one by one (rule_cases.py)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules import lists
from cryprq_proxy.rules.engine import EVERYTHING, Decision, RuleSet, load_rules, pattern
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support.rule_cases import LABELS, cases, domains, judge, names, rule_sets, targets

TUNNEL, DIRECT, BLOCK = (RuleAction(verdict) for verdict in (Verdict.TUNNEL, Verdict.DIRECT, Verdict.BLOCK))


def decided(rules: RuleSet, *hosts: str, port: int = 443) -> list[int]:
    return [rules.decide(host, port).index for host in hosts]


def test_without_rules_everything_goes_through_the_tunnel() -> None:
    assert EVERYTHING.decide("www.example", 443) == Decision(TUNNEL, "default", -1)
    assert EVERYTHING.decide("192.0.2.1", 0) == Decision(TUNNEL, "default", -1)


def test_the_first_rule_that_applies_decides() -> None:
    rules = RuleSet(
        [
            Rule(action=DIRECT, domains=("a.corp.example",), name="the office"),
            Rule(action=BLOCK, domains=(".corp.example",), ports=((25, 25),)),
            Rule(action=RuleAction(Verdict.EXIT, "work"), domains=("*.corp.example",)),
            Rule(action=BLOCK, ports=((25, 25),)),
        ],
        TUNNEL,
    )
    assert rules.decide("a.corp.example", 25) == Decision(DIRECT, "the office", 0)
    assert rules.decide("b.corp.example", 25) == Decision(BLOCK, "rule 2", 1)
    assert rules.decide("b.corp.example", 443) == Decision(RuleAction(Verdict.EXIT, "work"), "rule 3", 2)
    assert rules.decide("corp.example", 443) == Decision(TUNNEL, "default", -1)
    assert rules.decide("192.0.2.1", 25) == Decision(BLOCK, "rule 4", 3)


def test_what_each_kind_of_domain_holds() -> None:
    rules = RuleSet(
        [
            Rule(action=BLOCK, domains=("exact.example",)),
            Rule(action=BLOCK, domains=(".tree.example",)),
            Rule(action=BLOCK, domains=("*.below.example",)),
            Rule(action=BLOCK, domains=("ad*.example",)),
            Rule(action=BLOCK, domains=("*track*",)),
        ],
        TUNNEL,
    )
    assert decided(rules, "exact.example", "tree.example", "a.b.tree.example", "a.b.below.example") == [
        0,
        1,
        1,
        2,
    ]
    assert decided(rules, "ad.example", "ads.b.example", "x.track.org", "untracked") == [3, 3, 4, 4]
    assert decided(rules, "x.exact.example", "xtree.example", "below.example", "bad.example") == [-1] * 4


def test_networks_hold_literals_only_and_no_name_is_an_address() -> None:
    rules = RuleSet(
        [Rule(action=DIRECT, cidrs=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")))], TUNNEL
    )
    assert decided(rules, "10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203", "2001:db8::1") == [0] * 4
    assert decided(rules, "11.0.0.0", "2001:db9::", "10.example", "host10", "::a01:203") == [-1] * 5
    everywhere = RuleSet(
        [Rule(action=BLOCK, cidrs=(ip_network("::/0"),)), Rule(action=DIRECT, domains=("*",))], TUNNEL
    )
    assert decided(everywhere, "::ffff:10.1.2.3", "10.1.2.3", "::", "a.example") == [-1, -1, 0, 1]


def test_odd_hosts_get_a_decision_as_well() -> None:
    rules = RuleSet([Rule(action=BLOCK, domains=(".example",), lists=(Path("x"),))], TUNNEL)
    for host in (
        "",
        ".",
        "..",
        "\ud800",
        "b\u00fccher",
        "1.2.3",
        "1",
        ":",
        "fe80::1%lo",
        "\u0661",
        "a" * 100_000,
    ):
        assert rules.decide(host, 443).index == -1


@given(rule_sets, targets)
def test_it_decides_as_the_judge_does(rules: tuple[Rule, ...], target: Destination) -> None:
    found = RuleSet(rules, TUNNEL).decide(*target)
    index = judge(rules, *target)
    assert found.index == index
    assert found.action == (rules[index].action if index >= 0 else TUNNEL)


@pytest.mark.parametrize(("seed", "rules"), [(1, 3), (2, 30), (3, 300), (4, 2000)])
def test_it_decides_as_the_judge_does_with_many_rules_and_lists(
    tmp_path: Path, seed: int, rules: int
) -> None:
    case = cases(seed, rules, 500, tmp_path)
    found = load_rules(case.rules, case.default)
    assert found.listed.problems == []
    wrong = [
        target
        for target in case.targets
        if found.decide(*target).index != judge(case.rules, *target, case.lists)
    ]
    assert wrong == []
    assert len({found.decide(*target).index for target in case.targets}) >= min(rules * 0.7, 60)


def test_the_cases_are_the_same_ones_for_a_seed(tmp_path: Path) -> None:
    assert cases(5, 50, 50, tmp_path) == cases(5, 50, 50, tmp_path)
    assert cases(5, 50, 50) != cases(6, 50, 50)


@given(domains.filter(lambda domain: "*" in domain), names)
def test_a_pattern_matches_what_a_shell_would_match(domain: str, name: str) -> None:
    assert (pattern(domain).fullmatch(name) is not None) == fnmatchcase(name, domain)


@given(st.text("ab*.", min_size=1, max_size=12).filter(lambda text: "*" in text), st.text("ab.", max_size=12))
def test_stars_in_all_places(domain: str, name: str) -> None:
    assert (pattern(domain).fullmatch(name) is not None) == fnmatchcase(name, domain)


def test_many_stars_take_no_time() -> None:
    """Without atomic groups this pattern takes longer than the universe is old."""
    rules = RuleSet([Rule(action=BLOCK, domains=("*".join(["a"] * 100) + "*b",))], TUNNEL)
    assert decided(rules, "a" * 253, "a" * 252 + "b") == [-1, 0]


def test_many_patterns_with_the_same_end() -> None:
    rules = RuleSet([Rule(action=BLOCK, domains=(f"ad{n}*.example",)) for n in range(500)], TUNNEL)
    assert decided(rules, "ad7.example", "ad77x.example", "ad499.example", "add.example") == [7, 7, 4, -1]


# --- lists ---


def test_lists_belong_to_their_rules(tmp_path: Path) -> None:
    ads, more = tmp_path / "ads.txt", tmp_path / "more.txt"
    ads.write_text("ads.example\n@@||ok.ads.example^\n")
    more.write_text("0.0.0.0 ok.ads.example\nnot a line\n")
    rules = load_rules(
        [
            Rule(action=BLOCK, lists=(ads,), ports=((80, 80),)),
            Rule(action=DIRECT, lists=(ads, more), domains=("here.example",)),
            Rule(action=BLOCK, lists=(more,)),
        ],
        TUNNEL,
    )
    assert decided(rules, "x.ads.example", port=80) == [0]
    assert decided(rules, "x.ads.example", "here.example", "ok.ads.example", "example") == [1, 1, 2, -1]
    assert [rules.in_lists(index, "ok.ads.example") for index in range(3)] == [False, False, True]
    assert [rules.in_lists(index, "ads.example") for index in range(3)] == [True, True, False]
    assert not rules.in_lists(1, "here.example")
    assert (len(rules.listed), rules.listed.broken) == (3, 1)
    assert str(rules.listed.problems[0]).startswith(f"{more}, line 2: 'not' is followed by something")
    assert decided(rules, "192.0.2.1") == [-1]


def test_each_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{label}.example\n" for label in LABELS))
    seen: list[tuple[int, int]] = []
    rules = load_rules(
        [Rule(action=BLOCK, lists=(path, path)) for _ in range(100)],
        TUNNEL,
        progress=lambda done, total: seen.append((done, total)),
    )
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert len(rules.listed) == len(LABELS)


def test_what_a_person_must_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.txt"
    rule = Rule(action=BLOCK, lists=(path,))
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        load_rules([rule], TUNNEL)
    path.write_text("a.example\nb.example\n")
    monkeypatch.setattr(lists, "MAX_NAMES", 1)
    with pytest.raises(ConfigError, match="more than 1 names"):
        load_rules([rule], TUNNEL)
