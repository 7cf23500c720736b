"""Five thousand streams at once over one link."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator

import pytest

from tests.support.applications import through
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import TcpTarget

STREAMS = 5_000
FILES = 2 * STREAMS + 1_000
"""Of this process: both ends of everything, as application and as target."""
OPENING = 64
"""Connections that are being opened at any one time."""


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"{FILES} open files are needed, and this system allows {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(400)
async def test_five_thousand_streams(world: World, many_files: None, echo_target: TcpTarget) -> None:
    """Open them all, talk twice on each, end them all: nothing is left on either side."""
    exit, client = world.pair()
    # The exit keeps one descriptor for a peer that has had a target.
    await asyncio.to_thread(lambda: through(client.port, echo_target.port).close())
    await asyncio.to_thread(until, lambda: counts(exit, client) == (0, 0), "the first stream is gone")
    files = len(exit.lasting_files()), len(client.lasting_files())
    turn = asyncio.Semaphore(OPENING)
    address = b"\x01\x7f\0\0\x01" + echo_target.port.to_bytes(2)

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with turn:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(b"\x05\x01\x00\x05\x01\x00" + address)
            assert (await reader.readexactly(12))[:4] == b"\x05\x00\x05\x00"
            return reader, writer

    async def echo(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b"%8d" % number * 64
        writer.write(data)
        assert await reader.readexactly(len(data)) == data

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async with asyncio.timeout(300):
        streams = await asyncio.gather(*(open_one() for _ in range(STREAMS)))
        # Applications are answered before the exit has heard of their streams.
        await asyncio.to_thread(until, lambda: counts(exit, client) == (STREAMS, STREAMS), "all are open")
        for _ in range(2):
            await asyncio.gather(*(echo(number, *stream) for number, stream in enumerate(streams)))
        await asyncio.gather(*(close(*stream) for stream in streams))
    await asyncio.to_thread(until, lambda: counts(exit, client) == (0, 0), "all streams are gone")
    until(lambda: (exit.files(), client.files()) == files, "all sockets are closed")
    assert exit.status()["targets"] == 0
    assert client.log.count("link up") == 1
    assert "link down" not in client.log


def counts(exit: Exit, client: Client) -> tuple[int, int]:
    return exit.streams, client.streams
