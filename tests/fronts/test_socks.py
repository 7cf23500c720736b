"""SOCKS5, 4 and 4a negotiation as scripts: what the client sends, what it must get, what comes of it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from asyncio_socks_server.core.protocol import build_method_reply
from asyncio_socks_server.core.types import Address, AuthMethod, Cmd, Rep
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import AddressError, Destination, decode, encode
from cryprq_proxy.errors import ConfigError, LocalError, StreamReason
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.socks import (
    MAX_NEGOTIATION,
    REPLIES,
    DatagramError,
    SocksRequest,
    SocksServer,
    encode_datagram,
    parse_datagram,
)
from tests.support import socks_grammar
from tests.support.choices import Choices
from tests.support.socks_oracle import (
    check_datagram,
    check_negotiation,
    check_reply,
    compare_datagram,
    compare_negotiation,
    explained,
)

USER = Credentials.parse("alice:secret")
NAME = Destination("example.org", 443)
V4 = Destination("192.0.2.1", 80)
V6 = Destination("2001:db8::1", 443)

NO_AUTH = b"\x05\x01\x00"
PASSWORD_ONLY = b"\x05\x01\x02"
BOTH = b"\x05\x02\x00\x02"
LOGIN = b"\x01\x05alice\x06secret"


def request5(destination: Destination, command: int = 1) -> bytes:
    return bytes((5, command, 0)) + encode(destination)


def connect(destination: Destination, version: int = 5) -> SocksRequest:
    return SocksRequest(Cmd.CONNECT, destination, version)


def negotiate(pieces: Iterable[bytes], credentials: Credentials | None = None) -> tuple[SocksServer, bytes]:
    server = SocksServer(credentials)
    output = b""
    for piece in pieces:
        server.receive(piece)
        output += server.take_output()
    return server, output


# (credentials, what the client sends, what it gets, the request)
GOOD = {
    "name": (None, NO_AUTH + request5(NAME), b"\x05\x00", connect(NAME)),
    "ipv4": (None, NO_AUTH + request5(V4), b"\x05\x00", connect(V4)),
    "ipv6": (None, BOTH + request5(V6), b"\x05\x00", connect(V6)),
    "literal as name": (
        None,
        NO_AUTH + b"\x05\x01\x00\x03\x09192.0.2.1\x00\x50",
        b"\x05\x00",
        connect(V4),
    ),
    "udp": (
        None,
        NO_AUTH + request5(Destination("0.0.0.0", 0), 3),
        b"\x05\x00",
        SocksRequest(Cmd.UDP_ASSOCIATE, Destination("0.0.0.0", 0), 5),
    ),
    "udp, with the name of PySocks": (
        None,
        NO_AUTH + b"\x05\x03\x00\x03\x010\x12\x34",
        b"\x05\x00",
        SocksRequest(Cmd.UDP_ASSOCIATE, Destination("0.0.0.0", 0x1234), 5),
    ),
    "password": (USER, BOTH + LOGIN + request5(NAME), b"\x05\x02\x01\x00", connect(NAME)),
    "any password where none is asked for": (
        None,
        PASSWORD_ONLY + b"\x01\x00\x00" + request5(NAME),
        b"\x05\x02\x01\x00",
        connect(NAME),
    ),
    "socks4": (None, b"\x04\x01\x00\x50\xc0\x00\x02\x01bob\x00", b"", connect(V4, 4)),
    "socks4 zero address": (
        None,
        b"\x04\x01\x00\x50\x00\x00\x00\x00\x00",
        b"",
        connect(Destination("0.0.0.0", 80), 4),
    ),
    "socks4a": (None, b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00EXAMPLE.org\x00", b"", connect(NAME, 4)),
}

# (credentials, what the client sends, what it gets, a word of the reason)
BAD = {
    "version": (None, b"\x06", b"", "version"),
    "no method": (None, b"\x05\x00", b"\x05\xff", "method"),
    "gssapi only": (None, b"\x05\x01\x01", b"\x05\xff", "method"),
    "no password offered": (USER, NO_AUTH, b"\x05\xff", "method"),
    "wrong password": (USER, BOTH + b"\x01\x05alice\x06secreT", b"\x05\x02\x01\x01", "wrong"),
    "wrong user": (USER, BOTH + b"\x01\x03bob\x06secret", b"\x05\x02\x01\x01", "wrong"),
    "password version": (USER, BOTH + b"\x05", b"\x05\x02\x01\x01", "version"),
    "request version": (None, NO_AUTH + b"\x04", b"\x05\x00" + b"\x05\x01\x00\x01" + bytes(6), "version"),
    "bind": (None, NO_AUTH + request5(V4, 2), b"\x05\x00" + b"\x05\x07\x00\x01" + bytes(6), "command 2"),
    "command": (None, NO_AUTH + request5(V4, 9), b"\x05\x00" + b"\x05\x07\x00\x01" + bytes(6), "command 9"),
    "atyp": (
        None,
        NO_AUTH + b"\x05\x01\x00\x02",
        b"\x05\x00" + b"\x05\x08\x00\x01" + bytes(6),
        "address type",
    ),
    "bad name": (
        None,
        NO_AUTH + b"\x05\x01\x00\x03\x03a\xff/\x00\x50",
        b"\x05\x00" + b"\x05\x04\x00\x01" + bytes(6),
        "host name",
    ),
    "empty name": (
        None,
        NO_AUTH + b"\x05\x01\x00\x03\x00\x00\x50",
        b"\x05\x00" + b"\x05\x04\x00\x01" + bytes(6),
        "host name",
    ),
    "port 0": (
        None,
        NO_AUTH + request5(Destination("example.org", 0)),
        b"\x05\x00" + b"\x05\x05\x00\x01" + bytes(6),
        "port 0",
    ),
    "socks4 bind": (None, b"\x04\x02\x00\x50\xc0\x00\x02\x01\x00", b"\x00\x5b" + bytes(6), "command 2"),
    "socks4 with credentials": (
        USER,
        b"\x04\x01\x00\x50\xc0\x00\x02\x01alice\x00",
        b"\x00\x5b" + bytes(6),
        "SOCKS5",
    ),
    "socks4 port 0": (None, b"\x04\x01\x00\x00\xc0\x00\x02\x01\x00", b"\x00\x5b" + bytes(6), "port 0"),
    "socks4a bad name": (
        None,
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a b\x00",
        b"\x00\x5b" + bytes(6),
        "host name",
    ),
    "socks4a no name": (
        None,
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
        b"\x00\x5b" + bytes(6),
        "host name",
    ),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("trailing", [b"", b"GET / early data" * 200], ids=["alone", "trailing"])
def test_good(case: str, trailing: bytes) -> None:
    credentials, sent, answer, request = GOOD[case]
    whole = sent + trailing
    split = [whole] if trailing else [whole[i : i + 1] for i in range(len(whole))]
    server, output = negotiate(split, credentials)
    assert (output, server.request, server.failed, server.leftover) == (answer, request, None, trailing)


@pytest.mark.parametrize("case", GOOD)
def test_every_split_in_two_and_every_truncation(case: str) -> None:
    credentials, sent, answer, request = GOOD[case]
    for cut in range(len(sent)):
        server, before = negotiate([sent[:cut]], credentials)
        assert (server.request, server.failed, server.leftover) == (None, None, b"")
        server.receive(sent[cut:] + b"x")
        assert (before + server.take_output(), server.request, server.leftover) == (answer, request, b"x")


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
def test_bad(case: str, bytewise: bool) -> None:
    credentials, sent, answer, reason = BAD[case]
    pieces = [sent[i : i + 1] for i in range(len(sent))] if bytewise else [sent + b"trailing"]
    server, output = negotiate(pieces, credentials)
    assert (output, server.request, server.leftover) == (answer, None, b"")
    assert server.failed is not None
    assert reason in server.failed
    server.receive(sent)
    assert server.take_output() == b""


def test_the_longest_negotiation_passes() -> None:
    long = Destination(".".join(["a" * 61] * 4), 1)
    methods = b"\x05\xff" + b"\x02" * 255
    login = b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
    server, output = negotiate([methods + login + request5(long)])
    assert output == b"\x05\x02\x01\x00"
    assert server.request == connect(long)


@pytest.mark.parametrize(
    "start", [b"\x04\x01\x00\x50\x00\x00\x00\x01", b"\x04\x01\x00\x50\x00\x00\x00\x01\x00"]
)
def test_what_never_ends_is_cut(start: bytes) -> None:
    server, output = negotiate([start] + [b"a" * 100] * (MAX_NEGOTIATION // 100 + 1))
    assert (output, server.request) == (b"", None)
    assert server.failed is not None


@given(st.lists(st.binary(max_size=40)), st.sampled_from([None, USER]))
def test_any_bytes_end_in_a_state_that_the_caller_knows(
    pieces: list[bytes], credentials: Credentials
) -> None:
    server, _ = negotiate(pieces, credentials)
    assert not (server.request and server.failed)
    if server.request:
        assert len(encode(server.request.destination)) > 0
    elif not server.failed:
        assert sum(map(len, pieces)) <= MAX_NEGOTIATION


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_splits_make_no_difference(case: str, data: st.DataObject) -> None:
    credentials, sent, answer, request = GOOD[case]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)))))
    edges = [0, *cuts, len(sent)]
    server, output = negotiate([sent[a:b] for a, b in pairwise(edges)], credentials)
    assert (output, server.request) == (answer, request)


def test_replies() -> None:
    server, _ = negotiate([NO_AUTH + request5(NAME)])
    assert server.succeed(None) == b"\x05\x00\x00\x01" + bytes(6)
    assert server.succeed(("127.0.0.1", 1080)) == b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"
    assert server.succeed(("::1", 1080)) == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x04\x38"
    assert server.refuse(StreamReason.NOT_ALLOWED) == b"\x05\x02\x00\x01" + bytes(6)
    server, _ = negotiate([b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00"])
    assert server.succeed(None) == b"\x00\x5a" + bytes(6)
    assert server.succeed(("127.0.0.1", 1080)) == b"\x00\x5a\x04\x38\x7f\x00\x00\x01"
    assert server.succeed(("::1", 1080)) == b"\x00\x5a" + bytes(6)
    assert server.refuse(StreamReason.TIMED_OUT) == b"\x00\x5b" + bytes(6)


def test_every_reason_has_a_reply() -> None:
    assert set(REPLIES) == set(StreamReason)
    assert Rep.SUCCEEDED not in REPLIES.values()


@pytest.mark.parametrize("reason", StreamReason)
def test_their_client_reads_every_reply(reason: StreamReason) -> None:
    server, output = negotiate([BOTH + request5(NAME)])
    assert output == build_method_reply(AuthMethod.NO_AUTH)
    check_reply(server.refuse(reason), REPLIES[reason])
    check_reply(server.succeed(None), Rep.SUCCEEDED)
    for bound in (("192.0.2.1", 1), ("2001:db8::1", 65_535)):
        check_reply(server.succeed(bound), Rep.SUCCEEDED, bound)


@pytest.mark.parametrize(("method", "login"), [(NO_AUTH, b""), (PASSWORD_ONLY, LOGIN)])
@pytest.mark.parametrize("command", Cmd)
@pytest.mark.parametrize("host", [b"Example.ORG", b"192.0.2.1", b"xn--nxasmq6b", b"a" * 63])
def test_their_parser_agrees_on_names(method: bytes, login: bytes, command: Cmd, host: bytes) -> None:
    data = method + login + bytes((5, command, 7, 3, len(host))) + host + b"\x01\xbbleft"
    server = SocksServer(None)
    server.receive(data)
    assert server.request is not None
    check_negotiation(data, server)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_their_parser_agrees_on_anything(rest: bytes, login: bytes) -> None:
    for data in (
        NO_AUTH + b"\x05\x01\x00" + rest,
        BOTH + b"\x05\x03\x00\x04" + rest,
        PASSWORD_ONLY + LOGIN + rest,
        rest,
    ):
        server = SocksServer(None)
        server.receive(data)
        check_negotiation(data, server)


@given(st.binary(max_size=60), st.sampled_from([b"\x01", b"\x03", b"\x04"]))
def test_their_datagrams_agree(rest: bytes, kind: bytes) -> None:
    data = b"\0\0\0" + kind + rest
    try:
        destination, payload = parse_datagram(data)
    except DatagramError:
        return
    check_datagram(data, destination, payload)


@pytest.mark.parametrize("credentials", [None, Credentials.parse("u:p")])
def test_both_accept_the_same_of_generated_inputs(credentials: Credentials | None) -> None:
    source = random.Random(1)
    accepted = 0
    for _ in range(3_000):
        accepted += compare_negotiation(socks_grammar.negotiation(Choices(source.randbytes(16))), credentials)
        accepted += compare_datagram(socks_grammar.datagram(Choices(source.randbytes(16))))
    assert 800 < accepted < 5_000


@pytest.mark.parametrize("name", socks_grammar.NAMES)
def test_both_accept_the_same_names(name: bytes) -> None:
    head = bytes((3, len(name))) + name
    for port in (b"\0\0", b"\0\x50"):
        for command in Cmd:
            compare_negotiation(NO_AUTH + bytes((5, command, 0)) + head + port, None)
        compare_datagram(b"\0\0\0" + head + port)


@given(st.binary(max_size=80))
def test_both_accept_the_same_of_anything(data: bytes) -> None:
    for start in (b"", NO_AUTH, NO_AUTH + b"\x05\x01\x00", PASSWORD_ONLY + LOGIN + b"\x05\x03\x00\x03"):
        compare_negotiation(start + data, None)
    compare_datagram(b"\0\0\0" + data)


def test_a_refusal_without_a_reason_is_seen() -> None:
    assert not explained(Address("target.example", 443), zero=False)
    assert not explained(Address("192.0.2.1", 443), zero=False)
    assert not explained(Address("2001:db8::1", 443), zero=False)
    assert explained(Address("target.example", 0), zero=False)
    assert not explained(Address("target.example", 0), zero=True)
    assert explained(Address("192.0.2.256", 1), zero=False)


def test_the_oracle_disagrees_where_it_should() -> None:
    server = SocksServer(None)
    server.receive(NO_AUTH + request5(NAME))
    with pytest.raises(RuntimeError, match="is not"):
        check_negotiation(NO_AUTH + request5(V4), server)
    with pytest.raises(RuntimeError, match="head of the reply"):
        check_reply(b"\x05\x01\x00\x01" + bytes(6), Rep.SUCCEEDED)


def test_a_reply_before_the_request_is_our_own_error() -> None:
    server, _ = negotiate([NO_AUTH])
    with pytest.raises(LocalError):
        server.succeed(None)
    with pytest.raises(LocalError):
        server.refuse(StreamReason.GENERAL)


# UDP headers


@pytest.mark.parametrize("destination", [NAME, V4, V6])
def test_datagram(destination: Destination) -> None:
    wire = encode_datagram(destination, b"payload")
    assert wire == b"\x00\x00\x00" + encode(destination) + b"payload"
    assert parse_datagram(memoryview(wire)) == (destination, b"payload")
    for length in range(len(wire) - len(b"payload")):
        with pytest.raises(DatagramError):
            parse_datagram(wire[:length])


@pytest.mark.parametrize("head", [b"\x00\x00\x01", b"\x00\x00\x80", b"\x01\x00\x00", b"\x00\x01\x00"])
def test_fragments_and_reserved_bytes_are_refused(head: bytes) -> None:
    with pytest.raises(DatagramError):
        parse_datagram(head + encode(V4) + b"payload")


def test_datagram_to_port_0_is_refused() -> None:
    with pytest.raises(DatagramError):
        parse_datagram(encode_datagram(Destination("192.0.2.1", 0), b"payload"))


@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda rest: b"\x00\x00\x00" + rest)))
def test_parse_datagram_raises_nothing_else(data: bytes) -> None:
    try:
        destination, payload = parse_datagram(data)
    except DatagramError:
        return
    assert data.endswith(payload)
    assert parse_datagram(encode_datagram(destination, payload)) == (destination, payload)


def test_encode_datagram_refuses_what_is_no_destination() -> None:
    with pytest.raises(AddressError):
        encode_datagram(Destination("no name", 1), b"")


# Credentials


def test_credentials() -> None:
    credentials = Credentials.parse("al\u00efce:se:cret")
    assert credentials.check("al\u00efce".encode(), b"se:cret")
    assert not credentials.check(b"alice", b"se:cret")
    assert not credentials.check("al\u00efce".encode(), b"se")
    assert "cret" not in repr(credentials) + str(credentials)
    assert credentials == Credentials.parse("al\u00efce:se:cret")


@pytest.mark.parametrize(
    "text", ["", "alice", "alice:", ":secret", "a" * 256 + ":b", "a:" + "b" * 256, "a\n:b", "\udcff:b"]
)
def test_credentials_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Credentials.parse(text)
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=300))
def test_decoded_requests_agree_with_the_address_codec(data: bytes) -> None:
    server, _ = negotiate([NO_AUTH + b"\x05\x01\x00" + data])
    if server.request:
        destination, end = decode(data)
        assert (server.request.destination, server.leftover) == (destination, data[end:])
