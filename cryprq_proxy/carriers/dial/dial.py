"""Dialling the exit: a TCP connection, straight or through an upstream proxy, and what stands on it.

The WebSocket carrier's part is loaded only when it is used: aiohttp takes a third of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...address import Destination
from ...base.sockets import prepare
from ...base.text import reason_of
from ...errors import CarrierError, CloseReason, CryprqError
from ..pipe import Pipe, TcpPipe
from .endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Upstream:
    """A proxy between here and the exit: SOCKS5 (RFC 1928, 1929), or HTTP with CONNECT (RFC 9110 section 9.3.6)."""

    address: Destination
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    kind: Literal["socks5", "http"] = "socks5"

    def __repr__(self) -> str:
        return f"Upstream({self.address})"


type Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Names to IP addresses, the best first. Raises CryprqError saying why there are none."""


async def by_system(name: str) -> Sequence[str]:
    """The Resolve of a client that leaves the system's resolver alone."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _failed(f"the exit's name {name} could not be resolved", error) from None
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class Dialling:
    """How an exit is dialled, whatever the carrier. `mark` is the SO_MARK of the sockets, or 0; `ca` a file with the
    certificates that are trusted for wss instead of the system's."""

    upstream: Upstream | None = None
    resolve: Resolve = by_system
    mark: int = 0
    ca: Path | None = None


async def dial(endpoint: Endpoint, how: Dialling) -> Pipe:
    """A connection to the exit on which the handshake can begin. Raises CarrierError saying what did not answer and
    why, ConfigError for an unusable `ca`. The caller bounds the time."""
    if endpoint.carrier == "tcp":
        return TcpPipe(await connect(endpoint.address, how.upstream, how.resolve, how.mark))
    from .websocket import dial_websocket

    return await dial_websocket(endpoint, how)


async def connect(
    exit_address: Destination, upstream: Upstream | None, resolve: Resolve = by_system, mark: int = 0
) -> socket.socket:
    """A connected, non-blocking socket to the exit, with `mark` as its SO_MARK if that is not 0.

    A name is resolved by `resolve`, unless there is an upstream: then it is resolved there. Addresses are tried in the
    resolver's order. Raises CarrierError saying which host did not answer and why. The caller bounds the time.
    """
    if upstream is not None:
        if upstream.kind == "http":
            from .http_connect import connect_through

            return await connect_through(upstream, exit_address, resolve, mark)
        return await _dial_through(upstream, exit_address)
    loop = asyncio.get_running_loop()
    host, port = exit_address
    try:
        addresses = [host] if exit_address.is_ip else await resolve(host)
    except CryprqError as error:
        raise CarrierError(CloseReason.TIMED_OUT, str(error)) from None
    last: OSError | None = None
    for address in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            prepare(sock, address)
            await loop.sock_connect(sock, (address, port))
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise _failed(f"the exit at {exit_address} cannot be reached", last)


async def _dial_through(upstream: Upstream, exit_address: Destination) -> socket.socket:
    from asyncio_socks_server.client.client import connect
    from asyncio_socks_server.core.protocol import ProtocolError
    from asyncio_socks_server.core.types import Address

    try:
        connection = await connect(
            Address(*upstream.address), Address(*exit_address), upstream.user, upstream.password
        )
    except (OSError, ProtocolError, asyncio.IncompleteReadError, ValueError) as error:
        raise _failed(
            f"the upstream proxy at {upstream.address} did not connect to the exit", error
        ) from None
    # The exit says nothing before it has read, so no byte can be lost in the reader: take the connection over.
    transport = connection.writer.transport
    try:
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        return prepare(sock, sock.getpeername()[0])
    finally:
        with contextlib.suppress(RuntimeError):
            transport.abort()


def _failed(what: str, error: BaseException | None) -> CarrierError:
    why = reason_of(error) if isinstance(error, OSError) else str(error)
    return CarrierError(CloseReason.TIMED_OUT, f"{what}: {why}")
