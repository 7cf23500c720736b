"""Dialling an endpoint of the exit: a connection, and what stands on it for this kind of carrier."""

from __future__ import annotations

from ...base.descriptors import EXHAUSTED, SHORTAGE
from ...errors import CarrierError, CloseReason, reason_of
from ..pipe import Pipe, TcpPipe
from .connect import Dialling, connect
from .endpoint import Endpoint


async def dial(endpoint: Endpoint, how: Dialling) -> Pipe:
    """A connection to the exit on which the handshake can begin. Raises CarrierError saying what did not answer and
    why, ConfigError for an unusable `how.ca`. The caller bounds the time."""
    try:
        return await _dial(endpoint, how)
    except OSError as error:
        # Without a free descriptor not even a module can be loaded.
        if error.errno in EXHAUSTED:
            SHORTAGE.note(error)
        raise CarrierError(
            CloseReason.TIMED_OUT, f"{endpoint} cannot be dialled: {reason_of(error)}"
        ) from None


async def _dial(endpoint: Endpoint, how: Dialling) -> Pipe:
    if endpoint.carrier == "tcp":
        return TcpPipe(await connect(endpoint.address, how))
    # aiohttp takes a third of a second to load: only a client that uses WebSocket pays for it.
    from .websocket import dial_websocket

    return await dial_websocket(endpoint, how)
