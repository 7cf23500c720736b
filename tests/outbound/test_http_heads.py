"""Heads of responses written anew, and what the client gets of them: in every cut, with one end, or not at all."""

from __future__ import annotations

import asyncio

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.outbound.http_heads import clean_head, clean_trailers
from tests.support.http_fakes import PATIENCE, Stage
from tests.support.odd_heads import BODY, LISTED, OTHERS
from tests.support.strict_http import StrictMessage, read_responses

GET = b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
REFUSED = {"NUL", "NUL in a name", "more than the bound", "two lengths"}
PASSED_ON = {"control"}
"""What the strict reader does not take and clients get as it is (RFC 9110 section 5.5)."""
UNCUT = 1 << 20


async def answered(response: bytes, piece: int = UNCUT, *, ends: bool = False) -> tuple[StrictMessage, bool]:
    """What the client gets of a response, and whether the connection would be used again; with `ends` it ends."""
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        for start in range(0, len(response), piece):
            origin.feed(response[start : start + piece])
        if ends:
            origin.feed_eof()
        async with asyncio.timeout(PATIENCE):
            while not (origin.kept or origin.aborted):
                await asyncio.sleep(0)
        messages = read_responses(bytes(stage.client.sent), [b"GET"])
    return next(message for message in messages if message.start[0] >= b"2"), origin.kept


@pytest.mark.parametrize("name", sorted({**LISTED, **OTHERS}.keys() - REFUSED - PASSED_ON))
@pytest.mark.parametrize("piece", [UNCUT, 7, 1])
async def test_odd_responses_arrive_whole_in_any_cut(name: str, piece: int) -> None:
    response = {**LISTED, **OTHERS}[name]
    message, _ = await answered(response, piece if len(response) < 10_000 else piece * 500, ends=True)
    assert (message.start[0], message.body, message.complete) == (b"200", BODY, True)
    assert message.values(b"access-control-allow-origin") == [b"*"]


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("piece", [UNCUT, 1_000])
async def test_what_no_browser_shows_is_refused_in_any_cut(name: str, piece: int) -> None:
    assert (await answered(OTHERS[name], piece))[0].start[0] == b"502"


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: identity, chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked, chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding : chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding:\r\n\tchunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n", b"ab"),
        (b"Content-Length : 2\r\n", b"ab"),
        (b"Content-Length:\r\n 2\r\n", b"ab"),
        (b"Transfer Encoding: chunked\r\nContent-Length: 2\r\n", b"ab"),
        (b"Transfer-Encoding chunked\r\nContent-Length: 2\r\n", b"ab"),
        (b"X: y\nContent-Length: 2\r\n", b"ab"),
        (b"Transfer-Encoding: chunked\r\n", b"2\nab\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"2 ; a=b\r\nab\r\n0\t;c\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"2\r\nab\n0\r\n\r\n"),
    ],
)
async def test_a_connection_with_a_doubtful_end_is_not_used_again(fields: bytes, body: bytes) -> None:
    message, reused = await answered(OK + fields + b"\r\n" + body)
    assert (message.start[0], message.body, message.complete, reused) == (b"200", b"ab", True, False)


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:chunked\r\n",
        b"X-Text: \xff\r\nTransfer-Encoding: chunked\r\nX-Empty:\r\n",
    ],
)
async def test_a_connection_with_one_clear_end_is_used_again(fields: bytes) -> None:
    message, reused = await answered(OK + fields + b"\r\n" + b"2\r\nab\r\n0\r\n\r\n")
    assert (message.body, message.complete) == (b"ab", True)
    assert reused


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2\r\nContent-Length : 3\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2\r\n 3\r\n",
        b"Content-Length: 2\x0b\r\n",
        b"Content-Length: 2\r3\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: chunked\x0c\r\n",
        b"Transfer-Encoding: \0chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
        b"X Y: y\rTransfer-Encoding: chunked\r\n",
        b"no colon\rContent-Length: 2\r\n",
        b"X: y\r\n Transfer-Encoding: chunked\r\n",
        b" Content-Length: 2\r\n",
        b"X: y\r\n\tcontent-length : 2\r\n",
        b"X: \0\r\n",
        b"X\0Y: 1\r\n",
    ],
)
@pytest.mark.parametrize("length", [b"", b"X: y\n"])
async def test_an_ambiguous_head_is_refused(fields: bytes, length: bytes) -> None:
    response = OK + length + fields + b"\r\n" + b"2\r\nab\r\n0\r\n\r\n"
    for piece in (UNCUT, 1):
        message, reused = await answered(response, piece)
        assert (message.start[0], reused) == (b"502", False)


def test_a_head_that_other_readers_end_early_is_refused() -> None:
    with pytest.raises(h11.RemoteProtocolError):
        clean_head(OK + b"X: y\r\n\r\r\r\nContent-Length: 2\r\n\r\n")


def test_a_clean_head_is_the_same_object() -> None:
    for head in (OK + b"\r\n", OK + b"A: b\r\nContent-Length:\t5 \r\nE:\r\n\r\n", b"HTTP/1.0 404\r\n\r\n"):
        assert clean_head(head) is head
    for section in (b"\r\n", b"A: b\r\n\r\n"):
        assert clean_trailers(section) is section


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"icy 200 OK", b"HTTP/1.0 200 OK"),
        (b"http/1.1 404 x", b"HTTP/1.1 404 x"),
        (b"HTTP/0.9 200 OK", b"HTTP/1.0 200 OK"),
        (b"HTTP/2.0 200 OK", b"HTTP/1.1 200 OK"),
        (b"\xef\xbb\xbfHTTP/1.1 200 OK", b"HTTP/1.1 200 OK"),
        (b"HTTP/1.1  204 a\rb", b"HTTP/1.1 204 a b"),
        (b"HTTP/1.1", b"HTTP/1.1 200 "),
    ],
)
def test_status_lines(line: bytes, expected: bytes) -> None:
    assert clean_head(line + b"\r\n\r\n") == expected + b"\r\n\r\n"


def test_a_first_line_without_a_name_of_the_protocol_is_refused() -> None:
    for line in (b"garbage", b"SSH-2.0-OpenSSH", b"12345HTTP/1.1 200 OK"):
        with pytest.raises(h11.RemoteProtocolError):
            clean_head(line + b"\r\n\r\n")


PIECES = [
    b"Content-Length", b"Transfer-Encoding", b"X", b":", b" ", b"\t", b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b"chunked",
    b"identity", b",", b"5", b"\xff", b"/", b"HTTP/1.1 200 OK",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))
def test_what_is_written_anew_is_clean_and_stays_as_it_is(fields: bytes) -> None:
    section = fields.lstrip(b"\r\n").replace(b"\n\n", b"\n").replace(b"\n\r\n", b"\n") + b"\r\n\r\n"
    try:
        cleaned = clean_head(OK + section)
    except h11.RemoteProtocolError:
        return
    assert clean_head(cleaned) is cleaned
