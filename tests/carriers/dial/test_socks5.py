"""Asking a SOCKS5 proxy: byte by byte, against asyncio-socks-server, and what is said when it does not connect."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from asyncio_socks_server.core import protocol as peer
from asyncio_socks_server.core.address import encode_reply
from asyncio_socks_server.core.types import Address, Cmd, Rep

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.dial.connect import Dialling, connect
from cryprq_proxy.carriers.dial.socks5 import request_connection
from cryprq_proxy.carriers.dial.upstream import UpstreamProxy
from cryprq_proxy.errors import CarrierError

pytestmark = pytest.mark.timeout(20)

PROXY = Destination("192.0.2.1", 1080)
TARGET = Destination("exit.example", 4433)
PLAIN = UpstreamProxy(PROXY)
KNOWN = UpstreamProxy(PROXY, "alice", "hunter2")
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


async def ask(upstream: UpstreamProxy, script: Sequence[tuple[bytes, bytes]], end: bool = False) -> bytes:
    """Talk to a proxy that expects the first of each pair and answers with the second, a byte at a time; what the
    proxy sent behind its last answer."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    async def proxy() -> None:
        for expected, answer in script:
            got = b""
            while len(got) < len(expected):
                got += await loop.sock_recv(theirs, len(expected) - len(got))
            assert got == expected
            for index in range(len(answer)):
                await loop.sock_sendall(theirs, answer[index : index + 1])
        if end:
            theirs.shutdown(socket.SHUT_WR)

    with ours, theirs:
        answering = spawn(proxy(), "proxy")
        try:
            await request_connection(ours, upstream, TARGET)
        finally:
            await answering
        await loop.sock_sendall(theirs, b"!")
        return await loop.sock_recv(ours, 100)


CONNECT = b"\x05\x01\x00\x03\x0cexit.example\x11\x51"
LOGIN = b"\x01\x05alice\x07hunter2"


@pytest.mark.parametrize(
    ("upstream", "script"),
    [
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, GRANTED)]),
        (KNOWN, [(b"\x05\x01\x02", b"\x05\x02"), (LOGIN, b"\x01\x00"), (CONNECT, GRANTED)]),
        (KNOWN, [(b"\x05\x01\x02", b"\x05\x00"), (CONNECT, GRANTED)]),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x05\x00\x00\x03\x03abc\x00\x01")]),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x05\x00\x00\x04" + bytes(18))]),
    ],
)
async def test_what_is_said(upstream: UpstreamProxy, script: Sequence[tuple[bytes, bytes]]) -> None:
    """Not a byte too many is read: what comes behind is the exit's."""
    assert await ask(upstream, script) == b"!"


@pytest.mark.parametrize(
    ("upstream", "script", "sentence"),
    [
        (PLAIN, [(b"\x05\x01\x00", b"\x05\xff")], "it wants a user and a password"),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x02")], "it wants a user and a password"),
        (KNOWN, [(b"\x05\x01\x02", b"\x05\xff")], "it takes no password"),
        (
            KNOWN,
            [(b"\x05\x01\x02", b"\x05\x02"), (LOGIN, b"\x01\x01")],
            "it does not know this user and password",
        ),
        (PLAIN, [(b"\x05\x01\x00", b"HT")], "it is no SOCKS5 proxy"),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x04\x00\x00")], "it is no SOCKS5 proxy"),
        (
            PLAIN,
            [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x05\x00\x00\x09\x00")],
            "it is no SOCKS5 proxy",
        ),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x05\x05\x00")], "it says: connection refused"),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, b"\x05\x2a\x00")], "it answered with reply 42"),
        (PLAIN, [(b"\x05\x01\x00", b"\x05\x00"), (CONNECT, GRANTED[:-1])], "it ended the connection"),
        (PLAIN, [(b"\x05\x01\x00", b"")], "it ended the connection"),
    ],
)
async def test_who_does_not_connect(
    upstream: UpstreamProxy, script: Sequence[tuple[bytes, bytes]], sentence: str
) -> None:
    with pytest.raises(CarrierError) as caught:
        await ask(upstream, script, end=True)
    assert str(caught.value) == f"the upstream proxy at {PROXY} did not connect to the exit: {sentence}"


@pytest.mark.parametrize(
    "target", [TARGET, Destination("192.0.2.9", 1), Destination("2001:db8::9", 65_535)], ids=str
)
async def test_another_implementation_understands(target: Destination) -> None:
    """By a name of the proxy whose first address is dead: the dialling is the same as without a proxy."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = peer.parse_method_selection(await reader.readexactly(3))
        assert methods == {2}
        writer.write(peer.build_method_reply(2))
        assert await peer.parse_username_password(reader) == ("älice", "p:ss")
        writer.write(peer.build_auth_reply(True))
        assert await peer.parse_request(reader) == (Cmd.CONNECT, Address(*target))
        writer.write(encode_reply(Rep.SUCCEEDED, "2001:db8::5", 9) + b"hello")
        await writer.drain()
        writer.close()

    async def resolve(name: str) -> Sequence[str]:
        assert name == "proxy.example"
        return ["127.0.0.3", "127.0.0.1"]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = Destination("proxy.example", server.sockets[0].getsockname()[1])
    how = Dialling(UpstreamProxy(address, "älice", "p:ss"), resolve)
    with await connect(target, how) as sock:
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello"
    server.close()
    await server.wait_closed()


async def test_no_proxy_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Destination(*taken.getsockname())
    with pytest.raises(
        CarrierError, match=f"^the upstream proxy at {address} cannot be reached: connection refused$"
    ):
        await connect(TARGET, Dialling(UpstreamProxy(address)))
