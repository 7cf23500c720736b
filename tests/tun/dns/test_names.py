"""Names in wire form, special names, split rules and the settings."""

from __future__ import annotations

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import ConfigError
from tests.support.settings import dns_settings
from tun.dns.names import (
    Local,
    from_ascii,
    from_text,
    longest,
    served,
    special,
    split_domain,
    split_text,
    suffixes,
)
from tun.dns.settings import Scheme, parse_upstream

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)


@given(st.lists(LABEL, min_size=1, max_size=5))
def test_the_wire_form_is_the_one_of_dnspython(labels: list[str]) -> None:
    text = ".".join(labels)
    found = from_ascii(text.encode())
    try:
        expected = dns.name.from_text(text).to_digestable()
    except dns.name.NameTooLong:
        assert found is None
    else:
        assert found == expected
        assert list(suffixes(expected)) == [
            dns.name.from_text(".".join(labels[n:])).to_digestable() for n in range(len(labels))
        ]


@pytest.mark.parametrize("text", ["", ".", "a..b", ".a", "a b", "a" * 64, "a." * 127 + "a", "*.a", "a\n"])
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a domain"):
        from_text(text)


@pytest.mark.parametrize(
    ("name", "plain", "with_split"),
    [
        ("localhost", Local.LOCALHOST, Local.LOCALHOST),
        ("a.b.localhost", Local.LOCALHOST, Local.LOCALHOST),
        ("1.0.0.127.in-addr.arpa", Local.REVERSE_LOCALHOST, Local.REVERSE_LOCALHOST),
        ("x.onion", Local.NAME_ERROR, Local.NAME_ERROR),
        ("x.invalid", Local.NAME_ERROR, Local.NAME_ERROR),
        ("use-application-dns.net", Local.NAME_ERROR, Local.NAME_ERROR),
        ("cryprq.test", Local.NAME_ERROR, Local.NAME_ERROR),
        ("abcdef.test", Local.NAME_ERROR, None),
        ("_dns.resolver.arpa", Local.NO_DATA, Local.NO_DATA),
        ("printer.local", Local.NAME_ERROR, None),
        ("nas.home.arpa", Local.NAME_ERROR, None),
        ("5.1.168.192.in-addr.arpa", Local.NAME_ERROR, None),
        ("1.2.17.172.in-addr.arpa", Local.NAME_ERROR, None),
        ("8.b.d.0.1.0.0.2.ip6.arpa", None, None),
        ("1.2.32.172.in-addr.arpa", None, None),
        ("local.example", None, None),
        ("example.com", None, None),
    ],
)
def test_special_names(name: str, plain: Local | None, with_split: Local | None) -> None:
    assert special(from_text(name), split=False) is plain
    assert special(from_text(name), split=True) is with_split


def test_the_root_is_nothing_special() -> None:
    assert special(b"\0", split=False) is None
    assert longest({from_text("a"): 1}, b"\0") is None


def test_the_longest_domain_wins() -> None:
    table = {from_text("corp.example"): 1, from_text("lab.corp.example"): 2, from_text("arpa"): 3}
    assert longest(table, from_text("corp.example")) == 1
    assert longest(table, from_text("www.corp.example")) == 1
    assert longest(table, from_text("a.b.lab.corp.example")) == 2
    assert longest(table, from_text("xlab.corp.example")) == 1
    assert longest(table, from_text("xcorp.example")) is None
    assert longest(table, from_text("example")) is None


def test_names_of_one_label_have_servers_of_their_own() -> None:
    table = {split_domain("box"): 1, split_domain("*"): 2}
    assert [split_text(domain) for domain in table] == ["box", "*"]
    assert served(table, from_text("box")) == served(table, from_text("fritz.box")) == 1
    assert served(table, from_text("printer")) == 2
    # Neither the root, nor a name below what looks like the mark.
    assert [served(table, name) for name in (b"\0", b"\1a\1*\0", from_text("a.b"))] == [None] * 3
    assert served({}, from_text("printer")) is None
    for wrong in ("**", "*.lan", ""):
        with pytest.raises(ConfigError):
            split_domain(wrong)


