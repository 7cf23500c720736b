"""What a rule may say: canonical forms, and a sentence for everything else."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import AddressSet, Face, Steps, borders
from cryprq_proxy.rules.syntax import (
    MAX_LABEL,
    Rule,
    RuleAction,
    Verdict,
    parse_action,
    parse_cidr,
    parse_domain,
    parse_label,
    parse_ports,
    shown,
)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("tunnel", RuleAction(Verdict.TUNNEL)),
        ("direct", RuleAction(Verdict.DIRECT)),
        ("block", RuleAction(Verdict.BLOCK)),
        ("exit:home", RuleAction(Verdict.EXIT, "home")),
        ("exit:Home-2.b_c", RuleAction(Verdict.EXIT, "Home-2.b_c")),
        ("exit:block", RuleAction(Verdict.EXIT, "block")),
    ],
)
def test_actions(text: str, action: RuleAction) -> None:
    assert parse_action(text) == action
    assert str(action) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exit",
        "exit:",
        "exit:a b",
        "exit:-a",
        "exit:" + "a" * 61,
        "Tunnel",
        "tunnel:",
        "block:x",
        "drop",
        "\x1b[1m",
    ],
)
def test_no_actions(text: str) -> None:
    with pytest.raises(
        ConfigError, match='expected "tunnel", "direct", "block" or "exit:NAME", got'
    ) as raised:
        parse_action(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Intranet.Example", "intranet.example"),
        ("intranet.example.", "intranet.example"),
        (".Corp.example", ".corp.example"),
        (".corp.example.", ".corp.example"),
        ("*.dev.example", "*.dev.example"),
        ("ad*.example", "ad*.example"),
        ("**.example.***", "*.example.*"),
        ("*", "*"),
        ("*.", "*"),
        ("localhost", "localhost"),
        ("b\u00fccher.Example", "xn--bcher-kva.example"),
        ("*.B\u00fccher.example", "*.xn--bcher-kva.example"),
        (".b\u00fccher.example", ".xn--bcher-kva.example"),
        ("x_y.4chan.example", "x_y.4chan.example"),
        ("10.example", "10.example"),
        ("10.*.example", "10.*.example"),
        ("*10*", "*10*"),
    ],
)
def test_domains(text: str, domain: str) -> None:
    assert parse_domain(text) == domain
    assert parse_domain(domain) == domain


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected is a name"),
        (".", "expected is a name"),
        ("..a", "expected is a name"),
        ("a..b", "expected is a name"),
        ("*..b", "expected is a name"),
        ("https://a.example/", "expected is a name"),
        ("a.example:443", "expected is a name"),
        ("a b.example", "expected is a name"),
        ("a.example/x", "expected is a name"),
        ("\x1b[1m.example", "expected is a name"),
        ("x" * 64 + ".example", "expected is a name"),
        ("a." * 127 + "example", "expected is a name"),
        ("example.0x1f", "expected is a name"),
        (".*.example", "exclude each other"),
        ("b\u00fc*.example", "other scripts"),
        ("\u00fc" * 70 + ".example", "IDNA"),
        ("10.0.0.1", "addresses belong into cidrs"),
        ("::1", "addresses belong into cidrs"),
        ("10.*", "addresses belong into cidrs, as 10.0.0.0/8"),
        ("192.168.*.*", "addresses belong into cidrs, as 10.0.0.0/8"),
    ],
)
def test_no_domains(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_domain(text)
    assert reason in str(raised.value)
    assert "is not understood" in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert parse_cidr(text) == ip_network(network)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1/8", "it has bits set behind its prefix; write 10.0.0.0/8"),
        ("10.0.0.0/33", "no valid IP address or CIDR"),
        ("10.0.0.0/255.0.0.0", "a CIDR ends in a number of bits"),
        ("fe80::1%eth0", "an address here has no zone"),
        ("22", "an address has dots or colons"),
        ("corp.example", "no valid IP address or CIDR"),
        ("", "no valid IP address or CIDR"),
        ("[::1]", "no valid IP address or CIDR"),
    ],
)
def test_no_networks(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_cidr(text)
    assert f"({reason})" in str(raised.value)


def test_ports() -> None:
    assert parse_ports("22") == (22, 22)
    assert parse_ports("6000-6100") == (6000, 6100)
    assert parse_ports("1-65535") == (1, 65535)


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "80-", "-80", "90-80", "http", "80,443", " 80", "\u0661", "1-2-3"]
)
def test_no_ports(text: str) -> None:
    with pytest.raises(ConfigError, match="is not understood") as raised:
        parse_ports(text)
    assert "a range like 6000-6100" in str(raised.value)


def test_names_of_rules() -> None:
    assert parse_label("the office") == "the office"
    assert parse_label("\u00dc" * MAX_LABEL) == "\u00dc" * MAX_LABEL
    for text in ("", "x" * (MAX_LABEL + 1), "a\nb", "\x1b[2J", "\u202eabc"):
        with pytest.raises(ConfigError) as raised:
            parse_label(text)
        assert str(raised.value).isprintable()
    rules = (Rule(action=RuleAction(Verdict.BLOCK)), Rule(action=RuleAction(Verdict.BLOCK), name="ads"))
    assert [shown(rules, index) for index in (0, 1, -1)] == ["rule 1", "ads", "default"]


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    for parse in (parse_action, parse_domain, parse_cidr, parse_ports, parse_label):
        try:
            parse(text)
        except ConfigError as error:
            assert str(error).isprintable()


# --- ranges ---

PAIRS = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(PAIRS))
def test_borders_hold_what_the_ranges_hold(pairs: list[tuple[int, int]]) -> None:
    found = borders(pairs)
    assert found == sorted(set(found))
    inside = {
        value for first, behind in zip(found[::2], found[1::2], strict=True) for value in range(first, behind)
    }
    assert inside == {value for first, last in pairs for value in range(first, last + 1)}


@given(st.lists(st.lists(PAIRS, max_size=4), max_size=6))
def test_steps_tell_all_sets_of_a_value(sets: list[list[tuple[int, int]]]) -> None:
    steps = Steps((1 << number, pairs) for number, pairs in enumerate(sets))
    for value in range(42):
        expected = sum(
            1 << number
            for number, pairs in enumerate(sets)
            if any(first <= value <= last for first, last in pairs)
        )
        assert steps[value] == expected


def test_an_address_set_keeps_the_versions_apart() -> None:
    found = AddressSet(map(ip_network, ("0.0.0.0/8", "::1/128", "10.0.0.0/8", "11.0.0.0/8")))
    assert Face(4, 1) in found
    assert Face(6, 1) in found
    assert Face(6, 2) not in found
    assert Face(4, 11 << 24) in found
    assert Face(4, 12 << 24) not in found
