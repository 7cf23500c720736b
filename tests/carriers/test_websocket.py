"""The WebSocket carrier between a real client and a real exit, and what strangers see of the exit's entrance."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.base.clock import clock as real_clock
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers import carrier as carrier_module
from cryprq_proxy.carriers import websocket as websocket_module
from cryprq_proxy.carriers.carrier import LOWAT_SECONDS, Carrier
from cryprq_proxy.carriers.dial import websocket as dial_websocket_module
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.carriers.lane.client import ClientLane
from cryprq_proxy.carriers.websocket import (
    MAX_MESSAGE,
    MESSAGES_AT_ONCE,
    READ_SIZE,
    WebSocketCarrier,
    WebSocketPipe,
)
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.settings import EndpointMemory
from cryprq_proxy.errors import CarrierError, CloseReason, ConfigError, PeerError
from cryprq_proxy.exit import lobby as lobby_module
from cryprq_proxy.exit import reception as reception_module
from cryprq_proxy.exit import websocket_listener
from cryprq_proxy.exit.web_certificate import read_certificate
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.cubic import Cubic
from cryprq_proxy.session import wire
from cryprq_proxy.session.turns import TURN_WORK
from cryprq_proxy.status import CarrierStatus
from tests.support.carrier_stage import Clock, StageSocket
from tests.support.links import LaterOffload, Link
from tests.support.settings import rotation_limits, session_limits
from tests.support.settle import settle
from tests.support.web_links import (
    CLIENT_IDENTITY,
    PATH,
    PLAIN,
    Place,
    Relay,
    lose_paths,
    make_certificates,
    place,
)


@pytest.fixture
async def here() -> AsyncIterator[Place]:
    async with place() as made:
        yield made


async def until(true: Callable[[], bool]) -> None:
    """Let everything else run until it is; pytest-timeout ends what never is."""
    while not true():
        await asyncio.sleep(0.001)


def sessions(here: Place) -> int:
    return here.exit.counts()[0]


def visitors(here: Place) -> int:
    """How many connections have no verdict yet."""
    listener = here.exit.listener
    return listener.strangers + listener.handshakes


# --- a link ---


async def test_both_ways(here: Place) -> None:
    client = here.client(here.endpoint("ws"))
    assert await here.echoes(client)
    assert await here.echoes(client, random.Random(1).randbytes(5_000_000))
    told = client.status().carrier
    assert told is not None
    assert (told.connection_round_trip is not None) is (sys.platform == "linux")
    assert structs.replace(told, connection_round_trip=None) == CarrierStatus(
        kind="ws",
        address=f"ws://{here.web}{PATH}",
        why="the only one given",
        congestion="reno" if sys.platform == "linux" else "",
    )


async def test_many_streams_at_once(here: Place) -> None:
    client = here.client(here.endpoint("ws"))
    data = [random.Random(seed).randbytes(200_000) for seed in range(20)]
    assert all(await asyncio.gather(*(here.echoes(client, each) for each in data)))


async def test_tls_at_the_exit(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    async with place(certificate=certificate, key=key) as here:
        client = here.client(here.endpoint("wss"), ca=ca)
        assert await here.echoes(client, os.urandom(3_000_000))


@pytest.mark.parametrize("long", ["certificate", "key"])
def test_a_long_certificate_is_not_used(long: str, tmp_path: Path) -> None:
    _, certificate, key = make_certificates(tmp_path)
    with {"certificate": certificate, "key": key}[long].open("ab") as file:
        file.write(b"\n" * (1 << 20))
    with pytest.raises(ConfigError, match=rf"the {long} .* is larger than 1 MiB"):
        read_certificate(certificate, key)


async def test_keys_change_under_way() -> None:
    """Nothing that comes while new keys are computed is lost, or waits."""
    limits = session_limits(rotation=rotation_limits(records=16))
    async with place(limits=limits) as here:
        client = here.client(here.endpoint("ws"), limits=limits)
        data = random.Random(4).randbytes(2_000_000)
        await here.echoes(client)
        while client.status().session.epoch <= 5:  # type: ignore[operator, union-attr]  # how much goes in one epoch is a matter of speed
            assert await here.echoes(client, data)
        assert client.status().carriers == 1


async def test_the_last_word_arrives(here: Place) -> None:
    """The client's farewell ends the session at the exit, which would wait for a resume otherwise."""
    client = here.client(here.endpoint("ws"))
    await here.echoes(client)
    assert sessions(here) == 1
    await client.stop()
    await until(lambda: sessions(here) == 0)


