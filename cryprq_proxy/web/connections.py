"""The connections of the admin server: how many, how long they may be silent, and what is no HTTP at all.

aiohttp closes a connection that is idle between two requests, but waits without end for the first one. A program that
opens connections and sends nothing would use up the descriptors that the proxy needs. aiohttp also logs what it cannot
parse as an error with a traceback; here that is a line at debug.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp import web

MAX_CONNECTIONS: Final = 64
FIRST_REQUEST_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 30.0
READ_SIZE: Final = 512
"""Bytes of one read: small requests and chunks are far more work than their bytes, and all of them are done at once."""

_log = logging.getLogger(__name__)


class AdminConnection(web.RequestHandler):
    """`silence` ends the connection unless it is cancelled. aiohttp's own timer watches it after the first request."""

    __slots__ = ("silence",)
    silence: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # asyncio has no public call for that
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.silence.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, or what failed in our own code, without a detail of either."""
        if status >= 500 and not isinstance(exc, ConnectionError):
            _log.error("a request to the admin server failed", exc_info=exc)
        else:
            _log.debug("the admin server was sent what is no request, or no whole one: %s", exc)
        if request.writer.output_size:
            raise ConnectionError("part of another answer is already out")
        # An empty name of the server: left out, aiohttp would put in its own.
        response = web.Response(status=status, text="this cannot be answered\n", headers={"Server": ""})
        response.force_close()
        return response


def bounded_connection(server: web.Server) -> asyncio.BaseProtocol:
    """The protocol of a new connection, in the place of aiohttp's own."""
    if len(server.connections) >= MAX_CONNECTIONS:
        return _Closing()
    loop = asyncio.get_running_loop()
    connection = AdminConnection(
        server,
        loop=loop,
        keepalive_timeout=KEEPALIVE_SECONDS,
        access_log=None,  # type: ignore[arg-type]  # which is what its documentation says
        auto_decompress=False,
    )
    connection.silence = loop.call_later(FIRST_REQUEST_SECONDS, _end, connection)
    return connection


def _end(connection: AdminConnection) -> None:
    if connection.transport is not None:
        connection.transport.abort()


class _Closing(asyncio.Protocol):
    """Ends a connection as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
