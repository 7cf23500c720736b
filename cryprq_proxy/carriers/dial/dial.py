"""Dialling an endpoint of the exit: a connection, and what stands on it for this kind of carrier."""

from __future__ import annotations

from ..pipe import Pipe, TcpPipe
from .connect import Dialling, connect
from .endpoint import Endpoint


async def dial(endpoint: Endpoint, how: Dialling) -> Pipe:
    """A connection to the exit on which the handshake can begin. Raises CarrierError saying what did not answer and
    why, ConfigError for an unusable `how.ca`. The caller bounds the time."""
    if endpoint.carrier == "tcp":
        return TcpPipe(await connect(endpoint.address, how))
    # aiohttp takes a third of a second to load: only a client that uses WebSocket pays for it.
    from .websocket import dial_websocket

    return await dial_websocket(endpoint, how)