async def test_the_exits_last_word_arrives(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    client = here.client(here.endpoint("ws"))
    await here.echoes(client)
    here.exit.authorize({})
    await until(lambda: "not authorized" in caplog.text)
    here.exit.authorize({CLIENT_IDENTITY.peer_id: ""})


async def test_a_session_goes_on_by_another_carrier(here: Place) -> None:
    """In the middle of a transfer TCP breaks and stays dead: the rest comes by WebSocket, in the same session."""
    relay = Relay(here.tcp)
    tcp = here.endpoint("tcp", await relay.start())
    client = here.client(tcp, here.endpoint("ws"))

    def break_it() -> None:
        if relay.passed > 1_000_000:
            relay.on_passed = lambda: None
            asyncio.get_running_loop().call_soon(die)

    def die() -> None:
        assert relay.server is not None
        relay.server.close()
        relay.cut()

    await until(lambda: len(client._link.paths) == 2)
    relay.on_passed = break_it
    data = random.Random(2).randbytes(6_000_000)
    assert await here.echoes(client, data)
    status = client.status()
    assert (status.carriers, sessions(here)) == (2, 1)
    assert status.carrier.kind == "ws"  # type: ignore[union-attr]
    assert status.carrier.why == "it stood by for another one"  # type: ignore[union-attr]
    await relay.stop()


async def test_and_back(here: Place) -> None:
    relay = Relay(here.web)
    ws = here.endpoint("ws", await relay.start())
    client = here.client(ws, here.endpoint("tcp"))
    await here.echoes(client)
    assert client.status().carrier.kind == "ws"  # type: ignore[union-attr]
    stream = await client.open(here.echo)
    await relay.stop()
    await stream.write(b"still the same")
    assert await stream.read() == b"still the same"
    assert client.status().carrier.kind == "tcp"  # type: ignore[union-attr]
    assert sessions(here) == 1
    stream.abort()


async def test_what_worked_is_told_once_and_taken_first(here: Place) -> None:
    told: list[str] = []
    ws, tcp = here.endpoint("ws"), here.endpoint("tcp")
    client = here.client(ws, tcp, memory=EndpointMemory(str(ws), told.append))
    await here.echoes(client)
    assert client.status().carrier.kind == "ws"  # type: ignore[union-attr]
    lose_paths(client)
    await here.echoes(client)
    assert client.status().carriers >= 2
    assert told == []
    other = here.client(tcp, ws, memory=EndpointMemory(None, told.append))
    await here.echoes(other)
    lose_paths(other)
    await here.echoes(other)
    assert told == [str(tcp)]


# --- what stands between ---


@asynccontextmanager
async def between(
    here: Place, change: Callable[[bytes, web.WebSocketResponse], Awaitable[None]]
) -> AsyncIterator[Endpoint]:
    """A WebSocket proxy; what the exit says goes through `change`, which sends it on."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        client = web.WebSocketResponse(max_msg_size=0)
        await client.prepare(request)
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://{here.web}{PATH}", max_msg_size=0) as exit,
        ):

            async def up() -> None:
                async for message in client:
                    await exit.send_bytes(message.data)
                await exit.close()

            upwards = asyncio.ensure_future(up())
            with suppress(ConnectionError):
                async for message in exit:
                    await change(message.data, client)
            upwards.cancel()
        await client.close()
        return client

    app = web.Application()
    app.router.add_get(PATH, handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield here.endpoint("ws", Destination(*runner.addresses[0][:2]))
    for client in here.clients:
        await client.stop()
    await runner.cleanup()


async def test_messages_may_be_cut_anywhere(here: Place) -> None:
    luck = random.Random(3)
    kept = bytearray()

    async def change(data: bytes, client: web.WebSocketResponse) -> None:
        kept.extend(data)
        while kept:
            size = luck.choice((1, 2, 3, 1000, 50_000, 300_000))
            await client.send_bytes(bytes(kept[:size]))
            del kept[:size]

    async with between(here, change) as endpoint:
        client = here.client(endpoint)
        assert await here.echoes(client, luck.randbytes(2_000_000))
        assert client.status().carriers == 1


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (lambda client: client.send_str("hello"), "a text message arrived"),
        (lambda client: client.send_bytes(bytes(MAX_MESSAGE + 1)), "a message was too large or damaged"),
        (lambda client: client.send_bytes(b"\xff" * 100), "a record of impossible length"),
        (lambda client: client.close(), "the peer ended the connection"),
    ],
)
async def test_what_no_exit_sends_ends_the_carrier_only(
    here: Place,
    caplog: pytest.LogCaptureFixture,
    send: Callable[[web.WebSocketResponse], Awaitable[None]],
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)
    spoil = False

    async def change(data: bytes, client: web.WebSocketResponse) -> None:
        nonlocal spoil
        if spoil:
            spoil = False
            await send(client)
        else:
            await client.send_bytes(data)

    async with between(here, change) as endpoint:
        client = here.client(endpoint)
        stream = await client.open(here.echo)
        spoil = True
        await stream.write(b"before and after")
        assert await stream.read() == b"before and after"
        assert f"link down: {reason}" in caplog.text
        assert client.status().carriers == 2
        assert sessions(here) == 1
        stream.abort()


# --- small messages, pings and fragments ---


async def upgraded(http: aiohttp.ClientSession, here: Place) -> aiohttp.ClientWebSocketResponse:
    return await http.ws_connect(f"ws://{here.web}{PATH}", autoping=False)


async def test_pings_are_answered(here: Place) -> None:
    async with aiohttp.ClientSession() as http, await upgraded(http, here) as socket:
        await socket.ping(b"one")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"one")


@pytest.mark.parametrize("kind", [WSMsgType.PING, WSMsgType.PONG, WSMsgType.BINARY])
async def test_others_have_their_turn_during_a_flood_of_messages_before_the_handshake(
    kind: WSMsgType,
) -> None:
    """A read of 40,000 pings was taken, and answered, in one turn of the loop."""
    socket = Sayings(*[(kind, b"")] * 1_000)
    reading = spawn(pipe_of(socket).read_exactly(1), "read")
    while socket.waiting:
        before = len(socket.waiting)
        await asyncio.sleep(0)
        assert before - len(socket.waiting) <= MESSAGES_AT_ONCE
    reading.cancel()


async def test_pings_of_a_peer_are_work_and_no_answer_waits() -> None:
    """Answers that a peer did not read took memory without a bound."""
    socket = Sayings((WSMsgType.PING, b"1"), (WSMsgType.PONG, b"2"), (WSMsgType.PING, b"3"))
    pipe = pipe_of(socket)
    assert await pipe.receive() == b""
    assert await pipe.receive() == b""
    socket.unsent = 1
    assert await pipe.receive() == b""
    assert socket.answered == [b"1"]


async def test_a_ping_that_cannot_be_answered_any_more_ends_the_carrier() -> None:
    socket = Sayings((WSMsgType.PING, b""))
    socket.error = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    with pytest.raises(CarrierError, match=r"^the connection to the peer broke: it has ended$"):
        await pipe_of(socket).receive()


class Sayings:
    """Socket, transport and protocol of a pipe: what was said and waits to be received."""

    def __init__(self, *said: tuple[WSMsgType, bytes]) -> None:
        self.waiting = list(said)
        self.answered: list[bytes] = []
        self.unsent = 0
        self.error: OSError | None = None
        self.emptied: Callable[[], None]

    async def receive(self) -> SimpleNamespace:
        if not self.waiting:
            await asyncio.Event().wait()
        kind, data = self.waiting.pop(0)
        return SimpleNamespace(type=kind, data=data)

    async def pong(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.answered.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_extra_info(self, name: str) -> None:
        pass


def pipe_of(socket: Any) -> WebSocketPipe:
    async def ended() -> None:
        pass

    return WebSocketPipe(socket, socket, socket, ended)


@pytest.mark.parametrize("carrier", ["ws", "wss"])
async def test_both_sides_read_little_at_once(
    carrier: CarrierKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp parses all of a read in one turn: 256 KiB are 130,000 frames."""
    sizes: dict[type, list[int]] = {}
    for role in (websocket_listener._Connection, dial_websocket_module._Protocol):

        def data_received(self: Any, data: bytes, role: Any = role) -> None:
            if self._upgraded:
                sizes.setdefault(role, []).append(len(data))
            super(role, self).data_received(data)

        monkeypatch.setattr(role, "data_received", data_received, raising=False)
    ca, certificate, key = make_certificates(tmp_path)
    files: dict[str, Any] = {"certificate": certificate, "key": key} if carrier == "wss" else {}
    async with place(**files) as here:
        client = here.client(here.endpoint(carrier), ca=ca if files else None)
        assert await here.echoes(client, os.urandom(5_000_000))
    assert len(sizes) == 2
    for read in sizes.values():
        # A part of a TLS record may stand before what was read.
        assert 16_384 < max(read) <= READ_SIZE + 16_384


# --- strangers ---


async def answer(address: Destination, text: str) -> bytes:
    """All that a server says to these lines."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(text.replace("\n", "\r\n").encode())
    data = await reader.read()
    writer.close()
    return data


UPGRADE = f"""GET {PATH} HTTP/1.1
Host: exit.example
Upgrade: websocket
Connection: Upgrade
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==
"""


@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/1.1\nHost: exit.example\n\n",
        f"GET {PATH} HTTP/1.1\nHost: exit.example\n\n",
        f"POST {PATH} HTTP/1.1\nHost: exit.example\nContent-Length: 3\n\nabc",
        UPGRADE.replace(PATH, PATH + "/") + "\n",
        UPGRADE.replace("GET", "PUT") + "\n",
        UPGRADE.replace("AAAA", "") + "\n",
        UPGRADE + "Origin: https://page.example\n\n",
        UPGRADE + "Origin: null\n\n",
        UPGRADE + "Sec-WebSocket-Protocol: chat\n\n",
        "complete nonsense\n\n",
        "GET / HTTP/1.1\nX: " + "y" * 10_000 + "\n\n",
        "GET / HTTP/1.1\n" + "".join(f"X{number}: y\n" for number in range(1000)) + "\n",
    ],
)
async def test_all_else_meets_an_empty_web_server(
    here: Place, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    head, _, body = (await answer(here.web, text)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.") and b" 404 Not Found\r\n" in head
    assert b"erver:" not in head and b"iohttp" not in head
    assert body == b"404: Not Found"
    assert not caplog.records
    await until(lambda: not visitors(here))


async def status_of(here: Place, text: str) -> bytes:
    """What such a request gets; the connection ends then."""
    reader, writer = await asyncio.open_connection(*here.web)
    writer.write(text.replace("\n", "\r\n").encode())
    line = await reader.readline()
    writer.close()
    return line.split()[1]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("X: " + "y" * 8_000 + "\n", b"101"),
        ("X: " + "y" * 8_192 + "\n", b"404"),
        ("".join(f"X{number}: y\n" for number in range(58)), b"101"),
        ("".join(f"X{number}: y\n" for number in range(65)), b"404"),
    ],
)
async def test_an_upgrade_has_a_bounded_head(here: Place, more: str, status: bytes) -> None:
    assert await status_of(here, UPGRADE + more + "\n") == status


@pytest.mark.parametrize(("size", "status"), [(8_000, b"101"), (8_192, b"404")])
async def test_an_upgrade_has_a_bounded_first_line(here: Place, size: int, status: bytes) -> None:
    assert await status_of(here, UPGRADE.replace(PATH, PATH + "?" + "y" * size) + "\n") == status


async def test_a_message_that_is_too_long_ends_the_connection_before_it_has_come(
    monkeypatch: pytest.MonkeyPatch, here: Place
) -> None:
    monkeypatch.setattr(lobby_module, "PATIENCE", 3600.0)
    monkeypatch.setattr(lobby_module, "SHORT_PATIENCE", 3600.0)
    reader, writer = await asyncio.open_connection(*here.web)
    writer.write((UPGRADE + "\n").replace("\n", "\r\n").encode())
    await reader.readuntil(b"\r\n\r\n")
    # The head of a masked binary message, and its first bytes (RFC 6455 section 5.2).
    writer.write(b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8) + bytes(14))
    await reader.read()
    writer.close()
    await until(lambda: not visitors(here))


@pytest.mark.parametrize(
    "messages",
    [[b"\x00" * 10], [b"\x04\xe9" + b"x" * 1257], [b"x"] * 3000, ["text"], [bytes(MAX_MESSAGE + 5)]],
)
async def test_a_stranger_hears_nothing(here: Place, messages: list[bytes | str]) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://{here.web}{PATH}") as socket:
        with suppress(ConnectionError):
            for message in messages:
                await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
        said = await socket.receive()
    assert said.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
    await until(lambda: not visitors(here))
    assert sessions(here) == 0


async def test_no_server_header_on_an_upgrade(here: Place) -> None:
    reader, writer = await asyncio.open_connection(*here.web)
    writer.write((UPGRADE + "\n").replace("\n", "\r\n").encode())
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"erver:" not in head
    assert b"Extensions" not in head


async def test_who_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, here: Place) -> None:
    monkeypatch.setattr(lobby_module, "PATIENCE", 0.05)
    monkeypatch.setattr(lobby_module, "SHORT_PATIENCE", 0.05)
    for text in ("", "GET / HTT", UPGRADE, UPGRADE + "\n"):
        assert (await answer(here.web, text)).partition(b"\r\n\r\n")[2] in (b"", b"\x88\x02\x03\xe8")
    await until(lambda: not visitors(here))


async def test_no_more_upgrades_at_once_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections wait outside of TLS and HTTP, and a client comes in between all of them."""
    monkeypatch.setattr(reception_module, "MAX_UPGRADING", 8)
    async with place() as here:
        reception = here.exit.listener.reception
        silent = [await asyncio.open_connection(*here.web) for _ in range(30)]
        await until(lambda: len(reception.strangers) == 30)
        assert len(reception.upgrading) == 0
        for _, writer in silent:
            writer.write(b"GET / HTT")
        await until(lambda: here.exit.listener.failed == {"too_many": 22})
        assert (len(reception.strangers), len(reception.upgrading)) == (0, 8)
        for _, writer in silent:
            writer.close()
        await until(lambda: not visitors(here))
        assert await here.echoes(here.client(here.endpoint("ws")))


async def test_limits_are_those_of_the_client_behind_a_proxy() -> None:
    async def upgrade(here: Place, forwarded: str) -> bool:
        """Whether it is possible, by a client that says nothing afterwards."""
        reader, writer = await asyncio.open_connection(*here.web)
        line = b""
        with suppress(ConnectionError):
            writer.write(f"{UPGRADE}X-Forwarded-For: {forwarded}\n\n".replace("\n", "\r\n").encode())
            line = await reader.readline()
        writer.close()
        await until(lambda: not visitors(here))
        return b" 101 " in line

    async with place(forwarded=True, per_minute=2) as here:
        for forwarded in ("192.0.2.1", "192.0.2.7, 192.0.2.1"):
            assert await upgrade(here, forwarded)
        assert not await upgrade(here, "192.0.2.8,192.0.2.1")
        assert await upgrade(here, "192.0.2.1, 192.0.2.2")
        assert await upgrade(here, "2001:db8::1")
        assert await upgrade(here, "no address")  # counts for the proxy itself
        assert await upgrade(here, "also none")
        assert not await upgrade(here, "")
    async with place(per_minute=2) as here:
        assert await upgrade(here, "192.0.2.1")
        assert await upgrade(here, "192.0.2.2")
        assert not await upgrade(here, "192.0.2.3")


# --- the lane ---


def lane_of(client: Client) -> ClientLane:
    assert client._kept.packet_link is not None
    lane = client._kept.packet_link.lane
    assert isinstance(lane, ClientLane)
    return lane


async def test_the_lane_needs_an_address_that_tcp_gave() -> None:
    async with place(lane=PLAIN) as here:
        client = here.client(here.endpoint("ws"), lane=PLAIN)
        await here.echoes(client)
        assert lane_of(client)._exit is None
        assert client.lane_size is None


async def test_each_side_sends_by_the_congestion_control_that_it_is_set_to() -> None:
    async with place(lane=PLAIN) as here:
        client = here.client(here.endpoint("tcp"), lane=replace(PLAIN, control=Cubic))
        await here.echoes(client)
        (entry,) = here.exit.sessions
        theirs = entry.packet_link.lane.driver  # type: ignore[union-attr]
        ours = lane_of(client).driver
        assert ours is not None and isinstance(ours.recovery.control, Cubic)
        assert theirs is not None and isinstance(theirs.recovery.control, Bbr)


async def test_the_lane_stays_when_the_carrier_goes_elsewhere() -> None:
    async with place(lane=PLAIN) as here:
        relay = Relay(here.tcp)
        tcp = here.endpoint("tcp", await relay.start())
        client = here.client(tcp, here.endpoint("ws"), lane=PLAIN)
        await here.echoes(client)
        assert lane_of(client)._exit == tuple(tcp.address)
        await relay.stop()
        await here.echoes(client)
        assert client.status().carrier.kind == "ws"  # type: ignore[union-attr]
        assert lane_of(client)._exit == tuple(tcp.address)


async def test_close_reasons_reach_the_owner(here: Place) -> None:
    client = here.client(here.endpoint("ws"))
    await here.echoes(client)
    assert client._link._used is not None
    client._link._used.carrier.close(CloseReason.NORMAL)
    await until(lambda: sessions(here) == 0)
    assert await here.echoes(client)


# --- the driver alone ---


class SlowPipe:
    """A pipe whose connection takes `rate` bytes a second, so that each message has to wait; nothing arrives."""

    message = 32_768

    def __init__(self, clock: Clock, rate: float) -> None:
        self.clock = clock
        self.rate = rate
        self.rest = bytearray()
        self.sock = StageSocket()
        self.transport = self
        self.enough = asyncio.Event()
        self.sent = 0
        self.finished: list[int] = []

    def get_extra_info(self, name: str) -> StageSocket:
        assert name == "socket"
        return self.sock

    async def send(self, data: memoryview) -> bool:
        self.sent += 1
        self.clock.advance(len(data) / self.rate)
        if self.sent > 100:
            self.enough.set()
            await asyncio.get_running_loop().create_future()
        return True

    async def receive(self) -> bytes:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def finish(self, last: bytes | None, code: int, *tasks: asyncio.Task[None]) -> None:
        self.finished.append(code)


class Owner:
    def __init__(self) -> None:
        self.lost: list[PeerError | None] = []

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        self.lost.append(error)


@pytest.mark.parametrize("rate", [5e6, 30e6])
async def test_the_kernels_queue_follows_the_rate(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    clock = Clock()
    for module in (carrier_module, websocket_module):
        monkeypatch.setattr(module, "clock", lambda: clock.boot)
    monkeypatch.setattr(carrier_module, "time", SimpleNamespace(monotonic=lambda: clock.awake))
    link = Link(connected=False, soon=asyncio.get_running_loop().call_soon)
    path, _ = link.paths()
    for _ in range(150):
        link.open().say(bytes(65_536))
    pipe, owner = SlowPipe(clock, rate), Owner()
    slow: Any = pipe
    carrier = WebSocketCarrier(asyncio.get_running_loop(), slow, path, owner)
    carrier.start()
    await pipe.enough.wait()
    assert pipe.sock.lowat[-1] == pytest.approx(rate * LOWAT_SECONDS, rel=0.1)
    carrier.close(CloseReason.NORMAL)
    assert owner.lost == [None]
    assert pipe.finished == [1000], "a normal closure, as RFC 6455 section 7.4.1 has it"


class QueuePipe(SlowPipe):
    """A fast pipe: what was sent is in `outgoing`, what the test puts into `incoming` arrives."""

    def __init__(self) -> None:
        super().__init__(Clock(), 1.0)
        self.outgoing = bytearray()
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, data: memoryview) -> bool:
        self.outgoing += data
        return False

    async def receive(self) -> bytes:
        return await self.incoming.get()


async def test_messages_are_read_while_keys_are_computed() -> None:
    """Each of them at once: before the client's steps of a rotation, and under the new keys."""
    offload = LaterOffload()
    link = Link(connected=False, offload=offload, soon=asyncio.get_running_loop().call_soon)
    link.now = now = real_clock()
    pipe, owner = QueuePipe(), Owner()
    path, peer = link.paths()
    queue: Any = pipe
    carrier = WebSocketCarrier(asyncio.get_running_loop(), queue, path, owner)
    buffer = memoryview(bytearray(1 << 20))

    async def pass_on() -> None:
        for _ in range(3):
            await settle()
            link.exit.turn.renew()
            used = peer.receive(memoryview(bytes(pipe.outgoing)), now)
            del pipe.outgoing[:used]
            if size := peer.fill(buffer, 65_536, now):
                pipe.incoming.put_nowait(bytes(buffer[:size]))
            await settle()

    app, said = link.open(), b""
    carrier.start()
    await pass_on()
    link.client.rotation.start(now)
    for piece in (b"one ", b"two ", b"three"):
        assert bool(offload.waiting) is (piece != b"three")
        link.served[1].say(piece)
        await pass_on()
        said += piece
        assert app.received == said
        offload.run()
        await pass_on()
    assert path.keys.receive_epoch == peer.keys.receive_epoch == 1
    carrier.drop()
    assert owner.lost == [None]


class Played:
    """The client's session on a WebSocketCarrier; what its peer says is the test's."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.link = Link(connected=False, soon=loop.call_soon)
        self.pipe, self.owner = QueuePipe(), Owner()
        self.link.now = real_clock()
        self.path, self.peer = self.link.paths()
        queue: Any = self.pipe
        self.carrier = WebSocketCarrier(loop, queue, self.path, self.owner)
        self.carrier.start()

    def seal(self, frame: bytes) -> bytes:
        return self.peer.keys.sealer.seal(frame)


@pytest.mark.parametrize(("joined", "cost"), [(True, 6), (False, 26)], ids=["one message", "a message each"])
async def test_a_flood_is_taken_a_turn_at_a_time(joined: bool, cost: int) -> None:
    """Waiting messages were all taken at once, since nothing between them waits for the loop."""
    played = Played()
    await settle()
    played.link.client.turn.renew()
    records = [played.seal(wire.encode_window(0, 0)) for _ in range(2_000)]
    for message in [b"".join(records)] if joined else records:
        played.pipe.incoming.put_nowait(message)
    opener = played.path.keys.opener
    turns = 0
    while opener.records < len(records):
        before = opener.records
        await asyncio.sleep(0)
        assert opener.records - before <= TURN_WORK // cost + 1
        turns += 1
    assert turns >= len(records) * cost // TURN_WORK
    played.carrier.drop()


async def test_a_fault_of_this_program_ends_the_carrier_and_not_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    played = Played()
    await settle()

    def fault(data: memoryview, now: float) -> int:
        raise ZeroDivisionError

    played.path.receive = fault  # type: ignore[method-assign]
    played.pipe.incoming.put_nowait(played.seal(wire.encode_records(wire.ACK, 0, 0)))
    await until(lambda: bool(played.owner.lost))
    assert isinstance(played.owner.lost[0], CarrierError) and played.link.client.closed is None
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_a_fault_while_sending_ends_the_carrier_and_not_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    played = Played()
    await settle()

    def fault(*_: object) -> int:
        raise ZeroDivisionError

    played.path.fill = fault  # type: ignore[method-assign,assignment]
    played.link.open()
    await until(lambda: bool(played.owner.lost))
    assert isinstance(played.owner.lost[0], CarrierError) and played.link.client.closed is None
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]
