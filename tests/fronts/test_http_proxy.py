"""The HTTP proxy as scripts: the client says, the origin gets, the origin answers, the client gets."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import Early
from cryprq_proxy.errors import LocalError, StreamReason
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.http_failures import FAILURES
from cryprq_proxy.fronts.http_proxy import ESTABLISHED, HttpProxy
from cryprq_proxy.session.turns import TurnBudget
from tests.support.http_fakes import Stage
from tests.support.settle import settle, until

GET = b"GET http://example.org/a HTTP/1.1\r\nHost: example.org\r\n\r\n"
GET_FORWARDED = b"GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST_HEAD = b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: %d\r\n\r\n"
POST_FORWARDED = b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: %d\r\n\r\n"
EXAMPLE = Destination("example.org", 80)
USER = Credentials.parse("alice:secret")


def status(message: bytes) -> int:
    return int(message.split(b" ", 2)[1])


# Plain requests


async def test_get() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        assert stage.opened[0][0] == EXAMPLE
        await origin.gets(GET_FORWARDED)
        origin.feed(OK)
        await stage.client.gets(OK)
        stage.client.feed_eof()
        await stage.ends()
    assert (stage.reset, stage.tunnel) == (None, None)


async def test_a_request_byte_by_byte_and_a_response_byte_by_byte() -> None:
    async with Stage() as stage:
        for i in range(len(GET)):
            stage.says(GET[i : i + 1])
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        for i in range(len(OK)):
            origin.feed(OK[i : i + 1])
        await stage.client.gets(OK)


async def test_head_has_a_length_and_no_body() -> None:
    async with Stage() as stage:
        stage.says(b"HEAD http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n")
        origin = await stage.origin()
        await origin.gets(b"HEAD / HTTP/1.1\r\nHost: example.org\r\n\r\n")
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        stage.says(GET)
        await origin.gets(GET_FORWARDED)
        origin.feed(OK)
        await stage.client.gets(OK)


@pytest.mark.parametrize("body", [b"", b"2\r\nok\r\n0\r\n\r\n", b"  2\r\nok\r\n", b"no chunk"])
async def test_what_follows_the_head_of_an_answer_to_head_is_nobodys(body: bytes) -> None:
    """Servers send bodies where there are none, and not always in chunks."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with Stage() as stage:
        stage.says(b"HEAD http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n")
        origin = await stage.origin()
        await origin.gets_message_head()
        origin.feed(head + body)
        await stage.client.gets(head)
        stage.says(GET)
        another = await stage.origin(1 if body else 0)
        await another.gets(GET_FORWARDED)
        another.feed(OK)
        await stage.client.gets(OK)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_responses_without_body_keep_both_connections(response: bytes) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        for _ in range(3):
            await origin.gets(GET_FORWARDED)
            origin.feed(response)
            await stage.client.gets(response)
            stage.says(GET)
        await origin.gets(GET_FORWARDED)
    assert len(stage.opened) == 1


@pytest.mark.parametrize("method", [b"DELETE", b"PROPFIND", b"FROBNICATE", b"TRACE"])
async def test_every_method_passes(method: bytes) -> None:
    async with Stage() as stage:
        stage.says(method + b" http://example.org/x?y HTTP/1.1\r\nHost: example.org\r\n\r\n")
        origin = await stage.origin()
        await origin.gets(method + b" /x?y HTTP/1.1\r\nHost: example.org\r\n\r\n")
        origin.feed(OK)
        await stage.client.gets(OK)


async def test_chunked_both_ways_with_trailers() -> None:
    async with Stage() as stage:
        head = b"Host: example.org\r\nTransfer-Encoding: chunked\r\n\r\n"
        stage.says(b"PUT http://example.org/ HTTP/1.1\r\n" + head + b"3\r\nabc\r\n")
        origin = await stage.origin()
        await origin.gets(b"PUT / HTTP/1.1\r\n" + head + b"3\r\nabc\r\n")
        stage.says(b"1;ext=1\r\nd\r\n1\r\ne\r\n0\r\nChecksum: 1\r\nContent-Length: 9\r\n\r\n")
        await origin.gets(b"2\r\nde\r\n0\r\nChecksum: 1\r\n\r\n")
        origin.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Checksum\r\n\r\n2\r\nxy\r\n")
        await stage.client.gets(
            b"HTTP/1.1 200 OK\r\nTrailer: Checksum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n"
        )
        origin.feed(b"0\r\nChecksum: 2\r\n\r\n")
        await stage.client.gets(b"0\r\nChecksum: 2\r\n\r\n")


