"""Other people's SOCKS and WebSocket clients, and half-close both ways."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable

import aiohttp
import pytest
import websockets
from asyncio_socks_server.client.client import connect as socks_server_connect
from asyncio_socks_server.core.types import Address
from python_socks import ProxyError
from python_socks.async_.asyncio import Proxy

from cryprq_proxy.base.sockets import set_reset_on_close
from tests.support.applications import connect, read_all, read_exactly, request, through
from tests.support.background import PATIENCE
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import BLOCK, EndFirst, HttpTarget, Manner, TcpTarget, answer_after_end

type Serve = Callable[[Manner], TcpTarget]


async def echoes(sock: socket.socket) -> None:
    """What goes in comes out: more than any buffer on the way holds."""
    data = BLOCK * 2
    loop = asyncio.get_running_loop()
    sock.setblocking(False)

    async def send() -> None:
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    async def receive() -> bytes:
        got = bytearray()
        while part := await loop.sock_recv(sock, 65_536):
            got += part
        return bytes(got)

    async with asyncio.timeout(PATIENCE):
        _, got = await asyncio.gather(send(), receive())
    assert got == data
    sock.close()


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks4a", "http"])
async def test_python_socks(scheme: str, client: Client, echo_target: TcpTarget) -> None:
    rdns = scheme in ("socks5h", "socks4a", "http")
    url = f"{scheme.removesuffix('h').removesuffix('a')}://127.0.0.1:{client.port}"
    host = "site.test" if rdns else "127.0.0.1"
    proxy = Proxy.from_url(url, rdns=rdns)
    await echoes(await proxy.connect(host, echo_target.port, timeout=PATIENCE))


async def test_python_socks_is_told_why(client: Client) -> None:
    proxy = Proxy.from_url(f"socks5://127.0.0.1:{client.port}", rdns=True)
    with pytest.raises(ProxyError, match="Host unreachable"):
        await proxy.connect("no-such-host.invalid", 80, timeout=PATIENCE)


async def test_password(world: World, echo_target: TcpTarget) -> None:
    client = world.client(world.exit(), {"user": "alice:secret"})
    for scheme in ("socks5", "http"):
        proxy = Proxy.from_url(f"{scheme}://alice:secret@127.0.0.1:{client.port}")
        await echoes(await proxy.connect("127.0.0.1", echo_target.port, timeout=PATIENCE))
        proxy = Proxy.from_url(f"{scheme}://alice:wrong@127.0.0.1:{client.port}")
        with pytest.raises(ProxyError):
            await proxy.connect("127.0.0.1", echo_target.port, timeout=PATIENCE)


async def test_asyncio_socks_server(client: Client, echo_target: TcpTarget) -> None:
    connection = await socks_server_connect(
        Address("127.0.0.1", client.port), Address("site.test", echo_target.port)
    )
    connection.writer.write(b"hello")
    connection.writer.write_eof()
    assert await asyncio.wait_for(connection.reader.read(), PATIENCE) == b"hello"
    connection.writer.close()
    await connection.writer.wait_closed()


# --- WebSocket ---


async def chat(ws: aiohttp.ClientWebSocketResponse) -> None:
    for text in ("hello", "ü" * 70_000):
        await ws.send_str(text)
        assert await ws.receive_str(timeout=PATIENCE) == text
    await ws.send_bytes(BLOCK)
    assert await ws.receive_bytes(timeout=PATIENCE) == BLOCK


async def test_websocket_by_upgrade(client: Client, http: HttpTarget) -> None:
    """aiohttp asks an HTTP proxy for a plain ws:// URL as for any http:// one: with an Upgrade."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://site.test:{http.port}/ws", proxy=f"http://127.0.0.1:{client.port}", max_msg_size=1 << 24
        ) as ws,
    ):
        await chat(ws)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_websocket_in_a_tunnel(scheme: str, client: Client, http: HttpTarget) -> None:
    """By CONNECT, and by SOCKS."""
    async with websockets.connect(
        f"ws://site.test:{http.port}/ws",
        proxy=f"{scheme}{'h' if scheme == 'socks5' else ''}://127.0.0.1:{client.port}",
        max_size=1 << 24,
        open_timeout=PATIENCE,
    ) as ws:
        for message in ("hello", "ü" * 70_000, BLOCK):
            await ws.send(message)
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == message


# --- the ends of a connection ---


def test_application_ends_first(client: Client, exit: Exit, serve: Serve) -> None:
    """The target answers after the end, and the answer arrives."""
    target = serve(answer_after_end)
    with through(client.port, target.port) as sock:
        sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == f"{hashlib.sha256(BLOCK).hexdigest()} {len(BLOCK)}".encode()
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_target_ends_first(client: Client, exit: Exit, serve: Serve) -> None:
    """What the application still says arrives, too."""
    manner = EndFirst()
    with through(client.port, serve(manner).port) as sock:
        assert read_all(sock) == b"bye"
        sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        assert manner.wait() == BLOCK
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


@pytest.mark.parametrize("http_tunnel", [False, True], ids=["socks5", "connect"])
def test_application_sends_at_once(http_tunnel: bool, client: Client, serve: Serve) -> None:
    """Data, and even the end, may follow the request without waiting for the reply."""
    target = serve(answer_after_end)
    with connect(client.port) as sock:
        if http_tunnel:
            sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target.port + BLOCK[:4000])
        else:
            address = b"\x01\x7f\0\0\x01" + target.port.to_bytes(2)
            sock.sendall(b"\x05\x01\x00" + b"\x05\x01\x00" + address + BLOCK[:4000])
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert answer.endswith(f"{hashlib.sha256(BLOCK[:4000]).hexdigest()} 4000".encode())


def test_target_resets(client: Client, serve: Serve) -> None:
    """A reset is no clean end: the application must not take what it has for all."""

    async def manner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        set_reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()

    with through(client.port, serve(manner).port) as sock:
        sock.sendall(b"xx")
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_application_resets(client: Client, exit: Exit, serve: Serve) -> None:
    ended: list[Exception] = []

    async def manner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError as error:
            ended.append(error)

    sock = through(client.port, serve(manner).port)
    sock.sendall(b"x")
    set_reset_on_close(sock)
    sock.close()
    until(lambda: bool(ended), "the target sees the reset")
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_bind_is_not_supported(client: Client) -> None:
    with connect(client.port) as sock:
        assert request(sock, 2, "127.0.0.1", 80)[0] == 7
        assert sock.recv(1) == b""


def test_socks4_bind_is_rejected(client: Client) -> None:
    with connect(client.port) as sock:
        sock.sendall(b"\x04\x02\x00\x50\x7f\x00\x00\x01\x00")
        assert read_exactly(sock, 8)[:2] == b"\x00\x5b"
        assert sock.recv(1) == b""
