"""What a server of DNS over HTTPS can make the client do in one turn of the loop."""

from __future__ import annotations

import asyncio

import pytest

from cryprq_proxy.outbound.bytestream import ByteStream
from cryprq_proxy.outbound.http_chunks import CHUNK_WORK, SLICE_CHUNKS
from cryprq_proxy.outbound.http_reader import MAX_INTERIM
from cryprq_proxy.outbound.http_sections import MAX_FIELDS
from cryprq_proxy.session.turns import TURN_WORK
from tests.support.dns_fakes import inquiry
from tests.support.http_fakes import FakeStream
from tun.dns.framed import UpstreamError
from tun.dns.https import HttpsUpstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\n"
MANY = 10_000


def asked(response: bytes) -> asyncio.Future[bytes]:
    """A question to a server that answers like this."""

    async def open_stream() -> ByteStream:
        return FakeStream(response)

    return asyncio.ensure_future(HttpsUpstream(open_stream, "dns.example", "/").ask(inquiry()))


async def test_tiny_chunks_pass_a_turn_at_a_time() -> None:
    asking = asked(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nz\r\n" * MANY + b"0\r\n\r\n")
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    with pytest.raises(UpstreamError, match="another question"):
        await asking
    assert turns >= MANY // (TURN_WORK // CHUNK_WORK + SLICE_CHUNKS)


@pytest.mark.parametrize(
    "field", [b"A:" + b" " * 256 + b"b\r\n", b"a: b\r\n" * (MAX_FIELDS + 1)], ids=["spaces", "fields"]
)
async def test_heads_beyond_the_bounds_are_refused(field: bytes) -> None:
    with pytest.raises(UpstreamError, match="malformed"):
        await asked(HEAD + field + b"Content-Length: 4\r\n\r\njunk")


@pytest.mark.parametrize(
    ("interim", "text"), [(MAX_INTERIM, "another question"), (MAX_INTERIM + 1, "malformed")]
)
async def test_answers_before_the_response_are_bounded(interim: int, text: str) -> None:
    with pytest.raises(UpstreamError, match=text):
        await asked(b"HTTP/1.1 103 E\r\n\r\n" * interim + HEAD + b"Content-Length: 4\r\n\r\njunk")