async def test_bodies_are_streamed_not_collected() -> None:
    piece = b"x" * 60_000
    async with Stage() as stage:
        stage.says(POST_HEAD % (100 * len(piece)))
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % (100 * len(piece)))
        for _ in range(100):
            stage.says(piece)
            await origin.gets(piece)
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * len(piece)))
        await stage.client.gets_message_head()
        for _ in range(100):
            origin.feed(piece)
            await stage.client.gets(piece)


async def test_a_client_that_does_not_read_stops_the_reading_from_the_origin() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        stage.client.block()
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\na")
        await stage.client.gets_message_head()
        await stage.client.gets(b"a")
        reads = origin.reads
        origin.feed(b"bc")
        origin.feed(b"def")
        for _ in range(10):
            await asyncio.sleep(0)
        assert origin.reads == reads
        stage.client.unblock()
        await stage.client.gets(b"bcdef")


async def test_a_close_delimited_body_becomes_chunks_and_the_client_stays() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        origin.feed_eof()
        await stage.client.gets(b"0\r\n\r\n")
        second = stage.expect(OK)
        stage.says(GET)
        await second.gets(GET_FORWARDED)
        await stage.client.gets(OK)


async def test_an_http_1_0_client_gets_no_chunks_no_1xx_and_the_end() -> None:
    async with Stage() as stage:
        stage.says(b"GET http://example.org/a HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.feed(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        origin.feed(b"3\r\nabc\r\n0\r\nTrailer-Field: 1\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
        await stage.ends()
    assert (stage.reset, bytes(stage.client.sent)) == (None, b"")


async def test_connection_close_of_the_client_is_obeyed() -> None:
    async with Stage() as stage:
        stage.says(GET[:-2] + b"Connection: close\r\n\r\n")
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.feed(OK)
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await stage.ends()


async def test_pipelined_requests_and_stray_empty_lines() -> None:
    async with Stage() as stage:
        stage.says(b"\r\n\r\n" + POST_HEAD % 2 + b"hi\r\n" + GET + GET)
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 2 + b"hi")
        origin.feed(OK)
        for _ in range(2):
            await stage.client.gets(OK)
            await origin.gets(GET_FORWARDED)
            origin.feed(OK)
        await stage.client.gets(OK)


async def test_a_client_that_half_closes_still_gets_its_answers() -> None:
    async with Stage() as stage:
        stage.says(GET + GET)
        stage.client.feed_eof()
        origin = await stage.origin()
        for _ in range(2):
            await origin.gets(GET_FORWARDED)
            origin.feed(OK)
            await stage.client.gets(OK)
        await stage.ends()
    assert stage.reset is None


async def test_a_client_that_has_gone_leaves_its_whole_request_in_order() -> None:
    """So nothing of it is lost on its way, and the origin sees what it would see of the client itself."""
    async with Stage() as stage:
        stage.says(POST_HEAD % 3 + b"abc")
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 3 + b"abc")
        stage.gives_up()
        await stage.ends()
        assert origin.left


@pytest.mark.parametrize("state", ["uploading", "answered"])
async def test_a_client_that_has_gone_in_the_middle_breaks_its_stream(state: str) -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 10 + b"abc" if state == "uploading" else GET)
        origin = await stage.origin()
        if state == "answered":
            await origin.gets(GET_FORWARDED)
            origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            await stage.client.gets_message_head()
        else:
            await origin.gets(POST_FORWARDED % 10 + b"abc")
        stage.gives_up()
        await stage.ends()
        assert origin.aborted and not origin.left


