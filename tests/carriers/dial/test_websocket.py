"""Dialling: what is said when it is no exit that answers, and the request to an HTTP proxy."""

from __future__ import annotations

import asyncio
import base64
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.base.linger import farewells_ended
from cryprq_proxy.carriers import websocket
from cryprq_proxy.carriers.dial.connect import Dialling
from cryprq_proxy.carriers.dial.dial import dial
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.carriers.dial.http_connect import MAX_HEAD, answer, request
from cryprq_proxy.carriers.dial.upstream import UpstreamProxy
from cryprq_proxy.carriers.dial.websocket import _Connector
from cryprq_proxy.carriers.websocket import WebSocketPipe
from cryprq_proxy.errors import CarrierError, ConfigError
from tests.support.web_links import HERE, PATH, Place, make_certificates, place

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Destination]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(handle, *HERE)
    try:
        yield Destination(*listening.sockets[0].getsockname()[:2])
    finally:
        listening.close()
        await farewells_ended()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await listening.wait_closed()


def says(text: str) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text.replace("\n", "\r\n").encode())
        await writer.drain()

    return serve


# --- sentences ---


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("HTTP/1.1 404 Not Found\nContent-Length: 0\n\n", r"has nothing at this path \(404\); compare it"),
        (
            "HTTP/1.1 502 Bad Gateway\nContent-Length: 0\n\n",
            "is a reverse proxy that does not reach the exit",
        ),
        ("HTTP/1.1 403 No\nContent-Length: 0\n\n", r"refuses access \(403\)"),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", r"not as an exit does \(200\); .* the Upgrade header"),
        (
            "HTTP/1.1 302 Found\nLocation: http://login.example/\nContent-Length: 0\n\n",
            "sends a redirect; perhaps this network wants a login",
        ),
        (
            "HTTP/1.1 101 Switching\nUpgrade: websocket\nConnection: Upgrade\n\n",
            "answers the upgrade incorrectly",
        ),
        ("SSH-2.0-OpenSSH_9.9\n", "does not answer as a web server"),
        ("", "ended the connection without an answer"),
    ],
)
async def test_who_is_no_exit(text: str, sentence: str) -> None:
    async with server(says(text)) as address:
        with pytest.raises(CarrierError, match=f"^ws://{address}{PATH} .*{sentence}"):
            await dial(Endpoint("ws", address, PATH), Dialling())


async def test_nobody_there() -> None:
    with socket.create_server(tuple(HERE)) as taken:
        address = Destination(*taken.getsockname())
    with pytest.raises(CarrierError, match=f"^the exit at {address} cannot be reached: connection refused$"):
        await dial(Endpoint("ws", address, PATH), Dialling())


async def test_certificates(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path, "exit.example")
    other = tmp_path / "other"
    other.mkdir()
    foreign, _, _ = make_certificates(other)

    async def loopback(name: str) -> Sequence[str]:
        return ["127.0.0.1"]

    async def reach(host: str, trusted: Path | None) -> None:
        endpoint = Endpoint("wss", Destination(host, here.web.port), PATH)
        pipe = await dial(endpoint, Dialling(ca=trusted, resolve=loopback))
        pipe.close()
        await farewells_ended()

    async with place(certificate=certificate, key=key) as here:
        await reach("exit.example", ca)
        await reach("127.0.0.1", ca)
        for trusted in (None, foreign):
            with pytest.raises(CarrierError, match="shows an invalid certificate: unable to get"):
                await reach("exit.example", trusted)
        with pytest.raises(
            CarrierError, match=r"an invalid certificate: Hostname mismatch, .* 'www.example'"
        ):
            await reach("www.example", ca)
        with pytest.raises(
            ConfigError, match=r"nowhere.pem: no certificates could be read from it: no such file"
        ):
            await reach("exit.example", tmp_path / "nowhere.pem")
    async with place() as here:
        with pytest.raises(CarrierError, match="does not speak TLS correctly"):
            await reach("127.0.0.1", ca)


