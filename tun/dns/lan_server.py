"""A resolver of the LAN, asked past the tunnel for the names that the configuration sends to it (`dns.split`).

Its sockets have the link's mark, and the filter lets marked packets through to port 53 of the configured servers. Each
question has a socket of its own: its port, chosen by the kernel, is as hard to guess as the id (RFC 5452 section 9.2).
An answer that does not fit a datagram is asked for again over TCP.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Final

from cryprq_proxy.errors import reason_of

from ..routing.marked_socket import marked_socket
from . import codes
from .framed import UpstreamError
from .inquiry import Inquiry

TRIES: Final = 3
TRY_SECONDS: Final = 1.2
"""Until the question is sent again: both it and the answer may have been lost."""
TCP_SECONDS: Final = 3.0
MAX_DATAGRAM: Final = 4096
MAX_STRAYS: Final = 32
"""Datagrams of one question that do not answer it; after more the question goes over TCP."""
MAX_IN_FLIGHT: Final = 256
"""Questions at once, each with a socket."""


class LanServer:
    """An `Upstream`; `mark` is the link's."""

    def __init__(self, address: str, mark: int, port: int = 53) -> None:
        self._destination = address, port
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._mark = mark
        self._in_flight = 0

    async def ask(self, inquiry: Inquiry) -> bytes:
        """See `Upstream`."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise UpstreamError("too many questions wait for the server")
        self._in_flight += 1
        try:
            return await self._over_udp(inquiry) or await self._over_tcp(inquiry)
        except TimeoutError:
            raise UpstreamError("the server did not answer") from None
        except EOFError:
            raise UpstreamError("the server closed the connection without an answer") from None
        except OSError as error:
            raise UpstreamError(
                f"the server cannot be reached: {reason_of(error)}", unreachable=True
            ) from None
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        """See `Upstream`. No connection outlives its question."""

    async def _over_udp(self, inquiry: Inquiry) -> bytes | None:
        """The answer; None if it is to be asked for over TCP. Raises OSError."""
        loop = asyncio.get_running_loop()
        with marked_socket(self._family, socket.SOCK_DGRAM, self._mark) as sock:
            # Datagrams from other addresses do not reach a connected socket.
            await loop.sock_connect(sock, self._destination)
            question = secrets.token_bytes(2) + inquiry.wire()[2:]
            for last in (False,) * (TRIES - 1) + (True,):
                await loop.sock_sendall(sock, question)
                try:
                    async with asyncio.timeout(TRY_SECONDS):
                        return await self._answer(sock, question, inquiry)
                except TimeoutError:
                    if last:
                        raise
        return None

    async def _answer(self, sock: socket.socket, question: bytes, inquiry: Inquiry) -> bytes | None:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_STRAYS):
            message = await loop.sock_recv(sock, MAX_DATAGRAM)
            if message[:2] == question[:2] and inquiry.is_answered_by(message):
                return None if message[2] & codes.TC >> 8 else message
        return None

    async def _over_tcp(self, inquiry: Inquiry) -> bytes:
        """Raises OSError, EOFError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TCP_SECONDS):
            with marked_socket(self._family, socket.SOCK_STREAM, self._mark) as sock:
                await loop.sock_connect(sock, self._destination)
                question = inquiry.wire()
                await loop.sock_sendall(sock, len(question).to_bytes(2) + question)
                reader, writer = await asyncio.open_connection(sock=sock)
                try:
                    return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                finally:
                    writer.transport.abort()