async def test_a_request_is_being_served_until_its_answer_is_complete() -> None:
    async with Stage() as stage:
        assert not stage.proxy.serving
        stage.says(GET)
        origin = await stage.origin()
        assert stage.proxy.serving
        origin.feed(OK)
        await stage.client.gets(OK)
        await until(lambda: not stage.proxy.serving)


# Expect: 100-continue

EXPECTING = (
    b"POST http://example.org/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
)
REFUSED = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n%b\r\n"


@pytest.mark.parametrize("hint", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
async def test_a_body_that_is_withheld_ends_the_connection_with_the_answer(hint: bytes) -> None:
    """Else the next request would be read as the body."""
    async with Stage() as stage:
        stage.says(EXPECTING)
        origin = await stage.origin()
        origin.feed(hint + REFUSED % b"")
        await stage.client.gets(hint + REFUSED % b"Connection: close\r\n")
        stage.says(GET)
        await stage.ends()
    assert len(stage.opened) == 1
    assert stage.reset is None


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "unasked"])
async def test_a_body_that_comes_after_all_keeps_the_connection(asked: bool) -> None:
    async with Stage() as stage:
        stage.says(EXPECTING)
        origin = await stage.origin()
        await origin.gets_message_head()
        if asked:
            origin.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
            await stage.client.gets_message_head()
        stage.says(b"ab")
        await origin.gets(b"ab")
        origin.feed(REFUSED % b"")
        await stage.client.gets(REFUSED % b"")
        stage.says(b"c" + GET)
        await origin.gets(b"c" + GET_FORWARDED)
        origin.feed(OK)
        await stage.client.gets(OK)


# Keep-alive towards the origin


async def test_another_authority_gets_another_stream() -> None:
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(OK)
        await stage.client.gets(OK)
        second = stage.expect(OK)
        stage.says(GET.replace(b"example.org/", b"example.org:81/"))
        await second.gets(GET_FORWARDED.replace(b"example.org", b"example.org:81"))
        await stage.client.gets(OK)
        assert first.aborted
    assert [destination.port for destination, _ in stage.opened] == [80, 81]


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_stream_that_cannot_be_used_again_is_not(response: bytes) -> None:
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(response)
        await stage.client.gets(OK)
        second = stage.expect(OK)
        stage.says(GET)
        await second.gets(GET_FORWARDED)
        await stage.client.gets(OK)
        assert first.aborted


async def test_length_and_chunks_at_once_are_taken_as_chunks_and_not_trusted() -> None:
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        second = stage.expect(OK)
        stage.says(GET)
        await stage.client.gets(OK)
        assert first.aborted
        assert not second.aborted


@pytest.mark.parametrize("how", ["eof", "reset", "unasked"])
async def test_a_kept_stream_that_ended_meanwhile_is_replaced(how: str) -> None:
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(OK)
        await stage.client.gets(OK)
        await first.gets(GET_FORWARDED)
        if how == "eof":
            first.feed_eof()
        elif how == "reset":
            first.reset()
        else:
            first.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        second = stage.expect(OK)
        stage.says(POST_HEAD % 2 + b"hi")
        await second.gets(POST_FORWARDED % 2 + b"hi")
        await stage.client.gets(OK)
        assert bytes(first.sent) == b""


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_kept_stream_that_dies_under_a_request(how: str, method: bytes) -> None:
    """What may be sent twice is; for the rest the client sees what it would have seen without a proxy: a close."""
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(OK)
        await stage.client.gets(OK)
        await first.gets(GET_FORWARDED)
        second = stage.expect(OK)
        stage.says(method + GET[3:])
        await first.gets(method + GET_FORWARDED[3:])
        if how == "eof":
            first.feed_eof()
        else:
            first.reset()
        if method == b"GET":
            await second.gets(GET_FORWARDED)
            await stage.client.gets(OK)
        else:
            await stage.ends()
            assert (stage.reset, bytes(stage.client.sent), len(stage.opened)) == (None, b"", 1)


