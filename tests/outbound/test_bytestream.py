"""SocketStream on a pair of sockets whose other end is the test's, and LinkStream on a stream of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import StreamReason, StreamReset
from cryprq_proxy.outbound import bytestream
from cryprq_proxy.outbound.bytestream import LinkStream, SocketStream
from cryprq_proxy.session.streams import Half
from tests.support.fake_streams import FakeStream
from tests.support.settle import until

LARGE = bytes(range(256)) * 16_384
"""More than the kernel keeps for a reader."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def test_a_slow_reader_is_seen_to_take_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    """They were counted when all was written, and until then its exchange looked idle."""
    stream, loop = SocketStream(pair[0]), asyncio.get_running_loop()
    writing = spawn(stream.write(LARGE), "write")
    await until(lambda: stream.moved > 0)
    received = bytearray()
    while len(received) < len(LARGE):
        before = stream.moved
        received += await loop.sock_recv(pair[1], 1 << 20)
        if before < len(LARGE):
            await until(lambda before=before: stream.moved > before)  # type: ignore[misc]
    await writing
    assert received == LARGE and stream.moved == len(LARGE)


async def test_small_data_is_written_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = SocketStream(pair[0])
    await stream.write(b"small")
    assert stream.moved == 5 and pair[1].recv(10) == b"small"


async def test_a_reader_that_goes_ends_the_write(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = SocketStream(pair[0])
    writing = spawn(stream.write(LARGE), "write")
    await until(lambda: stream.moved > 0)
    pair[1].close()
    with pytest.raises(StreamReset):
        await writing
    with pytest.raises(StreamReset):
        await stream.write(b"more")


async def test_a_cancelled_write_sends_nothing_more(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = SocketStream(pair[0])
    writing = spawn(stream.write(LARGE), "write")
    await until(lambda: stream.moved > 0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not asyncio.get_running_loop().remove_writer(pair[0].fileno())


# --- streams of the link ---


def opened(stream: FakeStream) -> LinkStream:
    link = LinkStream()
    stream.handler = link
    link.begin(stream)
    link.opened()
    return link


async def test_a_stream_that_is_left_ends_in_order_and_then_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin has time to end by itself."""
    monkeypatch.setattr(bytestream, "PARTING_SECONDS", 0.02)
    stream = FakeStream()
    opened(stream).leave()
    assert (stream.send_half, stream.resets) == (Half.CLOSED, [])
    await until(lambda: stream.resets == [StreamReason.CANCELLED])


@pytest.mark.parametrize("how", ["answer", "end", "reset"])
async def test_what_comes_for_a_stream_that_was_left_ends_it(how: str) -> None:
    stream = FakeStream()
    link = opened(stream)
    link.leave()
    if how == "answer":
        stream.handler.data_received(memoryview(b"late"))
    elif how == "end":
        stream.end()
    else:
        stream.handler.reset(StreamReason.CONNECTION_RESET)
    assert stream.resets == ([] if how == "reset" else [StreamReason.CANCELLED])
    with pytest.raises(StreamReset):
        await link.read()


@pytest.mark.parametrize("how", ["answer", "end", "reset"])
async def test_a_stream_whose_answer_has_begun_is_left_by_a_reset(how: str) -> None:
    stream = FakeStream()
    link = opened(stream)
    if how == "answer":
        stream.handler.data_received(memoryview(b"begun"))
    elif how == "end":
        stream.end()
    else:
        link.abort()
    link.leave()
    assert stream.resets == [StreamReason.CANCELLED]
    link.leave()
    assert stream.resets == [StreamReason.CANCELLED]


@pytest.mark.parametrize("how", ["answer", "end"])
async def test_whatever_comes_for_an_idle_stream_ends_it(how: str) -> None:
    """The socket of an origin that had closed stayed open at the exit until the next request."""
    stream = FakeStream()
    link = opened(stream)
    assert link.keep()
    if how == "answer":
        stream.handler.data_received(memoryview(b"unasked"))
    else:
        stream.end()
    assert stream.resets == [StreamReason.CANCELLED]
    with pytest.raises(StreamReset):
        await link.read()


async def test_a_stream_in_use_may_get_what_it_asked_for() -> None:
    stream = FakeStream()
    link = opened(stream)
    assert link.keep()
    link.use()
    stream.handler.data_received(memoryview(b"asked"))
    stream.end()
    assert (await link.read(), await link.read(), stream.resets) == (b"asked", b"", [])
    assert not link.keep(), "it has ended"


async def test_an_idle_stream_does_not_hold_a_session_that_is_left() -> None:
    """It kept an exit that was about to stop for the whole of its grace."""
    stream = FakeStream()
    link = opened(stream)
    assert link.keep()
    stream.handler.session_left()
    assert stream.resets == [StreamReason.CANCELLED]


async def test_a_stream_of_a_session_that_is_left_is_not_kept() -> None:
    stream = FakeStream()
    link = opened(stream)
    stream.handler.session_left()
    assert stream.resets == [], "its answer is under way"
    assert not link.keep()


# --- a stream that is not opened yet ---


@pytest.mark.parametrize("reason", StreamReason)
@pytest.mark.parametrize("opened", [False, True])
async def test_which_stream_was_not_served(reason: StreamReason, opened: bool) -> None:
    """Because its exit went away; any other reason is an answer."""
    link, stream = LinkStream(), FakeStream()
    link.begin(stream)
    link.expected()
    await link.wait_opened()
    await link.write(b"question")
    assert stream.sent == b"question" and not link.unserved
    if opened:
        link.opened()
    link.refused(reason)
    gone = reason in (StreamReason.SHUTTING_DOWN, StreamReason.SESSION_LOST)
    assert link.unserved == (gone and not opened)
    with pytest.raises(StreamReset) as reset:
        await link.read()
    assert reset.value.reason is reason
    link.abort()
    assert link.unserved == (gone and not opened), "nor does the end of its owner change it"
