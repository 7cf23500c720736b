"""The PROXY header: what is read, what is refused, and whose address counts afterwards."""

from __future__ import annotations

import asyncio
import socket
import ssl
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.pipe import ProxiedPipe
from cryprq_proxy.errors import HandshakeError
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.proxy_protocol import HEAD, LOCAL, MAX_HEADER, PROXY, SIGNATURE, ProxyHeader, is_among
from cryprq_proxy.exit.settings import WebSocketSettings
from tests.support.proxy_headers import local_header, proxy_header
from tests.support.settle import settle, until
from tests.support.visits import arrive, first_flight, hears_nothing, open_exit, tcp_pair
from tests.support.web_links import make_certificates

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"))
LB = "10.1.2.3"

# --- the header ---


def read(data: bytes, size: int = MAX_HEADER) -> tuple[str, bytes]:
    """The address in a header that comes in pieces of at most `size`, and the bytes behind it."""
    header = ProxyHeader()
    while header.missing:
        piece = data[: min(size, header.missing)]
        if not piece:
            raise EOFError
        header.feed(piece)
        data = data[len(piece) :]
    return header.client(LB), data


addresses = st.ip_addresses().map(str)


@given(addresses, st.binary(max_size=300), st.binary(max_size=9), st.integers(1, 30))
def test_a_header_in_any_pieces(client: str, options: bytes, behind: bytes, size: int) -> None:
    assert read(proxy_header(client, options) + behind, size) == (client, behind)


@given(st.integers(0, 255), st.binary(max_size=300), st.binary(max_size=9))
def test_a_proxy_that_speaks_for_itself(family: int, block: bytes, behind: bytes) -> None:
    assert read(local_header(family, block) + behind) == (LB, behind)


@given(st.binary(max_size=600) | st.binary(max_size=600).map(lambda rest: SIGNATURE + rest))
def test_any_bytes_are_a_header_or_a_handshake_error(data: bytes) -> None:
    try:
        client, behind = read(data)
    except (HandshakeError, EOFError):
        return
    ip_address(client)
    assert data.startswith(SIGNATURE)
    assert HEAD.size <= len(data) - len(behind) <= MAX_HEADER


@given(addresses, st.integers(0, len(SIGNATURE) - 1), st.integers(1, 255))
def test_a_wrong_byte_is_refused_when_it_comes(client: str, place: int, change: int) -> None:
    header, data = ProxyHeader(), bytearray(proxy_header(client))
    data[place] ^= change
    if place:
        header.feed(bytes(data[:place]))
    with pytest.raises(HandshakeError, match="no PROXY header of version 2"):
        header.feed(bytes(data[place : place + 1]))


@pytest.mark.parametrize(
    ("command", "family", "size", "says"),
    [
        (0x11, 0x11, 12, "unknown version or command"),
        (0x31, 0x11, 12, "unknown version or command"),
        (0x22, 0x11, 12, "unknown version or command"),
        (PROXY, 0x00, 0, "names no address"),
        (PROXY, 0x12, 12, "names no address"),  # UDP
        (PROXY, 0x31, 216, "names no address"),  # a Unix socket
        (PROXY, 0x11, 11, "names no address"),
        (PROXY, 0x21, 35, "names no address"),
        (PROXY, 0x11, MAX_HEADER - HEAD.size + 1, "too long"),
        (LOCAL, 0x00, MAX_HEADER - HEAD.size + 1, "too long"),
        (PROXY, 0x11, 0xFFFF, "too long"),
    ],
)
def test_what_is_refused_at_its_head(command: int, family: int, size: int, says: str) -> None:
    with pytest.raises(HandshakeError, match=says):
        read(HEAD.pack(SIGNATURE, command, family, size))


def test_the_longest_header() -> None:
    longest = proxy_header("192.0.2.1", bytes(MAX_HEADER - HEAD.size - 12))
    assert len(longest) == MAX_HEADER
    assert read(longest)[0] == "192.0.2.1"


@pytest.mark.parametrize(
    "text", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"PROXY UNKNOWN\r\n\r\n", b"\x16\x03\x01"]
)
def test_other_protocols_and_version_1(text: bytes) -> None:
    with pytest.raises(HandshakeError):
        read(text)


@pytest.mark.parametrize(
    ("host", "proxy"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8:1::5", True),
        ("2001:db8:1::5%1", True),
        ("2001:db8:2::5", False),
        ("::10.1.2.3", False),
    ],
)
def test_who_is_a_proxy(host: str, proxy: bool) -> None:
    assert is_among(host, PROXIES) is proxy
    assert not is_among(host, ())


# --- at the exit ---


async def is_answered(sock: socket.socket) -> bool:
    return await asyncio.get_running_loop().sock_recv(sock, 1) != b""