async def test_a_kept_stream_that_dies_in_mid_response_is_not_asked_again() -> None:
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        first.feed(OK)
        await stage.client.gets(OK)
        stage.says(GET)
        await first.gets(GET_FORWARDED + GET_FORWARDED)
        first.feed(b"HTTP/1.1 200")
        first.feed_eof()
        assert status(await stage.client.gets_message()) == 502
    assert len(stage.opened) == 1


# Expect, early answers, both directions at once


async def test_100_continue_comes_from_the_origin() -> None:
    head = b"Host: example.org\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    async with Stage() as stage:
        stage.says(b"POST http://example.org/ HTTP/1.1\r\n" + head)
        origin = await stage.origin()
        await origin.gets(b"POST / HTTP/1.1\r\n" + head)
        origin.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 100 Continue\r\n\r\n")
        stage.says(b"data")
        await origin.gets(b"data")
        origin.feed(OK)
        await stage.client.gets(OK)


async def test_a_refusal_instead_of_100_and_the_client_stops() -> None:
    async with Stage() as stage:
        stage.says((POST_HEAD % 4)[:-2] + b"Expect: 100-continue\r\n\r\n")
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await stage.client.gets(
            b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await stage.ends()
    assert stage.reset is None


async def test_an_early_answer_and_the_upload_goes_on() -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 6 + b"ab")
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 6 + b"ab")
        origin.feed(OK)
        await stage.client.gets(OK)
        stage.says(b"cd")
        await origin.gets(b"cd")
        stage.says(b"ef")
        await origin.gets(b"ef")
        stage.says(GET)
        await origin.gets(GET_FORWARDED)
    assert len(stage.opened) == 1


async def test_an_early_answer_from_an_origin_that_stops_reading() -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 1000 + b"ab")
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 1000 + b"ab")
        origin.block()
        stage.says(b"cd")
        origin.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await stage.client.gets(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        origin.reset()
        await stage.ends()
    assert stage.reset is None


async def test_full_duplex() -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 4)
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 4)
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        for letter in (b"a", b"b", b"c", b"d"):
            stage.says(letter)
            await origin.gets(letter)
            origin.feed(letter)
            await stage.client.gets(letter)


# Upgrade and CONNECT


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"


