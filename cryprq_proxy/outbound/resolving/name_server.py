"""A DNS server: asked over UDP, and over TCP for what fits no datagram.

Each question has a socket of its own: its port, chosen by the kernel, is as hard to guess as the id (RFC 5452
section 9.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

MAX_DATAGRAM: Final = 4096
MAX_MESSAGE: Final = 65_535
TRUNCATED: Final = 0x02
"""In the third byte of a message (RFC 1035 section 4.1.1)."""
MAX_STRAYS: Final = 32
"""Datagrams of one question that do not answer it; more are a flood, and TCP is tried."""

type OpenSocket = Callable[[int, int], socket.socket]
"""Makes a non-blocking socket of a family and a kind. Raises OSError."""


def plain_socket(family: int, kind: int) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock


class NameServer(NamedTuple):
    """`address` is an IP literal, an IPv6 one perhaps with a zone."""

    address: str
    port: int = 53
    open_socket: OpenSocket = plain_socket

    async def ask_over_udp(
        self, question: bytes, is_answer: Callable[[bytes], bool], seconds: float, tries: int = 1
    ) -> bytes | None:
        """The answer; None if it is to be asked for over TCP. Raises OSError.

        Sends the question `tries` times, `seconds` apart: both it and the answer may be lost.
        """
        loop = asyncio.get_running_loop()
        with await self._connected(socket.SOCK_DGRAM) as sock:
            for _ in range(tries):
                await loop.sock_sendall(sock, question)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await _answer(sock, is_answer)
        raise TimeoutError

    async def ask_over_tcp(self, question: bytes, seconds: float, longest: int = MAX_MESSAGE) -> bytes:
        """The answer. Raises OSError, EOFError, and ValueError for one of more than `longest` bytes."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            with await self._connected(socket.SOCK_STREAM) as sock:
                await loop.sock_sendall(sock, len(question).to_bytes(2) + question)
                length = int.from_bytes(await _exactly(sock, 2))
                if length > longest:
                    raise ValueError(f"an answer of {length} bytes")
                return await _exactly(sock, length)

    async def _connected(self, kind: int) -> socket.socket:
        """Datagrams from other addresses do not reach a connected socket."""
        family, _, _, _, destination = socket.getaddrinfo(
            self.address, self.port, flags=socket.AI_NUMERICHOST, type=kind
        )[0]
        sock = self.open_socket(family, kind)
        try:
            await asyncio.get_running_loop().sock_connect(sock, destination)
        except BaseException:
            sock.close()
            raise
        return sock


async def _answer(sock: socket.socket, is_answer: Callable[[bytes], bool]) -> bytes | None:
    """Datagrams that are no answer are foreign or damaged: the valid answer may still come."""
    loop = asyncio.get_running_loop()
    for _ in range(MAX_STRAYS):
        message = await loop.sock_recv(sock, MAX_DATAGRAM)
        if is_answer(message):
            return None if message[2] & TRUNCATED else message
    return None


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
