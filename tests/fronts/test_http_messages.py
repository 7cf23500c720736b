"""The pure half of the HTTP proxy: targets, fields, bodies, pages; and that nothing can be smuggled through."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.http_failures import RequestRefused
from cryprq_proxy.fronts.http_messages import (
    check_authorization,
    check_request,
    forward_request,
    forward_response,
    has_body,
    is_repeatable,
    parse_target,
    relay_body,
)
from tests.support.http_fakes import Stage

Fields = list[tuple[bytes, bytes]]


def request(
    target: bytes, fields: Iterable[tuple[bytes, bytes]] = (), method: bytes = b"GET", version: bytes = b"1.1"
) -> h11.Request:
    return h11.Request(
        method=method, target=target, headers=[(b"Host", b"ignored"), *fields], http_version=version
    )


def forwarded(fields: Fields, method: bytes = b"GET", version: bytes = b"1.1") -> Fields:
    """What is left of the fields, without the Host that comes first."""
    asked = request(b"http://example.org/", fields, method, version)
    raw = forward_request(asked, parse_target(asked), None).headers.raw_items()
    assert raw[0] == (b"Host", b"example.org")
    return raw[1:]


def answered(fields: Fields, status: int = 200) -> Fields:
    return forward_response(h11.Response(status_code=status, headers=fields), None).headers.raw_items()


@pytest.mark.parametrize(
    ("method", "uri", "destination", "host", "path"),
    [
        (b"GET", b"http://example.org", "example.org:80", b"example.org", b"/"),
        (
            b"GET",
            b"HTTP://Example.ORG:8080/A?b=http://c",
            "example.org:8080",
            b"Example.ORG:8080",
            b"/A?b=http://c",
        ),
        (b"GET", b"http://example.org?q", "example.org:80", b"example.org", b"/?q"),
        (b"GET", b"http://example.org:/", "example.org:80", b"example.org", b"/"),
        (b"GET", b"http://[::1]:81/", "[::1]:81", b"[::1]:81", b"/"),
        (b"GET", b"http://[::1]", "[::1]:80", b"[::1]", b"/"),
        (b"OPTIONS", b"http://example.org", "example.org:80", b"example.org", b"*"),
        (b"OPTIONS", b"http://example.org/", "example.org:80", b"example.org", b"/"),
        (b"OPTIONS", b"http://example.org?q", "example.org:80", b"example.org", b"/?q"),
        (b"CONNECT", b"example.org:443", "example.org:443", b"example.org:443", b""),
    ],
)
def test_targets(method: bytes, uri: bytes, destination: str, host: bytes, path: bytes) -> None:
    target = parse_target(request(uri, method=method))
    assert (str(target.destination), target.authority, target.path) == (destination, host, path)


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        (b"u:p@", b"u:p"),
        (b"u@", b"u:"),
        (b"u:@", b"u:"),
        (b":p@", b":p"),
        (b"%75:p%3A%40@", b"u:p:@"),
        (b"u:p:q@", b"u:p:q"),
        (b"u:p@q@", b"u:p@q"),
        (b"%zz:%c3%bc@", b"%zz:\xc3\xbc"),
    ],
)
def test_user_and_password_of_a_uri(userinfo: bytes, pair: bytes) -> None:
    asked = request(b"http://" + userinfo + b"example.org/")
    target = parse_target(asked)
    assert (str(target.destination), target.authority, target.path) == (
        "example.org:80",
        b"example.org",
        b"/",
    )
    wanted = b"Basic " + b64encode(pair)
    assert dict(forward_request(asked, target, None).headers)[b"authorization"] == wanted
    assert wanted.decode() not in repr(target)
    given = [(b"Host", b"x"), (b"Authorization", b"Bearer y")]
    own = h11.Request(method="GET", target=b"http://" + userinfo + b"example.org/", headers=given)
    assert [
        value for name, value in forward_request(own, target, None).headers if name == b"authorization"
    ] == [b"Bearer y"]


def test_a_uri_without_a_user_gets_no_authorization() -> None:
    for uri in (b"http://example.org/", b"http://@example.org/", b"http://example.org/u:p@x"):
        asked = request(uri)
        assert b"authorization" not in dict(forward_request(asked, parse_target(asked), None).headers)


def test_fields_for_one_hop_stay_here() -> None:
    kept = [(b"aCCept", b"*/*"), (b"COOKIE", b"a=b"), (b"X-Two", b"1"), (b"X-Two", b"2")]
    dropped = [
        (b"Connection", b"keep-alive, X-Mine , ,Upgrade;x"),
        (b"X-Mine", b"1"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Keep-Alive", b"timeout=5"),
        (b"TE", b"gzip"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"HTTP2-Settings", b"x"),
    ]
    assert forwarded([*kept[:2], *dropped, *kept[2:]]) == kept


def test_fields_of_a_response_for_one_hop_stay_here() -> None:
    assert answered(
        [
            (b"sERVER", b"x"),
            (b"Connection", b"close, x-mine"),
            (b"X-Mine", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Upgrade", b"h2c"),
            (b"Proxy-Authenticate", b"Basic"),
            (b"Content-Length", b"5"),
        ]
    ) == [(b"sERVER", b"x"), (b"Content-Length", b"5")]


def test_framing_cannot_be_talked_away() -> None:
    """Fields that Connection names are dropped, but not those that say where the body ends, nor Host."""
    length = [(b"Connection", b"content-length, host, transfer-encoding"), (b"Content-Length", b"5")]
    assert forwarded(length, b"POST") == [(b"Content-Length", b"5")]
    assert answered(length) == [(b"Content-Length", b"5")]
    chunks = [(b"Connection", b"transfer-encoding"), (b"Transfer-Encoding", b"Chunked")]
    assert forwarded(chunks, b"POST") == [(b"Transfer-Encoding", b"chunked")]


def test_lengths_where_there_is_none() -> None:
    assert answered([(b"Content-Length", b"5")], 204) == []
    assert answered([(b"Content-Length", b"5")], 304) == [(b"Content-Length", b"5")]
    assert answered([(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")]) == []


def test_upgrades() -> None:
    offer = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    assert forwarded(offer) == offer
    assert forwarded([(b"Upgrade", b"websocket")]) == []
    assert forwarded([(b"Upgrade", b"h2c"), (b"Connection", b"upgrade, http2-settings")]) == []
    assert forwarded([(b"Upgrade", b"H2C, websocket"), (b"Connection", b"upgrade")]) == offer
    assert forwarded(offer, version=b"1.0") == []


def test_trailers_can_be_asked_for() -> None:
    assert forwarded([(b"TE", b"gzip;q=0.5, Trailers")]) == [(b"TE", b"trailers"), (b"Connection", b"TE")]
    assert forwarded([(b"TE", b"trailers")], version=b"1.0") == []


def test_max_forwards() -> None:
    assert forwarded([(b"Max-Forwards", b"5")], b"OPTIONS") == [(b"Max-Forwards", b"4")]
    assert forwarded([(b"Max-Forwards", b"5")], b"GET") == [(b"Max-Forwards", b"5")]
    assert forwarded([(b"Max-Forwards", b"x")], b"TRACE") == [(b"Max-Forwards", b"x")]
    with pytest.raises(RequestRefused):
        check_request(request(b"http://a/", [(b"Max-Forwards", b"0")], b"OPTIONS"))


def test_expectations() -> None:
    expect = [(b"Expect", b"100-continue")]
    assert forwarded(expect) == expect
    assert forwarded(expect, version=b"1.0") == []


def test_nothing_tells_the_origin_about_the_client() -> None:
    names = {name.lower() for name, _ in forwarded([(b"User-Agent", b"x")])}
    assert names == {b"user-agent"}


def test_what_may_be_sent_twice() -> None:
    assert is_repeatable(request(b"http://a/"))
    assert is_repeatable(request(b"http://a/", [(b"Content-Length", b"0")], b"PUT"))
    assert not is_repeatable(request(b"http://a/", [(b"Content-Length", b"1")], b"PUT"))
    assert not is_repeatable(request(b"http://a/", [(b"Transfer-Encoding", b"chunked")], b"PUT"))
    assert not is_repeatable(request(b"http://a/", method=b"POST"))


@given(st.binary(max_size=60))
def test_any_authorization_is_right_or_refused(value: bytes) -> None:
    try:
        asked = request(b"http://a/", [(b"Proxy-Authorization", b"Basic " + value)])
    except h11.LocalProtocolError:
        return
    with pytest.raises(RequestRefused) as caught:
        check_authorization(asked, Credentials.parse("alice:secret"))
    assert caught.value.status == 407


@given(st.text("htp:/@[]?#.%aé0*", max_size=20), st.sampled_from([b"GET", b"OPTIONS", b"CONNECT"]))
def test_any_target_is_one_or_is_refused(target: str, method: bytes) -> None:
    try:
        asked = request(target.encode(), method=method)
    except h11.LocalProtocolError:
        return
    try:
        parsed = parse_target(asked)
    except RequestRefused as refusal:
        assert refusal.status in (400, 501)
        return
    assert parsed.destination.host.isascii()
    assert parsed.path[:1] in (b"/", b"*", b"")


def chunks_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, over and over."""
    pieces, at, i = [], 0, 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        pieces.append(data[at : at + size])
        at, i = at + size, i + 1
    return pieces


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1), st.booleans(), st.booleans())
def test_bodies_survive_any_framing(data: bytes, sizes: list[int], chunked: bool, old_client: bool) -> None:
    """origin -> CLIENT h11 -> relay_body -> SERVER h11 -> a client's h11: the same bytes, and a certain end."""
    version = b"1.0" if old_client else b"1.1"
    get = request(b"http://a/", version=version)
    client, server, origin = (
        h11.Connection(h11.CLIENT),
        h11.Connection(h11.SERVER),
        h11.Connection(h11.CLIENT),
    )
    asked = client.send(request(b"/")).replace(b"HTTP/1.1", b"HTTP/" + version)
    server.receive_data(asked + client.send(h11.EndOfMessage()))
    assert isinstance(server.next_event(), h11.Request)
    server.next_event()
    origin.send(forward_request(get, parse_target(get), None))
    origin.send(h11.EndOfMessage())

    if chunked:
        framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in chunks_of(data, sizes[::-1]))
        wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\nA: b\r\n\r\n"
    else:
        wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    out, complete = b"", False
    for piece in chunks_of(wire, sizes):
        assert not complete
        origin.receive_data(piece)
        if origin.their_state is h11.SEND_RESPONSE:
            event = origin.next_event()
            if event is h11.NEED_DATA:
                continue
            assert isinstance(event, h11.Response)
            out += server.send(forward_response(event, None))
        piece, complete = relay_body(origin, server, trailers=not old_client)
        out += piece
    assert complete

    client.receive_data(out)
    assert isinstance(client.next_event(), h11.Response)
    if old_client:
        client.receive_data(b"")
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == data
    assert event.headers.raw_items() == ([(b"A", b"b")] if chunked and not old_client else [])


