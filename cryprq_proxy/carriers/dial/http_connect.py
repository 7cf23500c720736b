"""Asking an HTTP proxy for a connection: CONNECT (RFC 9110 section 9.3.6), with Basic credentials (RFC 7617).

The exit says nothing before it has heard from the client, so what the proxy sends is its answer and nothing else. A
body that comes with a refusal is not read.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from typing import Final

from ...address import Destination
from ...errors import reason_of
from .upstream import UpstreamProxy

MAX_HEAD: Final = 16_384
"""Bytes of a proxy's answer."""

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")
_MEANINGS: Final = {
    403: "it does not allow this (status 403)",
    407: "it wants a user and a password, or refuses those given (status 407)",
}


async def request_connection(sock: socket.socket, upstream: UpstreamProxy, target: Destination) -> None:
    """Let the proxy, to which `sock` is connected, connect it to `target`. Raises CarrierError. The caller bounds the
    time."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(sock, request(upstream, target))
        head = b""
        while (status := answer(head)) is None:
            part = await loop.sock_recv(sock, MAX_HEAD)
            if not part:
                raise upstream.failed("it ended the connection")
            head += part
    except OSError as error:
        raise upstream.failed(reason_of(error)) from None
    except ValueError as error:
        raise upstream.failed(str(error)) from None
    if not 200 <= status < 300:
        raise upstream.failed(_MEANINGS.get(status, f"it answered with status {status}"))


def request(upstream: UpstreamProxy, target: Destination) -> bytes:
    """The bytes of the request."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
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
        raise ValueError("it sent more than its answer")
    return int(status[1])
