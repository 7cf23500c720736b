"""SocketStream on a pair of sockets whose other end is the test's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import StreamReset
from cryprq_proxy.outbound.bytestream import SocketStream
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
