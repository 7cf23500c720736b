"""Asking a SOCKS5 proxy for a connection (RFC 1928), with a user and a password (RFC 1929).

    client -> 05 01 method                       proxy -> 05 method
    client -> 01 length user length password     proxy -> 01 status         only for method 2
    client -> 05 01 00 target                    proxy -> 05 reply 00 bound address

The exit says nothing before it has heard from the client, so nothing stands behind the last answer. What the numbers
mean comes from asyncio-socks-server.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from asyncio_socks_server.core.types import AuthMethod, Cmd, Rep

from ...address import Destination, UnknownAddressType, encode, encoded_size
from ...errors import reason_of, words_of
from .upstream import UpstreamProxy

_VERSION: Final = 5
_LOGIN_VERSION: Final = 1


async def request_connection(sock: socket.socket, upstream: UpstreamProxy, target: Destination) -> None:
    """Let the proxy, to which `sock` is connected, connect it to `target`. Raises CarrierError. The caller bounds the
    time."""
    try:
        await _log_in(sock, upstream)
        await _send(sock, bytes((_VERSION, Cmd.CONNECT, 0)) + encode(target))
        version, reply, _ = await _read(sock, 3)
        if version != _VERSION:
            raise ValueError("it is no SOCKS5 proxy")
        if reply != Rep.SUCCEEDED:
            raise ValueError(_meaning(reply))
        # The address at which the proxy is bound says nothing of use, but must be read.
        bound = await _read(sock, 2)
        await _read(sock, encoded_size(bound) - len(bound))
    except OSError as error:
        raise upstream.failed(reason_of(error)) from None
    except UnknownAddressType:
        raise upstream.failed("it is no SOCKS5 proxy") from None
    except ValueError as error:
        raise upstream.failed(str(error)) from None


async def _log_in(sock: socket.socket, upstream: UpstreamProxy) -> None:
    """Agree on a method. Raises OSError and ValueError."""
    wanted = AuthMethod.NO_AUTH if upstream.user is None else AuthMethod.USERNAME_PASSWORD
    await _send(sock, bytes((_VERSION, 1, wanted)))
    version, method = await _read(sock, 2)
    if version != _VERSION:
        raise ValueError("it is no SOCKS5 proxy")
    if method == AuthMethod.NO_AUTH:
        return
    if method != wanted:
        raise ValueError(
            "it wants a user and a password" if upstream.user is None else "it takes no password"
        )
    user, password = (upstream.user or "").encode(), (upstream.password or "").encode()
    await _send(sock, b"".join((bytes((_LOGIN_VERSION, len(user))), user, bytes((len(password),)), password)))
    _, status = await _read(sock, 2)
    if status:
        raise ValueError("it does not know this user and password")


def _meaning(reply: int) -> str:
    """The reply of RFC 1928 section 6 as a sentence part."""
    try:
        return f"it says: {words_of(Rep(reply))}"
    except ValueError:
        return f"it answered with reply {reply}"


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _read(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, and none behind them. Raises OSError, ValueError if the connection ends before."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(sock, size - len(data))
        if not part:
            raise ValueError("it ended the connection")
        data += part
    return data