async def test_a_long_file_of_authorities_is_not_used(tmp_path: Path) -> None:
    """4 MiB of comments and one certificate are read, one byte more is refused."""
    ca, certificate, key = make_certificates(tmp_path)
    trusted = ca.read_bytes()
    async with place(certificate=certificate, key=key) as here:
        endpoint = Endpoint("wss", here.web, PATH)
        ca.write_bytes(b"#" * ((4 << 20) - len(trusted) - 1) + b"\n" + trusted)
        pipe = await dial(endpoint, Dialling(ca=ca))
        pipe.close()
        ca.write_bytes(b"#" * ((4 << 20) - len(trusted)) + b"\n" + trusted)
        with pytest.raises(ConfigError, match=r"the authority .* is larger than 4 MiB"):
            await dial(endpoint, Dialling(ca=ca))
        await farewells_ended()


# --- through an HTTP proxy ---


class Proxy:
    """CONNECT, and nothing else; with a password if one is given."""

    def __init__(self, login: bytes | None = None) -> None:
        self._login = login
        self.lines: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.lines.append(head.partition(b"\r\n")[0])
        wanted = None if self._login is None else b"\r\nProxy-Authorization: Basic " + self._login + b"\r\n"
        if wanted is not None and wanted not in head:
            writer.write(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = self.lines[-1].split()[1].decode().rpartition(":")
        there_reader, there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy.example\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, there), copy(there_reader, writer))


@pytest.mark.parametrize("carrier", ["tcp", "ws", "wss"])
async def test_all_carriers_go_through_a_proxy(tmp_path: Path, carrier: str) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    tls: dict[str, Any] = {"certificate": certificate, "key": key} if carrier == "wss" else {}
    proxy = Proxy(base64.b64encode(b"alice:p:ss"))
    async with server(proxy) as address, place(**tls) as here:
        client = await_client(here, carrier, UpstreamProxy(address, "alice", "p:ss", "http"), ca)
        assert await client
        where = here.tcp if carrier == "tcp" else here.web
        assert proxy.lines == [f"CONNECT {where} HTTP/1.1".encode()]
        for each in here.clients:
            await each.stop()


async def await_client(here: Place, carrier: str, upstream: UpstreamProxy, ca: Path) -> bool:
    client = here.client(here.endpoint(carrier), upstream=upstream, ca=ca)  # type: ignore[arg-type]
    return await here.echoes(client, bytes(300_000))


@pytest.mark.parametrize("carrier", ["tcp", "ws"])
async def test_a_wrong_password_is_not_shown(carrier: str) -> None:
    async with server(Proxy(base64.b64encode(b"alice:right"))) as address:
        upstream = UpstreamProxy(address, "alice", "hunter2", "http")
        assert "hunter2" not in repr(upstream)
        with pytest.raises(CarrierError, match=f"upstream proxy at {address} .* wants a user") as caught:
            endpoint = Endpoint(carrier, Destination("exit.example", 1), PATH)  # type: ignore[arg-type]
            await dial(endpoint, Dialling(upstream))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("HTTP/1.1 403 Forbidden\n\n", "it does not allow this"),
        ("HTTP/1.1 500 Oh\n\n", "it answered with status 500"),
        ("HTTP/1.1 200 OK\n\nhello", "it sent more than its answer"),
        ("SSH-2.0\n", "it is no HTTP proxy"),
        ("HTTP/1.1 OK\n\n", "it is no HTTP proxy"),
        ("HTTP/1.1 200 OK\n", "it ended the connection"),
        ("HTTP/1.1 200 OK\n" + "X: y\n" * MAX_HEAD, "its answer has no end"),
    ],
)
async def test_what_proxies_answer(text: str, sentence: str) -> None:
    async with server(says(text)) as address:
        with pytest.raises(
            CarrierError, match=f"the upstream proxy at {address} did not connect .*{sentence}"
        ):
            await dial(
                Endpoint("tcp", Destination("exit.example", 1)), Dialling(UpstreamProxy(address, kind="http"))
            )