ODD = st.sampled_from(
    [
        b"GET http://a/ HTTP/1.1\r\n",
        b"POST http://a/ HTTP/1.1\r\n",
        b"GET http://b:81/ HTTP/1.0\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Host: a\r\n\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Connection: content-length, close\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b" folded: x\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"hello",
        b"\x00",
    ]
)


@given(st.lists(ODD, max_size=14), st.lists(ODD, max_size=6))
async def test_what_reaches_an_origin_is_always_one_clear_request_after_the_other(
    said: list[bytes], answer: list[bytes]
) -> None:
    async with Stage() as stage:
        for _ in range(20):  # more than there are requests in what is said
            stage.expect(b"HTTP/1.1 200 OK\r\n" + b"".join(answer)).feed_eof()
        stage.says(b"".join(said))
        stage.client.feed_eof()
        await stage.ends()
    for _, stream in stage.opened:
        assert_clear(bytes(stream.sent))


def assert_clear(sent: bytes) -> None:
    """Every request that the origin got is a valid one to it, and only the last may be cut."""
    while sent:
        origin = h11.Connection(h11.SERVER)
        origin.receive_data(sent)
        event = origin.next_event()
        assert isinstance(event, h11.Request)
        names = [name for name, _ in event.headers]
        assert names[0] == b"host"
        assert not (b"content-length" in names and b"transfer-encoding" in names)
        assert event.target.startswith((b"/", b"*"))
        assert has_body(event) or b"transfer-encoding" not in names
        while isinstance(event := origin.next_event(), h11.Data):
            pass
        if not isinstance(event, h11.EndOfMessage):
            return
        sent = origin.trailing_data[0]


@pytest.mark.parametrize("control", [b"\x01", b"\x08", b"\x0e", b"\x1c", b"\x1f", b"\x7f"])
def test_a_control_character_in_a_field_is_refused(control: bytes) -> None:
    """Some servers take it for the end of a line, and see a field of the framing behind it."""
    with pytest.raises(RequestRefused) as refused:
        check_request(request(b"http://a/", [(b"X-A", b"a" + control + b"Transfer-Encoding: chunked")]))
    assert refused.value.status == 400 and refused.value.close
    check_request(request(b"http://a/", [(b"X-A", b"a\tb \x80\xff")]))


def test_a_trailer_with_a_control_character_is_left_out() -> None:
    source, sink = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    source.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: a\x1cb\r\nX-B: c\r\n\r\n"
    )
    source.next_event()
    sink.send(
        h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Transfer-Encoding", "chunked")])
    )
    assert relay_body(source, sink) == (b"0\r\nX-B: c\r\n\r\n", True)
