"""A connection before it becomes a carrier: bytes in order, in both directions.

The handshake runs on a pipe, so it is the same on TCP and on WebSocket. Afterwards `carrier` turns the pipe into the
carrier of a path. Bytes that the pipe has read beyond the handshake go with it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol

from ..base.linger import Farewell
from ..errors import CarrierError, CloseReason
from ..session.path import SessionPath
from .carrier import Carrier, CarrierOwner, broken
from .lane.batch import SocketAddress
from .tcp import TcpCarrier

MAX_DROPPED: Final = 1 << 20
"""Bytes that are read and dropped of a peer that is refused, on TCP."""


class Pipe(Protocol):
    """The owner ends it by one call of `carrier` or by `close`."""

    @property
    def direct(self) -> SocketAddress | None:
        """The other side's address, for the datagram lane: the client sends UDP to the same host and port. None
        where a reverse proxy may stand between."""

    @property
    def ended(self) -> bool:
        """Whether the other side is known to have gone, while nothing is being read."""

    async def read_exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes. Raises CarrierError if the connection ends or breaks before."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises CarrierError if the connection breaks."""

    async def part(self, last: bytes) -> None:
        """Send `last` and close the connection so that it arrives, whatever the other side is sending: return when that
        has ended, or after linger.SECONDS."""

    def close(self) -> None:
        """Close the connection; harmless if it is closed."""

    def carrier(self, path: SessionPath, owner: CarrierOwner) -> Carrier:
        """The carrier that owns the connection from now on; not yet started."""


class TcpPipe:
    """The pipe on `sock`, which is connected and non-blocking."""

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

    @property
    def ended(self) -> bool:
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    async def read_exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = await self._loop.sock_recv(self._sock, size - len(parts))
            except OSError as error:
                raise broken(error) from None
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
            raise broken(error) from None

    async def part(self, last: bytes) -> None:
        farewell = Farewell(self._loop, self._sock, last, most=MAX_DROPPED)
        try:
            await asyncio.shield(farewell.done)
        finally:
            farewell.cut()

    def close(self) -> None:
        self._sock.close()

    def carrier(self, path: SessionPath, owner: CarrierOwner) -> Carrier:
        return TcpCarrier(self._loop, self._sock, path, owner)


class ProxiedPipe(TcpPipe):
    """The same on a connection that a TCP proxy has made for the other side."""

    @property
    def direct(self) -> SocketAddress | None:
        return None