@pytest.mark.parametrize("pieces", [1, 2, 50])
async def test_a_client_behind_a_proxy(pieces: int) -> None:
    async with open_exit(settings={"proxies": PROXIES}) as exit:
        data = proxy_header("192.0.2.7") + first_flight()
        sock = arrive(exit, LB)
        for start in range(0, len(data), -(-len(data) // pieces)):
            sock.send(data[start : start + -(-len(data) // pieces)])
            await settle()
        assert await is_answered(sock)
        (visitor,) = exit.listener.reception.answered
        assert visitor.host == "192.0.2.7"
        assert isinstance(visitor.pipe, ProxiedPipe)
        assert visitor.pipe.direct is None, "the datagram lane would go to the proxy"


async def test_from_a_proxy_it_must_come() -> None:
    async with open_exit(settings={"proxies": PROXIES}) as exit:
        assert await hears_nothing(arrive(exit, LB, first_flight()))
        assert await hears_nothing(arrive(exit, "::ffff:" + LB, first_flight()))
        assert exit.listener.failed == {"no_handshake": 2}


@pytest.mark.parametrize("proxies", [(), PROXIES])
async def test_from_all_others_it_is_garbage(proxies: tuple[object, ...]) -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2}, settings={"proxies": proxies}) as exit:
        for _ in range(2):
            data = proxy_header("192.0.2.7") + first_flight()
            assert await hears_nothing(arrive(exit, "198.51.100.1", data))
        assert exit.listener.failed == {"no_handshake": 2}
        assert await hears_nothing(arrive(exit, "198.51.100.1", first_flight()))
        assert exit.listener.failed == {"no_handshake": 2, "too_many": 1}, "it was the sender who paid"


async def test_the_tokens_are_those_of_the_client() -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2}, settings={"proxies": PROXIES}) as exit:
        for _ in range(2):
            assert await hears_nothing(arrive(exit, LB, proxy_header("192.0.2.7") + bytes(100)))
        assert await hears_nothing(arrive(exit, LB, proxy_header("192.0.2.7")))
        assert exit.listener.failed == {"no_handshake": 2, "too_many": 1}
        assert await is_answered(arrive(exit, LB, proxy_header("192.0.2.8") + first_flight()))
        assert await hears_nothing(arrive(exit, "192.0.2.7")), "also where it comes by itself"


async def test_a_connection_of_the_proxy_itself_counts_for_it() -> None:
    async with open_exit(bounds={"handshakes_per_minute": 1}, settings={"proxies": PROXIES}) as exit:
        checked = arrive(exit, LB, local_header())
        await until(lambda: any(visitor.prefixes for visitor in exit.listener.reception.strangers))
        checked.close()
        await until(lambda: not exit.listener.strangers)
        assert await hears_nothing(arrive(exit, LB, local_header()))
        assert exit.listener.failed == {"no_handshake": 1, "too_many": 1}
        assert await is_answered(arrive(exit, LB, proxy_header("192.0.2.8") + first_flight()))


async def test_a_proxy_that_says_nothing_costs_nobody_a_token() -> None:
    """A health check that only connects."""
    async with open_exit(bounds={"handshakes_per_minute": 1}, settings={"proxies": PROXIES}) as exit:
        for _ in range(5):
            arrive(exit, LB).close()
            await until(lambda: not exit.listener.strangers)
        assert await is_answered(arrive(exit, LB, proxy_header("192.0.2.8") + first_flight()))


async def upgraded(exit: Exit, host: str, header: bytes) -> str:
    """The address that counts for a WebSocket from `host`, whose request names 203.0.113.5."""
    request = (
        b"GET /link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"X-Forwarded-For: 203.0.113.5\r\n\r\n"
    )
    ours, theirs = tcp_pair()
    with ours:
        exit.listener.accepted(exit.listener._entrance, theirs, host)
        ours.send(header + request)
        assert await asyncio.get_running_loop().sock_recv(ours, 12) == b"HTTP/1.1 101"
        (visitor,) = exit.listener.reception.upgrading
        return visitor.host


async def test_at_the_second_entrance_a_named_address_gives_no_rights() -> None:
    """A client with the address of the reverse proxy's machine is not taken for the reverse proxy."""
    settings = {
        "proxies": PROXIES,
        "websocket": WebSocketSettings(Destination("127.0.0.1", 0), "/link", forwarded=True),
    }
    async with open_exit(settings=settings) as exit:
        await exit.start()
        assert await upgraded(exit, LB, proxy_header("127.0.0.1")) == "127.0.0.1"
        await until(lambda: not exit.listener.strangers)
        assert await upgraded(exit, LB, proxy_header("192.0.2.7")) == "192.0.2.7"


async def test_a_reverse_proxy_needs_no_header() -> None:
    settings = {
        "proxies": (*PROXIES, ip_network("127.0.0.0/8")),
        "websocket": WebSocketSettings(Destination("127.0.0.1", 0), "/link", forwarded=True),
    }
    async with open_exit(settings=settings) as exit:
        await exit.start()
        assert await upgraded(exit, "127.0.0.1", b"") == "203.0.113.5"


async def test_tls_begins_behind_the_header(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    settings = {
        "proxies": PROXIES,
        "websocket": WebSocketSettings(Destination("127.0.0.1", 0), "/link", certificate, key),
    }
    async with open_exit(settings=settings) as exit:
        await exit.start()
        ours, theirs = tcp_pair()
        exit.listener.accepted(exit.listener._entrance, theirs, LB)
        ours.send(proxy_header("192.0.2.7"))
        _, writer = await asyncio.open_connection(
            sock=ours, ssl=ssl.create_default_context(cafile=ca), server_hostname="localhost"
        )
        (visitor,) = exit.listener.reception.upgrading
        assert visitor.host == "192.0.2.7"
        writer.close()
