"""Where the second client meets the real exit (web_links.py): servers, and wires that a test can cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from cryprq_proxy.address import Destination
from tests.support.second_client import Path, Session, Stream
from tests.support.second_flights import Keys
from tests.support.second_frames import Address, Kind
from tests.support.second_lane import Lane
from tests.support.web_links import CLIENT_IDENTITY, EXIT_IDENTITY, Place, Relay

EXIT_ID = EXIT_IDENTITY.peer_id.raw
SEEDS = CLIENT_IDENTITY._seeds
KEYS = Keys(SEEDS[:32], SEEDS[32:])
MEGABYTE = bytes(range(256)) * 4096
type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wire:
    """A TCP connection between client and exit, on which either direction may come to nothing."""

    def __init__(self) -> None:
        self.swallow_there = self.swallow_back = False
        self.black_hole = False  # an end of either side is not passed on
        self.swallowed = 0
        self._changed = asyncio.Condition()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, target: Address) -> Address:
        self._target = target
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(*self._target)
        self._writers += [writer, there]
        await asyncio.gather(self._pass(reader, there, True), self._pass(back, writer, False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.swallow_there if there else self.swallow_back:
                    async with self._changed:
                        self.swallowed += len(data)
                        self._changed.notify_all()
                else:
                    writer.write(data)
                    await writer.drain()
        if not self.black_hole:
            writer.close()

    async def swallowed_some(self, size: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.swallowed >= size)

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()


def plain(target: Destination) -> Address:
    return str(target[0]), int(target[1])


class Stage:
    """An exit, clients of it, and servers and wires that end with the test."""

    def __init__(self, exit_place: Place) -> None:
        self.place = exit_place
        self.tcp, self.echo = plain(exit_place.tcp), plain(exit_place.echo)
        self.sessions: list[Session] = []
        self.servers: list[asyncio.Server] = []
        self.wires: list[Wire | Relay] = []

    def session(self, keys: Keys = KEYS, **options: Any) -> Session:
        session = Session(keys, EXIT_ID, **{"alone": False, **options})
        self.sessions.append(session)
        return session

    async def begun(self, **options: Any) -> tuple[Session, Path]:
        session = self.session(**options)
        return session, await session.begin(self.tcp)

    async def on_lane(self, **options: Any) -> tuple[Session, Lane, Path]:
        """A session that sends by the lane, and its exit is asked to."""
        session, path = await self.begun(lane=self.tcp, **options)
        assert session.lane is not None
        await session.until(session.on_lane)
        return session, session.lane, path

    async def server(self, serve: Serve) -> Address:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.servers.append(server)
        host, port = server.sockets[0].getsockname()
        return host, port

    async def wire(self) -> tuple[Wire, Address]:
        wire = Wire()
        self.wires.append(wire)
        return wire, await wire.start(self.tcp)

    async def stop(self) -> None:
        for session in self.sessions:
            session.close()
            await session.finished()
        for wire in self.wires:
            await wire.stop()
        for server in self.servers:
            server.close()
            await server.wait_closed()


async def say(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    stream.finish()


async def comes_back(session: Session, echo: Address, data: bytes = b"hello") -> bool:
    """Whether a stream to the echo server gives back what is sent."""
    stream = await session.open(echo)
    saying = asyncio.create_task(say(stream, data))
    back = await stream.read_all()
    await saying
    return back == data


def watch(session: Session, kind: Kind) -> list[tuple[Any, ...]]:
    """The fields of all frames of a kind that come from now on."""
    seen: list[tuple[Any, ...]] = []
    before = session.on_frame

    def look(path: Path, came: Kind, fields: tuple[Any, ...]) -> None:
        before(path, came, fields)
        if came == kind:
            seen.append(fields)

    session.on_frame = look
    return seen


def raw(path: Path, *plaintexts: bytes) -> None:
    """Send records as they are told."""
    for plaintext in plaintexts:
        path.writer.write(path.out.seal(plaintext))
