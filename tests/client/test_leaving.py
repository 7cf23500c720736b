"""Sessions that the exit has asked to leave: what goes on there, what goes to the next one, and when they end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.dial.endpoint import CarrierKind
from cryprq_proxy.client import leaving
from cryprq_proxy.client.backoff import BACKOFF_RESTART, JITTER
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.leaving import MOST_LEAVING
from cryprq_proxy.client.requests import ClientObserver, StreamRequest
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.wire import GOAWAY, MAX_STREAM, StreamProtocol, encode_bare
from tests.support.settle import settle, until
from tests.support.web_links import PLAIN, Place, ask, echoes, opened, place

pytestmark = pytest.mark.usefixtures("hasty")


async def up(here: Place, kind: CarrierKind = "tcp") -> Client:
    client = here.client(here.endpoint(kind))
    await until(lambda: client.up)
    return client


def goaway(exit: Exit) -> None:
    """The exit asks its clients to leave, and lets them in again."""
    for entry in exit.sessions:
        entry.session.announce(encode_bare(GOAWAY))


async def left(here: Place, client: Client) -> Session:
    """The client has left its session for another one; that session."""
    before = client._kept.session
    assert before is not None
    carriers = client.status().carriers
    goaway(here.exit)
    await until(lambda: client.up and client.status().carriers > carriers)
    assert client._kept.session is not before
    return before


# --- what goes on ---


@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_streams_go_on_to_their_end_and_then_the_session_is_closed(
    here: Place, kind: CarrierKind
) -> None:
    client = await up(here, kind)
    old = await opened(client, here.echo)
    session = await left(here, client)
    new = await opened(client, here.echo)
    await echoes(old, b"old")
    await echoes(new, b"new")
    assert len(here.exit.sessions) == 2 and session.closed is None
    assert client.streams() == [old.stream, new.stream], "they are shown as before"
    assert client.open_streams == 2
    old.say(b"", finish=True)
    await until(lambda: ("eof",) in old.events)
    await until(lambda: len(here.exit.sessions) == 1)
    assert session.closed is CloseReason.NORMAL
    assert client.streams() == [new.stream]
    await echoes(new, b"more")
    status = client.status()
    assert (status.bytes.sent, status.bytes.received) == (10, 10), "nothing is lost from the totals"


async def test_the_lane_of_a_session_that_ends_says_so(here: Place) -> None:
    """A session may have nothing else left by which the exit would hear of it."""
    client = await up(here)
    old = await opened(client, here.echo)
    link = client._kept.packet_link
    assert link is not None
    session, close = await left(here, client), link.close
    seen: list[CloseReason | None] = []

    def note() -> None:
        seen.append(session.closed)
        close()

    link.close = note  # type: ignore[method-assign]
    old.say(b"", finish=True)
    await until(lambda: bool(seen))
    assert seen == [CloseReason.NORMAL]


async def test_a_session_without_streams_is_closed_at_once(here: Place) -> None:
    client = await up(here)
    session = await left(here, client)
    await until(lambda: session.closed is not None and len(here.exit.sessions) == 1)
    assert await here.echoes(client)


class FullSocket:
    """The socket of a carrier, which takes nothing until it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.full = True

    def send(self, data: memoryview) -> int:
        if self.full:
            raise BlockingIOError
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


