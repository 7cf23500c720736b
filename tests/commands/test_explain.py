"""`cryprq-proxy explain`: which rule decides, in a sentence for each of the three places."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.client.own_listeners import DirectPolicy
from cryprq_proxy.commands.explain import explain as explain_command
from cryprq_proxy.commands.explain import parse_target
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.explain import explain
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support.rule_cases import cases

TUNNEL, DIRECT, BLOCK = (RuleAction(verdict) for verdict in (Verdict.TUNNEL, Verdict.DIRECT, Verdict.BLOCK))


HERE = "; if the name resolves to this machine it is refused, unless the rule for it has that address in its cidrs"


# --- targets ---


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("www.example", "www.example:443"),
        ("WWW.example.", "www.example:443"),
        ("www.example:8080", "www.example:8080"),
        ("https://www.example/a?b#c", "www.example:443"),
        ("http://www.example", "www.example:80"),
        ("HTTP://me:secret@www.example:8080/@x", "www.example:8080"),
        ("wss://www.example?x", "www.example:443"),
        ("ftp://www.example/", "www.example:21"),
        ("gopher://www.example:70/", "www.example:70"),
        ("2001:db8::1", "[2001:db8::1]:443"),
        ("::", "[::]:443"),
        ("[2001:db8::1]:22", "[2001:db8::1]:22"),
        ("https://[2001:db8::1]/", "[2001:db8::1]:443"),
        (" 192.0.2.1 ", "192.0.2.1:443"),
        ("b\u00fccher.example", "xn--bcher-kva.example:443"),
    ],
)
def test_targets(text: str, destination: str) -> None:
    assert str(parse_target(text)) == destination


@pytest.mark.parametrize(
    "text", ["", "https://", "gopher://www.example", "a b", "a:b", "https://x:y:z/", "www.example:"]
)
def test_no_targets(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL, or a host with or without a port: "):
        parse_target(text)


def test_no_error_shows_a_password() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_target("https://me:secret@a b/")
    assert "secret" not in str(raised.value)


@given(st.text(max_size=60) | st.text("a:/@[]?#.1", max_size=20))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_target(text), Destination)
    except ConfigError as error:
        assert str(error)


# --- words ---


def test_the_part_of_the_rule_is_named(tmp_path: Path) -> None:
    ads, more = tmp_path / "ads.txt", tmp_path / "more.txt"
    ads.write_text("ads.example\n")
    more.write_text("more.example\n")
    rules = load_rules(
        [
            Rule(
                action=DIRECT, domains=("x.example", ".corp.example"), ports=((443, 443),), name="the office"
            ),
            Rule(action=BLOCK, lists=(ads,)),
            Rule(action=BLOCK, lists=(ads, more)),
            Rule(
                action=RuleAction(Verdict.EXIT, "work"), cidrs=(ip_network("::/0"), ip_network("10.0.0.0/8"))
            ),
            Rule(action=TUNNEL, ports=((1, 2), (22, 22))),
            Rule(action=BLOCK, domains=("*mail*",), ports=((25, 25), (100, 200))),
        ],
        DIRECT,
    )
    assert explain(rules, "a.corp.example", 443) == (
        f"the proxy connects directly, past the tunnel, by the office: its domain .corp.example holds the name{HERE}"
    )
    assert (
        explain(rules, "a.ads.example", 443)
        == "the proxy refuses it, by rule 2: its list ads.txt holds the name"
    )
    assert (
        explain(rules, "more.example", 1)
        == "the proxy refuses it, by rule 3: one of its 2 lists holds the name"
    )
    assert explain(rules, "10.1.1.1", 1) == (
        "the proxy sends it through the exit work, by rule 4: its network 10.0.0.0/8 holds the address"
    )
    assert explain(rules, "a.example", 2) == (
        "the proxy sends it through the tunnel, by rule 5: its ports 1-2 hold this one"
    )
    assert explain(rules, "192.0.2.1", 22).endswith("by rule 5: its port 22 is this one")
    assert explain(rules, "gmail.example", 150).endswith("by rule 6: its domain *mail* holds the name")
    assert explain(rules, "a.example", 443) == (
        f"the proxy connects directly, past the tunnel, by default: no rule applies{HERE}"
    )


@pytest.mark.parametrize(
    ("host", "only", "allowed"),
    [
        ("any.example", "", []),
        ("here.example", "the cidrs of that rule", ["0.0.0.1"]),
        ("app.localhost", "loopback", ["127.0.0.1"]),
        ("mine.localhost", "loopback and the cidrs of that rule", ["127.0.0.1", "0.0.0.1"]),
    ],
)
def test_a_direct_name_that_resolves_to_this_machine(host: str, only: str, allowed: list[str]) -> None:
    """It says what the client does."""
    rules = RuleSet(
        [Rule(action=DIRECT, domains=("here.example", "mine.localhost"), cidrs=(ip_network("0.0.0.0/8"),))],
        DIRECT,
    )
    policy = DirectPolicy()
    policy.rules = rules
    assert [ip for ip in ("127.0.0.1", "0.0.0.1") if policy.check_address(ip, 443, host)] == allowed
    said = explain(rules, host, 443)
    assert said.endswith(f"; if the name resolves to this machine, to {only} only" if only else HERE)


@pytest.mark.parametrize("host", ["0.0.0.1", "192.0.2.1", "tunnel.example"])
def test_nothing_else_depends_on_what_a_name_resolves_to(host: str) -> None:
    rules = RuleSet(
        [
            Rule(action=TUNNEL, domains=("tunnel.example",), cidrs=(ip_network("127.0.0.0/8"),)),
            Rule(action=DIRECT, cidrs=(ip_network("0.0.0.0/8"),)),
        ],
        DIRECT,
    )
    assert "resolves" not in explain(rules, host, 443)


def test_the_words_are_about_the_decision(tmp_path: Path) -> None:
    case = cases(7, 50, 300, tmp_path)
    rules = load_rules(case.rules, case.default)
    words = {
        Verdict.TUNNEL: "the tunnel",
        Verdict.DIRECT: "directly",
        Verdict.BLOCK: "refuses",
        Verdict.EXIT: "exit",
    }
    for target in case.targets:
        decision, said = rules.decide(*target), explain(rules, *target)
        assert words[decision.action.verdict] in said
        assert decision.rule in said
        assert "every port" not in said


def test_a_rule_about_nothing_in_particular() -> None:
    """No file makes one, but it has a meaning."""
    assert "every host" in explain(RuleSet([Rule(action=BLOCK)], TUNNEL), "a.example", 1)


# --- the command ---


PEER = f'peer = "cryprq://{"a" * 52}@exit.example:4433"\n'


def run(tmp_path: Path, text: str, *arguments: str) -> Result:
    file = tmp_path / "client.toml"
    file.write_text(PEER + text)
    return CliRunner().invoke(explain_command, [*arguments, "--config", str(file)], catch_exceptions=False)


def test_three_sentences(tmp_path: Path) -> None:
    (tmp_path / "ads.txt").write_text("ads.example\nnot a line\n")
    text = "[[rule]]\nto = 'block'\nlists = 'ads.txt'\nname = 'ads'\n"
    result = run(tmp_path, text, "https://www.ads.example/banner.png")
    lines = result.stdout.splitlines()
    assert lines[0] == "www.ads.example:443: block, by ads"
    assert lines[1] == "  proxy:    the proxy refuses it, by ads: its list ads.txt holds the name"
    assert lines[2].startswith("  PAC file: ")
    assert lines[3].startswith("  --tun:    ")
    assert len(lines) == 4
    assert f"broken lines in lists: 1, the first: {tmp_path / 'ads.txt'}, line 2" in result.stderr


def test_the_default(tmp_path: Path) -> None:
    result = run(tmp_path, "default = 'direct'", "192.0.2.1:22")
    assert result.stdout.startswith("192.0.2.1:22: direct, by default\n")
    assert result.stderr == f"no client runs; from {tmp_path / 'client.toml'}\n"


def test_as_json(tmp_path: Path) -> None:
    (tmp_path / "ads.txt").write_text("a b\n")
    text = (
        "[[rule]]\nto = 'exit:exit.example'\nports = 22\nlists = 'ads.txt'\n"
        "[[rule]]\nto = 'direct'\ncidrs = '192.0.2.0/24'\n"
    )
    found = json.loads(run(tmp_path, text, "192.0.2.1:22", "--json").stdout)
    assert {key: found[key] for key in ("target", "action", "rule", "index", "broken")} == {
        "target": "192.0.2.1:22",
        "action": "direct",
        "rule": "rule 2",
        "index": 1,
        "broken": 1,
    }
    assert all(isinstance(found[key], str) and found[key] for key in ("proxy", "pac", "tun"))
    assert len(found["problems"]) == 1
    assert (found["running"], found["file"]) == (False, str(tmp_path / "client.toml"))


def test_what_a_person_must_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        run(tmp_path, "[[rule]]\nto = 'block'\nlists = 'ads.txt'", "a.example")
    with pytest.raises(ConfigError, match='rule 1: there is no exit called "work"; the exits are exit'):
        run(tmp_path, "[[rule]]\nto = 'exit:work'\nports = 1", "a.example")
    with pytest.raises(ConfigError, match="expected a URL"):
        run(tmp_path, "", "a b")