async def test_websocket() -> None:
    async with Stage() as stage:
        stage.says(GET[:-2] + UPGRADE)
        origin = await stage.origin()
        await origin.gets(
            GET_FORWARDED[:-2] + b"Sec-WebSocket-Key: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        switch = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: y\r\n"
        hop = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        origin.feed(switch + hop + b"frame")
        await stage.ends()
        assert stage.tunnel is not None
        assert stage.tunnel.stream is origin
        assert stage.tunnel.to_client == switch + hop + b"frame"
        assert stage.tunnel.early == b""


@pytest.mark.parametrize("early", [b"early", GET])
async def test_bytes_before_the_switch_do_not_go_to_the_origin(early: bytes) -> None:
    """They may be a request to another origin, with the client's password for this proxy."""
    async with Stage() as stage:
        stage.says(GET[:-2] + UPGRADE + early)
        origin = await stage.origin()
        await origin.gets_message()
        origin.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        head = await stage.client.gets_message_head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in head.lower()
        await stage.ends()
        assert stage.tunnel is None
        assert origin.aborted and not origin.sent


async def test_an_upgrade_that_is_declined_is_an_ordinary_request() -> None:
    async with Stage() as stage:
        stage.says(GET[:-2] + UPGRADE)
        origin = await stage.origin()
        await origin.gets_message()
        origin.feed(OK)
        await stage.client.gets(OK)
        stage.says(GET)
        await origin.gets(GET_FORWARDED)
        origin.feed(
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"
        )
        await stage.client.gets(
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n"
        )


async def test_a_websocket_by_its_own_scheme() -> None:
    """Some libraries send ws://, as if it were http://, to a proxy."""
    async with Stage() as stage:
        stage.says(b"GET ws://example.org/chat HTTP/1.1\r\nHost: example.org\r\n" + UPGRADE)
        origin = await stage.origin()
        assert stage.opened[0][0] == EXAMPLE
        assert (await origin.gets_message_head()).startswith(b"GET /chat HTTP/1.1\r\nHost: example.org\r\n")
        origin.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        await stage.ends()
        assert stage.tunnel is not None


async def test_an_upgrade_with_a_body_switches_behind_the_body() -> None:
    async with Stage() as stage:
        stage.says((POST_HEAD % 4)[:-2] + UPGRADE)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        await origin.gets_message_head()
        stage.says(b"data")
        await origin.gets(b"data")
        await stage.ends()
        assert stage.tunnel is not None


async def test_a_switch_that_nobody_asked_for() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        assert status(await stage.client.gets_message()) == 502


@pytest.mark.parametrize(
    ("target", "destination"),
    [
        (b"example.org:443", ("example.org", 443)),
        (b"[2001:DB8::1]:443", ("2001:db8::1", 443)),
        (b"192.0.2.1:22", ("192.0.2.1", 22)),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_connect(target: bytes, destination: tuple[str, int], version: bytes) -> None:
    async with Stage() as stage:
        stage.says(b"CONNECT %s HTTP/%s\r\nHost: %s\r\n\r\n\x16\x03\x01" % (target, version, target))
        await stage.ends()
        assert stage.tunnel is not None
        assert stage.opened == [(destination, stage.tunnel.stream)]
        assert (stage.tunnel.to_client, stage.tunnel.early) == (ESTABLISHED, b"\x16\x03\x01")
    assert bytes(stage.client.sent) == b""


@pytest.mark.parametrize(
    "target",
    [b"example.org", b"example.org:", b"example.org:0", b"u@example.org:1", b"::1:443", b"/", b"a:1/"],
)
async def test_connect_to_nowhere(target: bytes) -> None:
    async with Stage() as stage:
        stage.says(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(await stage.client.gets_message()) == 400
    assert stage.opened == []


async def test_connect_with_a_body_is_refused() -> None:
    async with Stage() as stage:
        stage.says(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert status(await stage.client.gets_message()) == 400
        await stage.ends()


# Failures


@pytest.mark.parametrize("reason", StreamReason)
@pytest.mark.parametrize("request_line", [b"GET http://example.org/", b"CONNECT example.org:80"])
async def test_refused_streams(reason: StreamReason, request_line: bytes) -> None:
    async with Stage() as stage:
        stage.refusals[EXAMPLE] = reason
        stage.says(request_line + b" HTTP/1.1\r\nHost: example.org\r\n\r\n")
        page = await stage.client.gets_message()
        assert status(page) == FAILURES[reason].status
        assert b"Proxy-Status: cryprq-proxy; error=" + FAILURES[reason].error.encode() in page
        assert b"Content-Type: text/plain" in page
        assert b"example.org:80" in page
        if request_line.startswith(b"GET"):
            stage.refusals.clear()
            stage.says(GET)
            origin = await stage.origin()
            origin.feed(OK)
            await stage.client.gets(OK)
        else:
            assert b"Connection: close" in page
            await stage.ends()


async def test_a_refused_head_request_has_no_page() -> None:
    async with Stage() as stage:
        stage.refusals[EXAMPLE] = StreamReason.NAME_NOT_FOUND
        stage.says(b"HEAD http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n")
        head = await stage.client.gets_message_head()
        assert status(head) == 502
    assert bytes(stage.client.sent) == b""


async def test_a_refused_upload_ends_the_connection() -> None:
    async with Stage() as stage:
        stage.refusals[EXAMPLE] = StreamReason.CONNECTION_REFUSED
        stage.says(POST_HEAD % 100 + b"abc")
        page = await stage.client.gets_message()
        assert status(page) == 502
        assert b"Connection: close" in page
        await stage.ends()
    assert stage.reset is None


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"garbage\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"X: " + b"y" * 270_000]
)
async def test_a_bad_answer_is_a_502(answer: bytes) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        if answer:
            origin.feed(answer)
        origin.feed_eof()
        assert status(await stage.client.gets_message()) == 502
        second = stage.expect(OK)
        stage.says(GET)
        await second.gets(GET_FORWARDED)
        await stage.client.gets(OK)


async def test_a_reset_before_the_answer_says_why() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.reset(StreamReason.SESSION_LOST)
        page = await stage.client.gets_message()
        assert status(page) == 502
        assert b"link to the exit" in page


# Before the exit has connected the origin


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH", b"ODD"])
async def test_what_may_be_sent_twice_does_not_wait_for_the_exit(method: bytes) -> None:
    """No answer was given yet, so a refusal is still an error page. All else is sent when the origin is connected, and
    so goes to whichever exit connects it."""
    async with Stage() as stage:
        stage.says(method + GET[3:])
        origin = await stage.origin()
        await origin.gets(method + GET_FORWARDED[3:])
        early = Early.NEVER if method in (b"POST", b"PATCH", b"ODD") else Early.ALWAYS
        assert stage.early == [early]


async def test_a_request_with_a_body_waits_for_the_exit() -> None:
    async with Stage() as stage:
        stage.says(b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 2\r\n\r\nhi")
        await stage.origin()
        assert stage.early == [Early.NEVER]


async def test_a_tunnel_is_answered_as_configured() -> None:
    async with Stage() as stage:
        stage.says(b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        await stage.ends()
        assert stage.early == [Early.AS_CONFIGURED]
        assert stage.tunnel is not None


@pytest.mark.parametrize("reason", StreamReason)
async def test_a_refusal_behind_the_request_has_the_same_page(reason: StreamReason) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.reset(reason)
        page = await stage.client.gets_message()
        assert status(page) == FAILURES[reason].status
        assert b"Proxy-Status: cryprq-proxy; error=" + FAILURES[reason].error.encode() in page
        assert len(stage.opened) == 1


async def test_an_exit_that_goes_away_before_it_has_connected_is_no_error() -> None:
    """As where nothing was sent: then the request is made again at the next one. But that is tried once."""
    async with Stage() as stage:
        stage.says(GET)
        first = await stage.origin()
        await first.gets(GET_FORWARDED)
        second = stage.expect()
        first.unserved = True
        first.reset(StreamReason.SESSION_LOST)
        await second.gets(GET_FORWARDED)
        assert stage.early == [Early.ALWAYS, Early.NEVER]
        second.unserved = True
        second.reset(StreamReason.SESSION_LOST)
        assert status(await stage.client.gets_message()) == 502


async def test_an_exit_that_goes_away_behind_the_first_byte_of_an_answer_is_one() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 ")
        await origin.gets(GET_FORWARDED)
        await settle()
        origin.unserved = True
        origin.reset(StreamReason.SESSION_LOST)
        assert status(await stage.client.gets_message()) == 502
        assert len(stage.opened) == 1


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"\r\nabc"],
    ids=["sized", "chunked", "close-delimited"],
)
async def test_a_cut_response_never_looks_whole(head: bytes) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 200 OK\r\n" + head)
        await stage.client.gets_message_head()
        origin.reset()
        await stage.ends()
        assert stage.reset is StreamReason.CONNECTION_RESET
        assert b"0\r\n\r\n" not in stage.client.sent


async def test_a_body_cut_by_the_origins_close() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        origin.feed_eof()
        await stage.ends()
        assert stage.reset is StreamReason.CONNECTION_RESET


async def test_a_client_that_resets_is_noticed_behind_pipelined_bytes() -> None:
    async with Stage() as stage:
        stage.says(GET + GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        stage.says(b"x" * 1000)
        stage.client.reset()
        await stage.ends()
        assert stage.reset is StreamReason.CONNECTION_RESET


async def test_a_client_cannot_make_us_keep_without_bound() -> None:
    async with Stage() as stage:
        stage.says(GET)
        for _ in range(100):
            stage.client.feed(b"x" * 10_000)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        for _ in range(200):
            await asyncio.sleep(0)
        assert stage.client.reads < 10
        origin.feed(OK)
        await stage.client.gets(OK)
        assert status(await stage.client.gets_message()) == 431
        await stage.ends()


@pytest.mark.parametrize("when", ["waiting", "receiving", "sending", "idle"])
async def test_a_client_that_resets_ends_the_stream_to_the_origin(when: str) -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 10 if when == "sending" else GET)
        origin = await stage.origin()
        await origin.gets_message_head()
        if when == "receiving":
            origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            await stage.client.gets_message_head()
        elif when == "idle":
            origin.feed(OK)
            await stage.client.gets(OK)
        stage.client.reset()
        await stage.ends()
        assert stage.reset is StreamReason.CONNECTION_RESET
        assert origin.aborted


@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcX"])
async def test_a_malformed_upload(body: bytes) -> None:
    async with Stage() as stage:
        stage.says(
            b"POST http://example.org/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        )
        page = await stage.client.gets_message()
        assert status(page) == 400
        await stage.ends()
        assert (await stage.origin()).aborted


async def test_an_upload_cut_short_aborts_the_stream() -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 10 + b"abc")
        origin = await stage.origin()
        await origin.gets(POST_FORWARDED % 10 + b"abc")
        stage.client.feed_eof()
        assert status(await stage.client.gets_message()) == 400
        await stage.ends()
        assert origin.aborted
        assert not origin.ended


async def test_an_upload_cut_short_in_mid_response_aborts_both() -> None:
    async with Stage() as stage:
        stage.says(POST_HEAD % 10 + b"abc")
        origin = await stage.origin()
        origin.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await stage.client.gets_message_head()
        stage.client.feed_eof()
        await stage.ends()
        assert stage.reset is StreamReason.CONNECTION_RESET


# What is no request to a proxy


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET https://example.org/ HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET wss://example.org/ HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET ftp://example.org/ HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"CONNECT u:p@example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http:///path HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/#f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a:0/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://::1/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://127.1/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000, 431),
        (
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"TRACE http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"TRACE http://a/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", 501),
        (b"GET http://a/ HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET http://a/", 400),
    ],
)
async def test_refused_requests(request_bytes: bytes, expected: int) -> None:
    async with Stage() as stage:
        stage.says(request_bytes)
        stage.client.feed_eof()
        page = await stage.client.gets_message()
        assert status(page) == expected
        await stage.ends()
    assert (stage.opened, stage.reset) == ([], None)


@pytest.mark.parametrize("target", [b"a", b"a:0", b"u:p@a:443", b"http://a/", b"a:443:443"])
async def test_what_follows_a_malformed_connect_is_no_request(target: bytes) -> None:
    async with Stage() as stage:
        stage.says(b"CONNECT " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        page = await stage.client.gets_message()
        assert status(page) == 400
        assert b"\r\nConnection: close\r\n" in page
        await stage.ends()
    assert (stage.opened, bytes(stage.client.sent)) == ([], b"")


async def test_what_follows_a_connect_without_the_password_is_no_request() -> None:
    async with Stage(USER) as stage:
        stage.says(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        assert status(await stage.client.gets_message()) == 407
        await stage.ends()
    assert (stage.opened, bytes(stage.client.sent)) == ([], b"")


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        (b"/\xc3\xbc?\xff=%20\x80", b"/%C3%BC?%FF=%20%80"),
        (b'/a?"<>|{}^', b'/a?"<>|{}^'),
    ],
)
async def test_bytes_beyond_ascii_in_a_target_are_escaped(target: bytes, forwarded: bytes) -> None:
    async with Stage() as stage:
        fields = b"Host: example.org\r\nX-Name: \xc3\xbc\r\n\r\n"
        stage.says(b"GET http://example.org" + target + b" HTTP/1.1\r\n" + fields)
        origin = await stage.origin()
        await origin.gets(b"GET " + forwarded + b" HTTP/1.1\r\n" + fields)


@pytest.mark.parametrize(
    "line",
    [
        b"G\xc3\x89T http://a/ HTTP/1.1",
        b"GET http://\xc3\xbc/ HTTP/1.1",
        b"GET http://a/ HTTP/1.\xb9",
        b"GET http://a/\xc3\xbc b HTTP/1.1",
        b"GET http://a/\xc3\xbc\x01 HTTP/1.1",
        b"CONNECT \xc3\xbc:443 HTTP/1.1",
        b"\xc3\xbc",
    ],
)
async def test_bytes_beyond_ascii_elsewhere_are_refused(line: bytes) -> None:
    async with Stage() as stage:
        stage.says(line + b"\r\nHost: a\r\n\r\n")
        assert status(await stage.client.gets_message()) == 400
    assert not stage.opened


async def test_a_slow_request_is_a_408_and_an_idle_connection_ends_in_silence() -> None:
    async with Stage(header_timeout=0) as stage:
        stage.says(b"GET http://exam")
        assert status(await stage.client.gets_message()) == 408
        await stage.ends()
    async with Stage(keepalive_timeout=0) as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(OK)
        await stage.client.gets(OK)
        await stage.ends()
    assert (stage.reset, bytes(stage.client.sent)) == (None, b"")


async def test_nothing_at_all() -> None:
    async with Stage() as stage:
        stage.says(b"")
        stage.client.feed_eof()
        await stage.ends()
    assert (stage.reset, stage.tunnel, bytes(stage.client.sent)) == (None, None, b"")


# Credentials


def basic(pair: bytes) -> bytes:
    return b"Proxy-Authorization: Basic " + b64encode(pair) + b"\r\n\r\n"


async def test_the_right_password_passes_and_stays_here() -> None:
    async with Stage(USER) as stage:
        stage.says(GET)
        page = await stage.client.gets_message()
        assert status(page) == 407
        assert b'Proxy-Authenticate: Basic realm="cryprq-proxy"' in page
        stage.says(GET[:-2] + basic(b"alice:secret"))
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.feed(OK)
        await stage.client.gets(OK)
        stage.says(GET)
        assert status(await stage.client.gets_message()) == 407
        stage.says(b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n" + basic(b"alice:secret"))
        await stage.ends()
        assert stage.tunnel is not None


@pytest.mark.parametrize(
    "field",
    [
        basic(b"alice:Secret"),
        basic(b"alice"),
        basic(b"alicesecret"),
        b"Proxy-Authorization: Basic !!!\r\n\r\n",
        b"Proxy-Authorization: Bearer YWxpY2U6c2VjcmV0\r\n\r\n",
        b"Proxy-Authorization:\r\n\r\n",
        b"Authorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n",
    ],
)
async def test_wrong_passwords(field: bytes) -> None:
    async with Stage(USER) as stage:
        stage.says(GET[:-2] + field)
        assert status(await stage.client.gets_message()) == 407
    assert stage.opened == []


async def test_a_password_is_never_forwarded_even_where_none_is_asked_for() -> None:
    async with Stage() as stage:
        stage.says(GET[:-2] + basic(b"alice:secret"))
        await (await stage.origin()).gets(GET_FORWARDED)


# Via, cancelling


async def test_via() -> None:
    async with Stage(via="cryprq") as stage:
        stage.says(GET[:-2] + b"Via: 1.1 before\r\n\r\n")
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED[:-2] + b"Via: 1.1 before\r\nVia: 1.1 cryprq\r\n\r\n")
        origin.feed(b"HTTP/1.0 204 No\r\n\r\n")
        await stage.client.gets(b"HTTP/1.1 204 No\r\nVia: 1.0 cryprq\r\n\r\n")
    with pytest.raises(LocalError):
        HttpProxy(stage.client, stage, TurnBudget(asyncio.get_running_loop().call_soon), via="a b")


async def test_cancelling_leaves_nothing_open() -> None:
    stage = Stage()
    stage.says(b"")  # before it runs: what the listener had is given to `run` below
    task = asyncio.create_task(stage.proxy.run(GET))
    origin = await stage.origin()
    await origin.gets(GET_FORWARDED)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert origin.aborted
