"""The destination codec: canonical forms, the RFC 1928 layout, strictness, and what people type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import (
    MAX_ENCODED,
    AddressError,
    Destination,
    UnknownAddressType,
    canonical_host,
    decode,
    encode,
    encoded_size,
    is_localhost,
    parse_host_port,
)

LABEL = st.from_regex(r"[a-z_][a-z0-9_-]{0,20}", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=5).map(".".join)
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(lambda address: canonical_host(str(address).encode()))
HOSTS = st.one_of(NAMES, IPV4, IPV6)
PORTS = st.integers(0, 65535)

LAYOUTS = [
    (Destination("192.0.2.1", 80), b"\x01\xc0\x00\x02\x01\x00\x50"),
    (Destination("2001:db8::1", 443), b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x01\xbb"),
    (Destination("example.org", 8080), b"\x03\x0bexample.org\x1f\x90"),
    (Destination("node1", 0), b"\x03\x05node1\x00\x00"),
]


@pytest.mark.parametrize(("destination", "wire"), LAYOUTS, ids=["v4", "v6", "name", "label"])
def test_layout(destination: Destination, wire: bytes) -> None:
    assert encode(destination) == wire
    assert decode(wire) == (destination, len(wire))
    assert decode(memoryview(b"xx" + wire + b"trailing"), 2) == (destination, 2 + len(wire))


@pytest.mark.parametrize(("destination", "wire"), LAYOUTS, ids=["v4", "v6", "name", "label"])
def test_truncations_are_errors_and_the_size_is_known_early(destination: Destination, wire: bytes) -> None:
    for length in range(len(wire)):
        with pytest.raises(AddressError):
            decode(wire[:length])
    assert encoded_size(wire[:2]) == len(wire)
    assert encoded_size(b"") == encoded_size(b"\x03") == 0


@given(HOSTS, PORTS)
def test_round_trip(host: str, port: int) -> None:
    destination = Destination(host, port)
    wire = encode(destination)
    assert len(wire) <= MAX_ENCODED
    assert decode(wire) == (destination, len(wire))
    assert parse_host_port(str(destination)) == destination


@given(st.binary(max_size=300))
def test_decode_raises_nothing_else_and_what_it_yields_is_canonical(data: bytes) -> None:
    try:
        destination, end = decode(data)
    except AddressError:
        return
    assert end <= len(data)
    assert decode(encode(destination))[0] == destination


@given(st.one_of(st.text(max_size=80), st.text("[]:.%@/0x19af", max_size=30)), st.sampled_from([None, 80]))
def test_parse_raises_nothing_else_and_yields_canonical(text: str, default_port: int | None) -> None:
    try:
        destination = parse_host_port(text, default_port)
    except AddressError:
        return
    assert decode(encode(destination))[0] == destination


@pytest.mark.parametrize(
    ("raw", "host"),
    [
        (b"EXAMPLE.Org", "example.org"),
        (b"example.org.", "example.org"),
        (b"_dmarc.example.org", "_dmarc.example.org"),
        (b"a" * 63 + b".x", "a" * 63 + ".x"),
        (b"127.0.0.1", "127.0.0.1"),
        (b"127.0.0.1.", "127.0.0.1"),
        (b"2001:DB8:0:0::1", "2001:db8::1"),
        (b"::FFFF:192.0.2.1", "::ffff:192.0.2.1"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"3com.com", "3com.com"),
        (b"0xabc.example", "0xabc.example"),
    ],
)
def test_canonical_forms(raw: bytes, host: str) -> None:
    assert canonical_host(raw) == host


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b".", b"..", b"a..b", b".a", b"a" * 64, b".".join([b"a" * 63] * 4)),
        *(b"a b", b"a\x00b", b"a/b", b"a@b", b"a%41", b"b\xc3\xbccher", b"a\n"),
        *(b"[::1]", b"::1%eth0", b"1:2", b"::\x00"),
        *(b"127.1", b"2130706433", b"0x7f000001", b"127.0.0x1", b"host.1", b"256.0.0.1", b"01.2.3.4"),
    ],
)
def test_refused_hosts(raw: bytes) -> None:
    with pytest.raises(AddressError):
        canonical_host(raw)
    with pytest.raises(AddressError):
        decode(b"\x03" + bytes([len(raw)]) + raw + b"\x00\x50")


def test_unknown_type_has_its_own_error() -> None:
    for kind in (0, 2, 5, 255):
        with pytest.raises(UnknownAddressType):
            decode(bytes([kind]) + bytes(30))


@pytest.mark.parametrize(
    "destination",
    [
        *(("", 1), ("Example.org", 1), ("example.org.", 1), ("bücher", 1), ("\u0663", 1), ("a" * 254, 1)),
        *(("a", -1), ("a", 65536), ("1.2", 1), ("a:b", 1), ("1.2.3.4\x00", 1), ("::\x00", 1)),
    ],
)
def test_encode_refuses_what_is_not_canonical(destination: tuple[str, int]) -> None:
    with pytest.raises(AddressError):
        encode(Destination(*destination))


@pytest.mark.parametrize(
    ("text", "default_port", "expected"),
    [
        ("example.org:443", None, ("example.org", 443)),
        ("Bücher.example:80", None, ("xn--bcher-kva.example", 80)),
        ("[2001:DB8::1]:443", None, ("2001:db8::1", 443)),
        ("[::1]", 80, ("::1", 80)),
        ("::1", 80, ("::1", 80)),
        ("example.org", 80, ("example.org", 80)),
        ("127.0.0.1:0", None, ("127.0.0.1", 0)),
        ("example.org:00443", None, ("example.org", 443)),
    ],
)
def test_parse(text: str, default_port: int | None, expected: tuple[str, int]) -> None:
    assert parse_host_port(text, default_port) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "a:", "a:b", "a:+1", "a:65536", "a:100000", "a:\u0663", "a: 1", "a:1_0", "a:-1"),
        *("::1:80", "[::1", "[::1]80", "[a]:80", "[]:80", "[1.2.3.4]:80", "[::1%lo]:80", "u@a:80", "a/b:80"),
        *("a" * 2000, "\ud800:80", "ü" * 200 + ":80", "\u3002:80"),
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(AddressError):
        parse_host_port(text)
    if not text.startswith("::1"):
        with pytest.raises(AddressError):
            parse_host_port(text, 443)


def test_is_ip_and_text() -> None:
    assert Destination("192.0.2.1", 1).is_ip
    assert Destination("::1", 1).is_ip
    assert not Destination("node1", 1).is_ip
    assert str(Destination("::1", 53)) == "[::1]:53"
    assert f"{Destination('node1', 53)}" == "node1:53"


def test_localhost() -> None:
    assert is_localhost("localhost") and is_localhost("a.b.localhost")
    assert not is_localhost("notlocalhost") and not is_localhost("localhost.example")


def test_a_scheme_is_named_as_what_is_too_much() -> None:
    """It was taken for an IPv6 address without its brackets."""
    with pytest.raises(AddressError, match="write only host and port"):
        parse_host_port("http://127.0.0.1:1080")
