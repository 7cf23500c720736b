"""Dialling through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6), with Basic credentials (RFC 7617) where given.

Whoever we dial says nothing before it has heard from us, so what the proxy sends is its answer and nothing else. A body
that comes with a refusal is not read.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from typing import TYPE_CHECKING, Final

from ...address import Destination
from ...base.text import reason_of
from ...errors import CarrierError, CloseReason

if TYPE_CHECKING:
    from .dial import Resolve, Upstream

MAX_HEAD: Final = 16_384
"""Bytes of a proxy's answer."""

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")


async def connect_through(
    upstream: Upstream, exit_address: Destination, resolve: Resolve, mark: int
) -> socket.socket:
    """A connected, non-blocking socket to the exit. Raises CarrierError. The caller bounds the time."""
    from .dial import connect

    loop = asyncio.get_running_loop()
    try:
        sock = await connect(upstream.address, None, resolve, mark)
    except CarrierError as error:
        raise _failed(upstream, str(error)) from None
    try:
        await loop.sock_sendall(sock, request(upstream, exit_address))
        head = b""
        while (status := answer(head)) is None:
            part = await loop.sock_recv(sock, MAX_HEAD)
            if not part:
                raise _failed(upstream, "it ended the connection")
            head += part
        if not 200 <= status < 300:
            raise _failed(upstream, _MEANINGS.get(status, f"it answered with status {status}"))
    except OSError as error:
        sock.close()
        raise _failed(upstream, reason_of(error)) from None
    except ValueError as error:
        sock.close()
        raise _failed(upstream, str(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


_MEANINGS: Final = {
    403: "it does not allow this (status 403)",
    407: "it wants a user and a password, or others than those given (status 407)",
}


def request(upstream: Upstream, exit_address: Destination) -> bytes:
    """What is sent to the proxy."""
    lines = [f"CONNECT {exit_address} HTTP/1.1", f"Host: {exit_address}"]
    if upstream.user is not None:
        login = base64.b64encode(f"{upstream.user}:{upstream.password or ''}".encode())
        lines.append(f"Proxy-Authorization: Basic {login.decode()}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def answer(head: bytes) -> int | None:
    """The status in the proxy's answer; None while more of it must come. Raises ValueError if it is none."""
    end = _END.search(head)
    if end is None:
        if len(head) >= MAX_HEAD:
            raise ValueError("its answer has no end")
        if head and not b"HTTP/1.".startswith(head[:7]):
            raise ValueError("it is no HTTP proxy")
        return None
    status = _STATUS.match(head)
    if status is None:
        raise ValueError("it is no HTTP proxy")
    if end.end() < len(head) and status[1].startswith(b"2"):
        raise ValueError("it sent something of its own behind its answer")
    return int(status[1])


def _failed(upstream: Upstream, why: str) -> CarrierError:
    return CarrierError(
        CloseReason.TIMED_OUT,
        f"the upstream proxy at {upstream.address} did not connect to the exit: {why}",
    )
