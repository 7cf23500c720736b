"""The connection below every carrier: straight to the exit, or through an upstream proxy.

The modules for proxies are loaded only where one is configured.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ...address import Destination
from .tcp import Resolve, by_system, connect_tcp
from .upstream import UpstreamProxy


@dataclass(frozen=True, slots=True)
class Dialling:
    """How an exit is dialled, for all carriers. `mark` is the SO_MARK of the sockets, or 0. `ca` is a file with the
    certificates that wss trusts instead of the system's. `segment` is the largest TCP segment of either side in bytes;
    0 leaves it to the kernel."""

    upstream: UpstreamProxy | None = None
    resolve: Resolve = by_system
    mark: int = 0
    ca: Path | None = None
    segment: int = 0


async def connect(exit_address: Destination, how: Dialling) -> socket.socket:
    """A connected, non-blocking socket to the exit.

    A name is resolved by `how.resolve`; where there is an upstream proxy, only the proxy's own name is, and the exit's
    is left to it. Raises CarrierError saying what did not answer and why. The caller bounds the time.
    """
    upstream = how.upstream
    if upstream is None:
        return await connect_tcp(exit_address, how.resolve, how.mark, how.segment)
    if upstream.kind == "http":
        from .http_connect import request_connection
    else:
        from .socks5 import request_connection
    sock = await connect_tcp(upstream.address, how.resolve, how.mark, how.segment, what="the upstream proxy")
    try:
        await request_connection(sock, upstream, exit_address)
    except BaseException:
        sock.close()
        raise
    return sock