async def test_what_was_sent_on_the_last_stream_arrives_before_the_session_ends(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application ends it while the connection is full: the target gets all of it and an end, not a reset."""
    heard: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        try:
            heard.put_nowait(await reader.read())
        except ConnectionError:
            heard.put_nowait(None)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = await up(here)
        app = await opened(client, Destination(*server.sockets[0].getsockname()[:2]))
        await until(lambda: ("eof",) in app.events)
        [path] = client._link.paths.values()
        carrier: Any = path.carrier
        await left(here, client)
        sock = FullSocket(carrier._sock)
        monkeypatch.setattr(carrier, "_sock", sock)
        app.say(bytes(10_000))
        await until(lambda: carrier._unsent is not None)
        app.say(b"", finish=True)
        await settle()
        assert not client.open_streams, "its streams have ended, and the exit does not have all of them"
        sock.full = False
        assert await heard.get() == bytes(10_000)
    await until(lambda: len(here.exit.sessions) == 1)


async def test_numbers_are_unique_over_the_sessions(here: Place) -> None:
    client = await up(here)
    old = await opened(client, here.echo)
    await left(here, client)
    new = await opened(client, here.echo)
    assert old.stream is not None and new.stream is not None
    assert old.stream.id < new.stream.id
    assert client.stream(old.stream.id) is old.stream
    assert client.stream(new.stream.id) is new.stream
    assert client.stream(new.stream.id + 1) is None


async def test_numbers_begin_again_before_they_end(here: Place) -> None:
    client = await up(here)
    session = client._kept.session
    assert session is not None
    session.table.numbers.last = MAX_STREAM >> 1
    await left(here, client)
    assert (await opened(client, here.echo)).stream.id == (MAX_STREAM >> 1) + 1  # type: ignore[union-attr]
    await left(here, client)
    assert (await opened(client, here.echo)).stream.id == 1  # type: ignore[union-attr]


async def test_the_exit_is_dialled_again_without_a_pause(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one that says so at once, again and again, is not, whatever it has moved before."""
    pauses: list[float] = []
    client = await up(here)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await settle(1)

    client._link._rest._pause = pause
    await left(here, client)
    assert not pauses
    monkeypatch.setattr("cryprq_proxy.client.link.STABLE_SECONDS", 60.0)
    for number in range(1, 4):
        await echoes(await opened(client, here.echo), b"moved")
        await left(here, client)
        assert len(pauses) == number
    assert max(pauses) <= BACKOFF_RESTART * (1 + JITTER)


# --- what ends it ---


async def test_a_lost_carrier_ends_the_streams(here: Place) -> None:
    """It is not resumed: the process behind it is going."""
    client = await up(here)
    old = await opened(client, here.echo)
    session = await left(here, client)
    for entry in here.exit.sessions:
        if entry.session.session_id == session.session_id:
            entry.carrier.drop()  # type: ignore[union-attr]
    await until(lambda: old.ended)
    assert old.events[-1] == ("reset", StreamReason.SESSION_LOST)
    assert session.closed is not None and not client.open_streams
    assert client.up


async def test_the_oldest_ends_beyond_the_bound(here: Place) -> None:
    client = await up(here)
    apps = []
    for _ in range(MOST_LEAVING):
        apps.append(await opened(client, here.echo))
        await left(here, client)
    assert client.open_streams == MOST_LEAVING and len(client._link.left) == MOST_LEAVING
    apps.append(await opened(client, here.echo))
    await left(here, client)
    await until(lambda: apps[0].ended)
    assert apps[0].events[-1] == ("reset", StreamReason.SESSION_LOST)
    for app in apps[1:]:
        await echoes(app, b"still here")
    assert len(client._link.left) == MOST_LEAVING


async def test_it_ends_after_its_time(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "LEAVING_SECONDS", 0.05)
    client = await up(here)
    old = await opened(client, here.echo)
    await left(here, client)
    await until(lambda: old.ended)
    assert not len(client._link.left)


async def test_the_end_of_the_client_ends_it(here: Place) -> None:
    client = await up(here)
    old = await opened(client, here.echo)
    await left(here, client)
    await client.stop()
    assert old.ended and not len(client._link.left)
    await until(lambda: not len(here.exit.sessions))


async def test_what_the_exit_did_wrong_in_a_slow_key_exchange_ends_its_own_session(here: Place) -> None:
    client = await up(here)
    old = await opened(client, here.echo)
    session = await left(here, client)
    client._link._fail(session.session_id, PeerError(CloseReason.REKEY, "broken"))
    await until(lambda: old.ended)
    assert client.up, "and not the new one"
    client._link._fail(session.session_id, PeerError(CloseReason.REKEY, "broken"))
    assert client.up, "late, and of nobody"


# --- requests ---


class Refusing:
    """Makes the exit refuse new streams, as one that stops; it takes those of sessions that begin later."""

    def __init__(self, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        doomed = {entry.session.session_id for entry in here.exit.sessions}
        accept = here.exit.sessions._accept_stream

        def refuse(entry: object, share: object, stream: object) -> None:
            if entry.session.session_id in doomed:  # type: ignore[attr-defined]
                self.asked += 1
                stream.refuse(StreamReason.SHUTTING_DOWN)  # type: ignore[attr-defined]
            else:
                accept(entry, share, stream)  # type: ignore[arg-type]

        monkeypatch.setattr(here.exit.sessions, "_accept_stream", refuse)


@pytest.mark.parametrize("protocol", [StreamProtocol.TCP, StreamProtocol.UDP])
async def test_a_refused_request_is_made_again_on_the_next_session(
    here: Place, monkeypatch: pytest.MonkeyPatch, protocol: StreamProtocol
) -> None:
    """The application hears nothing of it."""
    client = await up(here)
    refusing = Refusing(here, monkeypatch)
    app = ask(client, here.echo, protocol)
    await until(lambda: app.events)
    assert app.events == [("opened",)]
    assert refusing.asked == 1 and client.status().carriers == 2
    assert client.refused() == {StreamReason.SHUTTING_DOWN: 1}


async def test_a_request_with_data_is_not(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await up(here)
    Refusing(here, monkeypatch)
    app, ended = ask(client, here.echo), ask(client, here.echo)
    app.say(b"once")
    ended.say(b"", finish=True)
    await until(lambda: app.ended and ended.ended)
    assert app.events == ended.events == [("refused", StreamReason.SHUTTING_DOWN)]
    await until(lambda: client.up)


async def test_another_reason_leaves_nothing(here: Place) -> None:
    client = await up(here)
    app = ask(client, Destination("127.0.0.1", 1))
    await until(lambda: app.ended)
    assert client.up and client.status().carriers == 1


class Others(ClientObserver):
    """Another exit."""

    def __init__(self) -> None:
        self.taken: list[StreamRequest] = []

    def take_over(self, request: StreamRequest) -> bool:
        self.taken.append(request)
        return True


async def test_another_exit_may_serve_it(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await up(here)
    client.observer = others = Others()
    Refusing(here, monkeypatch)
    app = ask(client, here.echo)
    await until(lambda: others.taken)
    await settle()
    assert not app.events and [request.handler for request in others.taken] == [app]


async def test_requests_without_an_answer_are_made_again_when_the_session_is_lost(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await up(here)
    doomed = {entry.session.session_id for entry in here.exit.sessions}
    accept = here.exit.sessions._accept_stream

    def hang(entry: object, share: object, stream: object) -> None:
        if entry.session.session_id not in doomed:  # type: ignore[attr-defined]
            accept(entry, share, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(here.exit.sessions, "_accept_stream", hang)
    silent, sent = ask(client, here.echo), ask(client, here.echo)
    sent.say(b"once")
    session = await left(here, client)
    for entry in here.exit.sessions:
        if entry.session.session_id == session.session_id:
            entry.carrier.drop()  # type: ignore[union-attr]
    await until(lambda: silent.events and sent.events)
    assert silent.events == [("opened",)]
    assert sent.events == [("reset", StreamReason.SESSION_LOST)]


# --- a restart ---


async def test_a_restart_refuses_nobody(here: Place) -> None:
    """The successor listens on the same port while the streams of the first one go on."""
    client = await up(here)
    old = await opened(client, here.echo)
    here.exit.retire()
    waiting = ask(client, here.echo)
    await until(lambda: not client.up)
    async with place(listen=here.tcp) as successor:
        await until(lambda: client.up)
        await until(lambda: ("opened",) in waiting.events)
        await echoes(old, b"old")
        await echoes(waiting, b"new")
        assert (len(here.exit.sessions), len(successor.exit.sessions)) == (1, 1)
        await client.stop()


@pytest.mark.parametrize("shared", [True, False])
async def test_the_lanes_port_is_free_for_the_successor_and_datagrams_go_on(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Where both cannot have it, those of the session that is left go by its carrier."""
    if not shared:
        monkeypatch.setattr("cryprq_proxy.carriers.lane.udp_socket.share", lambda sock: False)
    async with place(lane=PLAIN) as here:
        client = here.client(here.endpoint("tcp"), lane=PLAIN)
        await until(lambda: client.lane_size is not None)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
            target.bind(("127.0.0.1", 0))
            target.setblocking(False)
            where = Destination(*target.getsockname())
            app = ask(client, where, StreamProtocol.UDP)
            await until(lambda: ("opened",) in app.events)
            here.exit.retire()
            async with place(lane=PLAIN, listen=here.tcp):
                await until(lambda: client.lane_size is not None)
                assert app.stream is not None
                async with asyncio.timeout(30):
                    while not app.datagrams:
                        # Some go by the lane that the exit may have closed.
                        app.stream.send_datagram(where, b"ping")
                        await settle()
                        for _, source in heard(target):
                            target.sendto(b"pong", source)
                assert app.datagrams[0] == (where, b"pong")
                await client.stop()


def heard(sock: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """What has come."""
    with suppress(BlockingIOError):
        while True:
            yield sock.recvfrom(100)