async def test_no_proxy() -> None:
    with socket.create_server(tuple(HERE)) as taken:
        address = Destination(*taken.getsockname())
    with pytest.raises(CarrierError, match=f"the upstream proxy at {address} .*refused"):
        await dial(
            Endpoint("tcp", Destination("exit.example", 1)), Dialling(UpstreamProxy(address, kind="http"))
        )


def test_what_is_asked() -> None:
    upstream = UpstreamProxy(Destination("proxy.example", 3128), "alice", "ä", "http")
    assert request(upstream, Destination("2001:db8::1", 443)).decode() == (
        "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
        "Proxy-Authorization: Basic YWxpY2U6w6Q=\r\n\r\n"
    )


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"HTTP/1.1 200" + tail))
def test_answers(head: bytes) -> None:
    """However it is cut, the same comes out; never anything but a status or a ValueError."""

    def read(data: bytes) -> int | str | None:
        try:
            return answer(data)
        except ValueError as error:
            return str(error)

    whole = read(head)
    assert whole is None or isinstance(whole, str) or 0 <= whole <= 999
    for size in range(len(head)):
        if isinstance(read(head[:size]), str):
            assert whole is None or isinstance(whole, str)


# --- back-pressure ---


@pytest.mark.parametrize("carrier", ["ws", "wss"])
async def test_what_the_kernel_does_not_take_is_not_piled_up(tmp_path: Path, carrier: CarrierKind) -> None:
    """A peer that reads nothing: one message waits at most, and the next is not asked for."""
    ca, certificate, key = make_certificates(tmp_path)
    released = asyncio.Event()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(max_msg_size=0)
        await response.prepare(request)
        await released.wait()
        async for _ in response:
            pass
        return response

    app = web.Application()
    app.router.add_get(PATH, handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = None
    if carrier == "wss":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    address = Destination(*runner.addresses[0][:2])
    pipe = await dial(Endpoint(carrier, address, PATH), Dialling(ca=ca))
    assert isinstance(pipe, WebSocketPipe)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(2_000):
            await pipe.send(bytes(pipe.message))
            sent += 1

    sending = asyncio.ensure_future(send())
    before = -1
    while sent != before or not pipe.transport.get_write_buffer_size():
        before = sent
        await asyncio.sleep(0.05)
    assert not sending.done()
    assert 0 < pipe.transport.get_write_buffer_size() < pipe.message + 2_000
    released.set()
    await sending  # it goes on by itself
    assert pipe.transport.get_write_buffer_size() == 0
    pipe.close()
    await farewells_ended()
    await runner.cleanup()


# --- what is private in the libraries below ---


def test_aiohttp_is_inside_as_we_know_it() -> None:
    """We override how it connects, for its TCPConnector neither takes a connected socket nor a protocol of ours. A new
    aiohttp that works differently must be noticed here and not in the field."""
    overridden = inspect.signature(aiohttp.BaseConnector._create_connection)
    ours = inspect.signature(_Connector._create_connection)
    assert list(overridden.parameters) == list(ours.parameters) == ["self", "req", "traces", "timeout"]
    assert "self._create_connection(req, traces, timeout)" in inspect.getsource(aiohttp.BaseConnector)
    assert list(inspect.signature(ResponseHandler).parameters) == ["loop"]
    numbers = (websocket._TEXT, websocket._BINARY, websocket._ERROR)
    assert numbers == (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.ERROR)
    for name in ("pause_writing", "resume_writing", "connection_lost"):
        assert callable(getattr(ResponseHandler, name))


async def test_asyncio_is_inside_as_we_know_it(tmp_path: Path) -> None:
    """Below TLS stands a second transport, which would let 64 KiB wait behind the session's back."""
    ca, certificate, key = make_certificates(tmp_path)
    async with place(certificate=certificate, key=key) as here:
        pipe = await dial(here.endpoint("wss"), Dialling(ca=ca))
        assert isinstance(pipe, WebSocketPipe)
        transport: Any = pipe.transport
        assert transport._ssl_protocol._transport.get_write_buffer_limits() == (0, 0)
        assert transport.get_write_buffer_limits() == (0, 1)
        pipe.close()
        await farewells_ended()
