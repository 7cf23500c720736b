"""The PAC file, run in a JavaScript engine of its own (QuickJS) and held against what the rules decide.

tests/e2e/test_pac_browser.py does the same in Chromium.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from pathlib import Path

import pytest
import quickjs
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination, parse_host_port
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet, load_rules
from cryprq_proxy.rules.pac.script import MAX_SIZE, MAX_WILDCARDS, explain, pac
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support import rule_cases
from tests.support.pac_engine import DIRECT, HTTP, PROXY, SOCKS, Engine, is_canonical

TUNNEL_ = RuleAction(Verdict.TUNNEL)
DIRECT_ = RuleAction(Verdict.DIRECT)
BLOCK_ = RuleAction(Verdict.BLOCK)


def engine(*rules: Rule, default: RuleAction = TUNNEL_) -> Engine:
    return Engine(pac(RuleSet(rules, default), SOCKS, HTTP))


def direct(*domains: str, ports: tuple[tuple[int, int], ...] = (), cidrs: tuple[str, ...] = ()) -> Rule:
    return Rule(action=DIRECT_, domains=domains, ports=ports, cidrs=tuple(map(ip_network, cidrs)))


def expected(rules: RuleSet, targets: Sequence[Destination]) -> list[str]:
    return [DIRECT if rules.decide(*target).action.verdict is Verdict.DIRECT else PROXY for target in targets]


def differences(rules: RuleSet, targets: Sequence[Destination]) -> list[tuple[Destination, str, str]]:
    targets = list(filter(is_canonical, targets))
    answers = Engine(pac(rules, SOCKS, HTTP)).decide(targets)
    said = expected(rules, targets)
    return [each for each in zip(targets, answers, said, strict=True) if each[1] != each[2]]


# --- against the rules ---


@pytest.mark.parametrize("seed", range(40))
def test_says_direct_exactly_where_the_rules_do(seed: int) -> None:
    cases = rule_cases.cases(seed, rules=1 + 2 * seed, targets=1000)
    rules = RuleSet(cases.rules, cases.default)
    assert differences(rules, cases.targets) == []


def test_the_cases_have_both_answers() -> None:
    seen = [0, 0]
    for seed in range(40):
        cases = rule_cases.cases(seed, rules=1 + 2 * seed, targets=1000)
        for answer in expected(RuleSet(cases.rules, cases.default), cases.targets):
            seen[answer == DIRECT] += 1
    assert min(seen) > 4000


@pytest.mark.parametrize("seed", range(20))
def test_with_two_actions_only(seed: int) -> None:
    """Direct and tunnel take turns more often, so that there are more groups."""
    cases = rule_cases.cases(seed, rules=100, targets=2000, actions=(TUNNEL_, DIRECT_))
    assert differences(RuleSet(cases.rules, cases.default), cases.targets) == []


@given(rule_cases.rule_sets, st.sampled_from(rule_cases.ACTIONS), st.lists(rule_cases.targets, max_size=40))
def test_any_rules(rules: tuple[Rule, ...], default: RuleAction, targets: list[Destination]) -> None:
    assert differences(RuleSet(rules, default), targets) == []


PLAIN = st.tuples(st.sampled_from(["", ".", "*."]), rule_cases.names)


@given(
    st.lists(st.tuples(st.sampled_from([TUNNEL_, DIRECT_]), PLAIN), max_size=6),
    st.lists(st.sampled_from(["", "a."]), min_size=1),
)
def test_names_above_and_below_each_other(
    rules: list[tuple[RuleAction, tuple[str, str]]], more: list[str]
) -> None:
    """Without patterns and with the proxy as default, keys are left out that no direct one can follow."""
    made = [Rule(action=action, domains=(before + name,)) for action, (before, name) in rules]
    targets = [Destination(each + name, 80) for _, (_, name) in rules for each in more]
    assert differences(RuleSet(made, TUNNEL_), targets) == []


@pytest.mark.parametrize("above", [".example", "*.example", ".a.b.example", "*.b.example"])
def test_a_direct_name_below_a_blocked_one(above: str) -> None:
    rules = (Rule(action=BLOCK_, domains=(above,)), direct("a.b.example", "c.test"))
    assert engine(*rules).ask("http://a.b.example/", "a.b.example") == PROXY
    assert engine(*reversed(rules)).ask("http://a.b.example/", "a.b.example") == DIRECT


@pytest.mark.parametrize("seed", range(20))
def test_with_lists_direct_is_only_what_is_certain(seed: int, tmp_path: Path) -> None:
    cases = rule_cases.cases(seed, rules=60, targets=2000, directory=tmp_path)
    rules = load_rules(cases.rules, cases.default)
    bold = [each for each in differences(rules, cases.targets) if each[1] == DIRECT]
    assert bold == []


def test_lists_do_not_send_all_to_the_proxy(tmp_path: Path) -> None:
    """What stands before them, and addresses, are as certain as ever."""
    ads = tmp_path / "ads.txt"
    ads.write_text("ads.example\n")
    rules = load_rules(
        [
            direct(".corp.example"),
            Rule(action=BLOCK_, lists=(ads,)),
            direct(".dev.example", cidrs=("10.0.0.0/8",)),
        ],
        TUNNEL_,
    )
    found = Engine(pac(rules, SOCKS, HTTP)).decide(
        [Destination(host, 80) for host in ("a.corp.example", "10.1.2.3", "a.dev.example", "ads.example")]
    )
    assert found == [DIRECT, DIRECT, PROXY, PROXY]


def test_a_list_for_some_ports_leaves_the_others(tmp_path: Path) -> None:
    ads = tmp_path / "ads.txt"
    ads.write_text("ads.example\n")
    rules = load_rules([Rule(action=BLOCK_, lists=(ads,), ports=((443, 443),))], DIRECT_)
    found = Engine(pac(rules, SOCKS, HTTP)).decide(
        [Destination("a.example", 443), Destination("a.example", 80)]
    )
    assert found == [PROXY, DIRECT]


def test_a_direct_list_before_a_direct_default(tmp_path: Path) -> None:
    """It is direct one way or the other."""
    ads = tmp_path / "near.txt"
    ads.write_text("near.example\n")
    rules = load_rules([Rule(action=DIRECT_, lists=(ads,)), direct(".far.example")], TUNNEL_)
    found = Engine(pac(rules, SOCKS, HTTP)).decide(
        [Destination(host, 80) for host in ("near.example", "x.far.example", "else.example")]
    )
    assert found == [PROXY, DIRECT, PROXY]


def test_domains_of_a_direct_rule_with_lists_are_certain(tmp_path: Path) -> None:
    """An exception takes back what the list says, not what the rule says itself."""
    near = tmp_path / "near.txt"
    near.write_text("near.example\n@@||also.example^\n")
    rules = load_rules([Rule(action=DIRECT_, domains=("also.example",), lists=(near,))], TUNNEL_)
    assert rules.decide("also.example", 80).action == DIRECT_
    assert Engine(pac(rules, SOCKS, HTTP)).ask("http://also.example/", "also.example") == DIRECT


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://near.example/", "near.example"),
        ("http://near.example", "near.example"),
        ("http://near.example/a?b#c", "near.example"),
        ("http://near.example?b", "near.example"),
        ("http://near.example#c", "near.example"),
        ("HTTP://NEAR.Example/", "NEAR.Example"),
        ("http://near.example./", "near.example."),
        ("http://near.example./", "near.example"),
        ("http://near.example:80/", "near.example"),
        ("http://near.example:/", "near.example"),
        ("http://near.example:0080/", "near.example"),
        ("ws://near.example/", "near.example"),
        ("other://near.example:80/", "near.example"),
        ("http://user@near.example/", "near.example"),
        ("http://user:pass@near.example:80/", "near.example"),
        ("http://far.example@near.example/", "near.example"),
        ("http://far.example:1@x@near.example/", "near.example"),
        ("http://near.example/@far.example/", "near.example"),
        ("http://near.example/http://far.example/", "near.example"),
        ("http://[2001:db8::7]/", "2001:db8::7"),
        ("http://[2001:db8::7]/", "[2001:db8::7]"),
        ("http://[2001:DB8:0::0007]:80/", "2001:DB8:0::0007"),
        ("http://[2001:db8:0:0:0:0:0:7]/", "2001:db8:0:0:0:0:0:7"),
        ("http://[2001:db8::0.0.0.7]/", "2001:db8::0.0.0.7"),
        ("http://10.1.2.3/", "10.1.2.3"),
        ("http://10.1.2.3./", "10.1.2.3"),
        ("http://[::ffff:10.1.2.3]/", "::ffff:10.1.2.3"),
        ("http://[::ffff:a01:203]/", "::ffff:a01:203"),
        ("http://[0:0:0:0:0:ffff:a01:203]/", "[0:0:0:0:0:ffff:a01:203]"),
    ],
)
def test_one_host_in_all_spellings(url: str, host: str) -> None:
    rule = direct("near.example", cidrs=("10.0.0.0/8", "2001:db8::7/128"), ports=((80, 80),))
    assert engine(rule).ask(url, host) == DIRECT


@pytest.mark.parametrize(
    ("scheme", "port"), [("http", 80), ("ws", 80), ("https", 443), ("wss", 443), ("ftp", 21), ("WSS", 443)]
)
def test_ports_of_schemes(scheme: str, port: int) -> None:
    right, wrong = direct(ports=((port, port),)), direct(ports=((1, port - 1), (port + 1, 65535)))
    assert engine(right).ask(f"{scheme}://a.example/", "a.example") == DIRECT
    assert engine(wrong).ask(f"{scheme}://a.example/", "a.example") == PROXY


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("", ""),
        ("http://", ""),
        ("http:///", ""),
        ("http:/a.example/", "a.example"),
        ("a.example", "a.example"),
        ("//a.example/", "a.example"),
        ("unknown://a.example/", "a.example"),
        ("constructor://a.example/", "a.example"),
        ("http://a.example:65536/", "a.example"),
        ("http://a.example:1e3/", "a.example"),
        ("http://a.example:-1/", "a.example"),
        ("http://a.example:80:80/", "a.example"),
        ("http://a.example: 80/", "a.example"),
        ("http://a.example/", "b.example"),
        ("http://a.example/", ""),
        ("http://a.example/", "a.example:80"),
        ("http://a.example/", "xa.example"),
        ("http://a.example\\@b.example/", "b.example"),
        ("http://a.example\\b/", "a.example"),
        ("http://a b@a.example/", "a.example"),
        ("\nhttp://a.example/", "a.example"),
        ("http://a..example/", "a..example"),
        ("http://.a.example/", ".a.example"),
        ("http://a.example../", "a.example.."),
        ("http://./", "."),
        ("http://a%2eexample/", "a%2eexample"),
        ("http://b\u00fccher.example/", "b\u00fccher.example"),
        ("http://a.example\0/", "a.example"),
        (f"http://{'a' * 64}.example/", f"{'a' * 64}.example"),
        (f"http://{'a.' * 127}b/", f"{'a.' * 127}b"),
        ("http://127.1/", "127.1"),
        ("http://0x7f000001/", "0x7f000001"),
        ("http://2130706433/", "2130706433"),
        ("http://010.0.0.1/", "010.0.0.1"),
        ("http://1.2.3.256/", "1.2.3.256"),
        ("http://1.2.3.4.5/", "1.2.3.4.5"),
        ("http://a.example.1/", "a.example.1"),
        ("http://[::1/", "::1"),
        ("http://::1/", "::1"),
        ("http://[]/", ""),
        ("http://[::1%25lo]/", "::1%25lo"),
        ("http://[fe80::1%lo]/", "fe80::1%lo"),
        ("http://[1::2::3]/", "1::2::3"),
        ("http://[1:2:3:4::5:6:7:8::9]/", "1:2:3:4::5:6:7:8::9"),
        ("http://[:::]/", ":::"),
        ("http://[1:2:3:4:5:6:7]/", "1:2:3:4:5:6:7"),
        ("http://[1:2:3:4:5:6:7:8:9]/", "1:2:3:4:5:6:7:8:9"),
        ("http://[1:2:3:4:5:6:7:8::]/", "1:2:3:4:5:6:7:8::"),
        ("http://[1:2:3:4:5:6:7:]/", "1:2:3:4:5:6:7:"),
        ("http://[12345::]/", "12345::"),
        ("http://[::1.2.3]/", "::1.2.3"),
        ("http://[::1.2.3.256]/", "::1.2.3.256"),
        ("http://[1.2.3.4]/", "1.2.3.4"),
    ],
)
def test_what_is_no_url_goes_to_the_proxy(url: str, host: str) -> None:
    """Even where everything is direct."""
    assert engine(default=DIRECT_).ask(url, host) == PROXY


@pytest.mark.parametrize("host", ["cryprq.test", "CRYPRQ.test."])
def test_our_own_name_goes_to_the_proxy(host: str) -> None:
    """Even where everything is direct: no resolver sees it."""
    assert engine(default=DIRECT_).ask(f"http://{host}/", host) == PROXY
    assert "answers itself" in explain(RuleSet((), DIRECT_), "cryprq.test", 80)


def test_calls_that_are_none_go_to_the_proxy() -> None:
    context = quickjs.Context()
    context.eval(pac(RuleSet((), DIRECT_), SOCKS, HTTP))
    thrower = "{toString: function () { throw 1; }}"
    for arguments in (
        "",
        "null, null",
        "{}, []",
        f"{thrower}, 'a.example'",
        f"'http://a.example/', {thrower}",
    ):
        assert context.eval(f"FindProxyForURL({arguments})") == PROXY


@given(
    st.text() | st.from_regex(r"\A[a-z]{2,5}://[a-z0-9.:@\[\]%\\_-]{0,40}(/.*)?\Z"),
    st.text() | st.from_regex(r"\A[a-z0-9.:\[\]%_-]{0,30}\Z"),
)
def test_direct_means_a_host_that_the_proxy_would_understand_the_same(url: str, host: str) -> None:
    if engine(default=DIRECT_).ask(url, host) == DIRECT:
        authority = re.split(r"[/?#]", url.partition("://")[2])[0].rpartition("@")[2].removesuffix(":")
        target = parse_host_port(authority, 0)
        assert target.host == parse_host_port(host, 0).host


@given(st.integers(0, (1 << 128) - 1))
def test_every_spelling_of_an_ipv6_address(value: int) -> None:
    address = IPv6Address(value)
    run = engine(direct(cidrs=(f"{address}/128",)), direct(cidrs=("::ffff:0:0/96",)))
    spellings = [str(address), address.exploded, address.exploded.upper()]
    tail = f"{value >> 24 & 255}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    spellings.append(":".join(address.exploded.split(":")[:6]) + ":" + tail)
    assert {run.ask(f"http://[{each}]/", each) for each in spellings} == {DIRECT}


# --- names that a script may stumble over ---


@pytest.mark.parametrize("name", ["__proto__", "constructor", "tostring", "hasownproperty", "0a", "-", "_"])
def test_names_that_mean_something_to_javascript(name: str) -> None:
    assert engine(direct(name)).ask(f"http://{name}/", name) == DIRECT
    assert engine(direct("a.example")).ask(f"http://{name}/", name) == PROXY
    assert engine(direct(f".{name}")).ask(f"http://a.{name}/", f"a.{name}") == DIRECT


def test_a_pattern_of_stars_ends_soon() -> None:
    """A backtracking expression would take years."""
    run = engine(direct("*a" * 100 + "*.example"))
    name = ".".join(["a" * 63] * 3 + ["test"])
    assert run.ask(f"http://{name}/", name) == PROXY


def test_parts_of_a_pattern_do_not_overlap() -> None:
    run = engine(direct("ab*ba.example", "x*y*y.example"))
    hosts = ["aba.example", "abba.example", "ab1ba.example", "xy.example", "xyy.example", "x1y2y.example"]
    assert run.decide([Destination(host, 80) for host in hosts]) == [
        PROXY,
        DIRECT,
        DIRECT,
        PROXY,
        DIRECT,
        DIRECT,
    ]


# --- the file ---


def test_no_rules() -> None:
    assert engine().ask("http://a.example/", "a.example") == PROXY
    assert pac(EVERYTHING, SOCKS, HTTP) == pac(EVERYTHING, SOCKS, HTTP)
    assert len(pac(EVERYTHING, SOCKS, HTTP)) < 8192


def test_the_file_is_plain_and_resolves_nothing() -> None:
    cases = rule_cases.cases(3, rules=200, targets=0)
    names = [replace(rule, name="*/\u2028</script>\"'\\") for rule in cases.rules]
    script = pac(RuleSet(names, cases.default), SOCKS, HTTP)
    assert script.isascii()
    assert "\u2028" not in script and "</script>" not in script
    for word in ("dnsResolve", "isInNet", "isResolvable", "myIpAddress", "=>", "`", "const ", "let "):
        assert word not in script
    assert script.count("DIRECT") == 1
    assert '"DIRECT"' in script


def test_what_cannot_matter_is_left_out() -> None:
    """Thousands of blocked names cost nothing where no direct rule could let them past."""
    blocked = Rule(action=BLOCK_, domains=tuple(f".b{number}.example" for number in range(50_000)))
    near = direct(".corp.example", ".b7.example", cidrs=("10.0.0.0/8",))
    for rules in ((near, blocked), (blocked, near)):
        rule_set = RuleSet(rules, TUNNEL_)
        assert len(pac(rule_set, SOCKS, HTTP)) < 8192
        hosts = ("x.corp.example", "b7.example", "a.b7.example", "b8.example", "10.1.1.1")
        assert differences(rule_set, [Destination(host, 80) for host in hosts]) == []


def large(count: int) -> RuleSet:
    """Rules that do not fit into a file."""
    rules = []
    for number in range(count // 100):
        names = tuple(f"h{number}-{each}.some.where.example" for each in range(100))
        action = BLOCK_ if number % 3 == 2 else DIRECT_
        also = (f".h{number + 1}-5.some.where.example",)
        rules.append(
            Rule(action=action, domains=names + also, cidrs=(ip_network(f"10.{number % 256}.0.0/16"),))
        )
    return RuleSet(rules, DIRECT_)


def test_what_does_not_fit_goes_to_the_proxy() -> None:
    rules = large(30_000)
    script = pac(rules, SOCKS, HTTP)
    assert MAX_SIZE - 8192 < len(script) <= MAX_SIZE
    targets = [
        Destination(f"h{number}-{each}.some.where.example", 80)
        for number in range(300)
        for each in (0, 5, 99, 100)
    ]
    targets += [Destination(f"10.{number}.1.1", 80) for number in range(256)]
    found, said = Engine(script).decide(targets), expected(rules, targets)
    assert [pair for pair in zip(found, said, strict=True) if pair == (DIRECT, PROXY)] == []
    # The first rules are kept, and the default is no longer certain.
    assert found[: 4 * 60 : 4] == said[: 4 * 60 : 4]
    assert found.count(DIRECT) > said.count(DIRECT) // 3
    assert Engine(script).ask("http://else.example/", "else.example") == PROXY


def test_a_single_rule_that_does_not_fit_is_kept_in_part() -> None:
    names = tuple(f"h{number}.example" for number in range(40_000))
    rules = RuleSet([Rule(action=DIRECT_, domains=names)], TUNNEL_)
    script = pac(rules, SOCKS, HTTP)
    assert MAX_SIZE - 8192 < len(script) <= MAX_SIZE
    found = Engine(script).decide([Destination(f"h{number}.example", 80) for number in (0, 10_000, 39_999)])
    assert found == [DIRECT, DIRECT, PROXY]


def test_a_first_rule_that_cannot_be_kept_leaves_nothing() -> None:
    """Blocked names that do not fit before a direct default: any name could be one of them."""
    names = tuple(f"h{number}.some.where.example" for number in range(40_000))
    rules = RuleSet([Rule(action=BLOCK_, domains=names)], DIRECT_)
    script = pac(rules, SOCKS, HTTP)
    assert len(script) < 8192
    found = Engine(script).decide([Destination("else.example", 80), Destination("10.0.0.1", 80)])
    assert found == [PROXY, PROXY]


def test_more_patterns_than_are_quick_are_cut() -> None:
    names = tuple(f"a*-{number}.example" for number in range(MAX_WILDCARDS + 50))
    run = engine(Rule(action=DIRECT_, domains=names))
    hosts = ["ax-0.example", f"ax-{MAX_WILDCARDS - 10}.example", f"ax-{MAX_WILDCARDS + 1}.example"]
    assert run.decide([Destination(host, 80) for host in hosts]) == [DIRECT, DIRECT, PROXY]


# --- in words ---


@pytest.mark.parametrize("seed", range(10))
def test_the_explanation_agrees(seed: int, tmp_path: Path) -> None:
    cases = rule_cases.cases(seed, rules=5 + 4 * seed, targets=200, directory=tmp_path if seed % 2 else None)
    rules = load_rules(cases.rules, cases.default)
    targets = list(filter(is_canonical, cases.targets))
    answers = Engine(pac(rules, SOCKS, HTTP)).decide(targets)
    for target, answer in zip(targets, answers, strict=True):
        sentence = explain(rules, *target)
        assert ("says DIRECT" in sentence) == (answer == DIRECT), (target, sentence)
        assert ("proxy" in sentence) == (answer == PROXY)


def test_what_the_explanation_says(tmp_path: Path) -> None:
    ads = tmp_path / "ads.txt"
    ads.write_text("ads.example\n")
    rules = load_rules(
        [
            Rule(action=DIRECT_, domains=(".corp.example",), name="the office"),
            Rule(action=TUNNEL_, domains=("far.example",)),
            Rule(action=BLOCK_, lists=(ads,)),
        ],
        DIRECT_,
    )
    assert explain(rules, "a.corp.example", 80) == "the PAC file says DIRECT, by the office"
    assert explain(rules, "far.example", 80) == "the PAC file sends it to the proxy, by rule 2"
    assert explain(rules, "else.example", 80) == (
        "the PAC file sends it to the proxy, because only the proxy knows the lists of rule 3"
    )
    assert explain(rules, "192.0.2.1", 80) == "the PAC file says DIRECT, by default"


def test_the_explanation_of_what_does_not_fit() -> None:
    rules = large(30_000)
    assert explain(rules, "h0-1.some.where.example", 80) == "the PAC file says DIRECT, by rule 1"
    assert re.fullmatch(
        r"the PAC file sends it to the proxy, because it holds no rules from rule \d+ on",
        explain(rules, "else.example", 80),
    )