@pytest.mark.parametrize(
    ("text", "way", "destination", "name", "path"),
    [
        ("lan://192.168.1.1", Scheme.LAN, Destination("192.168.1.1", 53), "192.168.1.1", ""),
        ("lan://[fd00::1]:53", Scheme.LAN, Destination("fd00::1", 53), "fd00::1", ""),
        ("exit", Scheme.EXIT, Destination("", 0), "", ""),
        ("10.0.0.1", Scheme.TCP, Destination("10.0.0.1", 53), "10.0.0.1", ""),
        ("10.0.0.1:5353", Scheme.TCP, Destination("10.0.0.1", 5353), "10.0.0.1", ""),
        ("tcp://[2001:db8::1]", Scheme.TCP, Destination("2001:db8::1", 53), "2001:db8::1", ""),
        ("tls://1.1.1.1#One.Example", Scheme.TLS, Destination("1.1.1.1", 853), "one.example", ""),
        ("tls://1.1.1.1", Scheme.TLS, Destination("1.1.1.1", 853), "1.1.1.1", ""),
        ("tls://dns.example:8853", Scheme.TLS, Destination("dns.example", 8853), "dns.example", ""),
        ("tls://192.0.2.1#2001:db8::1", Scheme.TLS, Destination("192.0.2.1", 853), "2001:db8::1", ""),
        (
            "https://dns.example/dns-query",
            Scheme.HTTPS,
            Destination("dns.example", 443),
            "dns.example",
            "/dns-query",
        ),
        (
            "https://9.9.9.9:444/q/x?k=v#dns.example",
            Scheme.HTTPS,
            Destination("9.9.9.9", 444),
            "dns.example",
            "/q/x?k=v",
        ),
        ("https://dns.example", Scheme.HTTPS, Destination("dns.example", 443), "dns.example", "/"),
    ],
)
def test_addresses_of_upstreams(
    text: str, way: Scheme, destination: Destination, name: str, path: str
) -> None:
    assert parse_upstream(text) == (text, way, destination, name, path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "udp://1.1.1.1", "tcp://dns.example", "dns.example", "tcp://10.0.0.1/x", "tcp://10.0.0.1#x"),
        *(
            "lan://",
            "lan://fritz.box",
            "lan://192.168.1.1:5353",
            "lan://192.168.1.1#x",
            "lan://192.168.1.1/x",
        ),
        *(
            "lan://8.8.8.8",
            "lan://127.0.0.1",
            "lan://[::1]",
            "lan://[fe80::1]",
            "lan://[2001:db8::1]",
            "lan://0.0.0.0",
        ),
        *("lan://[::ffff:192.168.1.1]", "lan://224.0.0.251", "lan://255.255.255.255", "lan://100.64.0.1"),
        *("tls://", "tls://1.1.1.1:0", "tls://1.1.1.1:99999", "tls://1.1.1.1#", "tls://1.1.1.1#a b"),
        *("tls://user@1.1.1.1", "https://", "https://a b/", "https://dns.example/ö", "https:///x", "1.2.3"),
        *("https://dns.example/\x7f", "https://dns.example/a b", "tls://a#b:1", "exit " + "x" * 2000),
    ],
)
def test_what_is_no_upstream(text: str) -> None:
    with pytest.raises(ConfigError, match=r"DNS server .* is not understood"):
        parse_upstream(text)


@given(st.text(max_size=60))
def test_any_text_is_an_upstream_or_a_config_error(text: str) -> None:
    for spec in (text, "https://" + text, "tls://" + text):
        try:
            parse_upstream(spec)
        except ConfigError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "wrong",
    [
        {"upstreams": ()},
        {"block_answer": "maybe"},
        {"stale": -1.0},
        {"stale": 1e9},
        {"hedge": 0.0},
        {"timeout": float("nan")},
        {"questions": 0},
        {"cache_bytes": 1 << 40},
    ],
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^dns\."):
        dns_settings(**wrong)
