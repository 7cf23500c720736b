"""The [[rule]] tables of client.toml, and what is said of the wrong ones."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from cryprq_proxy.config.decode import decode_file
from cryprq_proxy.config.rules import ACTION, DEFAULT, RuleTable, check_exits, to_rules
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules import lists
from cryprq_proxy.rules.syntax import MAX_LABEL, Rule, RuleAction, Verdict

SOURCE = Path("/etc/cryprq/client.toml")


class Config(Struct, frozen=True, kw_only=True):
    """The part of ClientConfig that is about rules."""

    default: Annotated[RuleAction, ACTION] = DEFAULT
    rule: tuple[RuleTable, ...] = ()


def decode(text: str) -> Config:
    values: dict[str, Any] = decode_file(Config, text, SOURCE)
    return Config(**values)


def test_no_rules() -> None:
    config = decode("")
    assert (config.default, to_rules(config.rule)) == (RuleAction(Verdict.TUNNEL), ())


def test_everything_that_a_rule_may_say() -> None:
    config = decode(
        """
        default = "exit:home"
        [[rule]]
        to = "direct"
        domains = ["Intranet.example", ".corp.example", "*.dev.example", "ad*.example"]
        cidrs = ["10.0.0.0/8", "2001:db8::1"]
        ports = [22, "6000-6100", "443"]
        lists = ["ads.txt", "/var/lists/more.txt"]
        name = "the office"
        [[rule]]
        to = "block"
        ports = 25
        [[rule]]
        to = "exit:work"
        domains = "b\u00fccher.example"
        """
    )
    assert config.default == RuleAction(Verdict.EXIT, "home")
    assert to_rules(config.rule) == (
        Rule(
            action=RuleAction(Verdict.DIRECT),
            domains=("intranet.example", ".corp.example", "*.dev.example", "ad*.example"),
            cidrs=(ip_network("10.0.0.0/8"), ip_network("2001:db8::1")),
            ports=((22, 22), (6000, 6100), (443, 443)),
            lists=(Path("/etc/cryprq/ads.txt"), Path("/var/lists/more.txt")),
            name="the office",
        ),
        Rule(action=RuleAction(Verdict.BLOCK), ports=((25, 25),)),
        Rule(action=RuleAction(Verdict.EXIT, "work"), domains=("xn--bcher-kva.example",)),
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("rule = 1", "rule: expected tables, each under [[rule]], got the integer 1"),
        ("[rule]\nto = 'block'", "rule: expected tables, each under [[rule]], got a table"),
        ("[[rule]]\nports = 1", "rule[1]: to is missing; every one of these tables needs it"),
        (
            "[[rule]]\nto = 'block'",
            "rule[1]: expected at least one of domains, cidrs, ports and lists; default is for all other connections",
        ),
        ("[[rule]]\nto = 'block'\nname = 'x'\ndomains = []", "rule[1]: expected at least one of"),
        (
            "[[rule]]\nto = 'block'\nports = 1\n[[rule]]\nto = 'drop'\nports = 1",
            """rule[2].to: expected "tunnel", "direct", "block" or "exit:NAME", got 'drop'""",
        ),
        (
            "[[rule]]\nto = 1",
            'rule[1].to: expected a string: "tunnel", "direct", "block" or "exit:NAME", got the',
        ),
        ("[[rule]]\nto = 'block'\ndomains = ['a b']", "rule[1].domains: 'a b' is not understood"),
        ("[[rule]]\nto = 'block'\ndomains = ['10.0.0.1']", "addresses belong into cidrs"),
        ("[[rule]]\nto = 'block'\ndomains = 5", "rule[1].domains: expected a list of names like"),
        ("[[rule]]\nto = 'block'\ncidrs = ['10.0.0.1/8']", "write 10.0.0.0/8"),
        ("[[rule]]\nto = 'block'\nports = [0]", "rule[1].ports: '0' is not understood"),
        ("[[rule]]\nto = 'block'\nports = [-1]", "rule[1].ports: '-1' is not understood"),
        ("[[rule]]\nto = 'block'\nports = [65536]", "rule[1].ports: '65536' is not understood"),
        (
            "[[rule]]\nto = 'block'\nports = [true]",
            'expected a list of ports like 22 or "6000-6100", got true',
        ),
        (
            "[[rule]]\nto = 'block'\nports = [1.5]",
            'expected a list of ports like 22 or "6000-6100", got the number',
        ),
        (f"[[rule]]\nto = 'block'\nports = {'9' * 5000}", "client.toml: "),
        (f"[[rule]]\nto = 'block'\nports = {'9' * 50}", "got an enormous integer"),
        ("[[rule]]\nto = 'block'\nlists = ['']", "rule[1].lists: expected the path of a file"),
        ("[[rule]]\nto = 'block'\nname = ''\nports = 1", "rule[1].name: expected 1 to 60 characters"),
        (
            "[[rule]]\nto = 'block'\ndomain = 'a'",
            'rule[1].domain: unknown key; did you mean "rule[1].domains"?',
        ),
        ("default = 'none'", "default: expected"),
    ],
)
def test_what_a_person_must_change(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        decode(text)
    assert str(raised.value).startswith(f"{SOURCE}: ")
    assert error in str(raised.value)
    assert str(raised.value).isprintable()


@given(st.text(max_size=60), st.sampled_from(["to", "domains", "cidrs", "ports", "lists", "name"]))
def test_any_string_is_read_or_refused(value: str, key: str) -> None:
    quoted = "".join(f"\\U{ord(each):08x}" for each in value if not 0xD800 <= ord(each) < 0xE000)
    lines = {"to": "'block'", "ports": "1"} | {key: f'"{quoted}"'}
    text = "[[rule]]\n" + "".join(f"{name} = {line}\n" for name, line in lines.items())
    try:
        to_rules(decode(text).rule)
    except ConfigError as error:
        assert str(error).isprintable()


def test_the_page_about_rules_says_what_is_so() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "rules.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example
    config = decode(example[1])
    assert [table.name for table in config.rule] == ["the office", "advertising", "no mail from here", ""]
    assert {table.to.verdict for table in config.rule} == {Verdict.DIRECT, Verdict.BLOCK, Verdict.EXIT}
    for key in RuleTable.__struct_fields__:
        assert f"| `{key}` |" in page
    for row in (
        f"| names in all lists together | {lists.MAX_NAMES:,} |",
        f"| size of a file | {lists.MAX_FILE >> 20} MiB |",
        f"| length of a line | {lists.MAX_LINE:,} bytes |",
        f"the first {lists.MAX_PROBLEMS} are named",
        f"1 to {MAX_LABEL} characters",
    ):
        assert row in page


def test_exits_must_exist() -> None:
    home, work = RuleAction(Verdict.EXIT, "home"), RuleAction(Verdict.EXIT, "work")
    rules = (Rule(action=home, ports=((1, 1),)), Rule(action=work, ports=((1, 1),), name="mail"))
    check_exits(rules, work, ("home", "work"))
    check_exits(rules[:1], RuleAction(Verdict.BLOCK), ("home",))
    with pytest.raises(
        ConfigError, match=r'^mail: there is no exit called "work"; the exits are home, other$'
    ):
        check_exits(rules, work, ("other", "home"))
    with pytest.raises(ConfigError, match=r'^rule 1: there is no exit called "home"; no exit has a name$'):
        check_exits(rules, work, ())
    with pytest.raises(ConfigError, match=r'^default: there is no exit called "work"'):
        check_exits((), work, ("home",))
