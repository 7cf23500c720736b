"""A connection before it has become a carrier: bytes in order, in both directions, of whatever kind.

The handshake runs on a pipe, so that it is the same on TCP and on WebSocket. Afterwards `carrier` makes of it what runs
a session; what the pipe has read too much goes with it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from ..base.text import reason_of
from ..errors import CarrierError, CloseReason
from ..session.session import Session
from .carrier import Carrier, CarrierOwner
from .lane.batch import SocketAddress
from .tcp import TcpCarrier


class Pipe(Protocol):
    """Either `carrier` or `close` is called in the end, once."""

    @property
    def direct(self) -> SocketAddress | None:
        """The other side's address, if the datagram lane can use it: with its port at the exit. None where something
        else may stand between (a reverse proxy)."""

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes; raises CarrierError if the connection ends or breaks before."""

    async def write(self, data: bytes) -> None:
        """All of `data`; raises CarrierError if the connection breaks."""

    def close(self) -> None:
        """Nothing becomes of it; harmless if it is closed."""

    def carrier(self, session: Session, owner: CarrierOwner) -> Carrier:
        """The carrier that takes over; not yet started."""


class TcpPipe:
    """`sock` is connected and non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @property
    def direct(self) -> SocketAddress | None:
        try:
            address: SocketAddress = self._sock.getpeername()
        except OSError:  # the connection is gone already
            return None
        return address

    async def read_exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = await self._loop.sock_recv(self._sock, size - len(parts))
            except OSError as error:
                raise CarrierError(
                    CloseReason.TIMED_OUT, f"the connection broke: {reason_of(error)}"
                ) from None
            if not part:
                raise CarrierError(
                    CloseReason.TIMED_OUT, "the other side ended the connection during the handshake"
                )
            parts += part
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._sock, data)
        except OSError as error:
            raise CarrierError(CloseReason.TIMED_OUT, f"the connection broke: {reason_of(error)}") from None

    def close(self) -> None:
        self._sock.close()

    def carrier(self, session: Session, owner: CarrierOwner) -> Carrier:
        return TcpCarrier(self._loop, self._sock, session, owner)
