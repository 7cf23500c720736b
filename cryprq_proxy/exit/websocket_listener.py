"""The exit's second entrance: WebSocket upgrades on one path, for networks and hosts that pass only HTTP.

    connection -> TLS, if it ends here -> one HTTP request -> the path? -> upgrade -> the same handshake as on TCP

listener.py accepts the connections and bounds them as it does those on TCP; here they become pipes. A request that is
no upgrade on the path gets the answer of an empty web server. aiohttp reads the request; it is loaded only for an exit
that has this entrance.

A page in a browser can open WebSockets too. It knows no key and could finish no handshake, but it is refused earlier:
browsers send the page's origin, and the client does not.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Final

from aiohttp import web

from ..address import AddressError, canonical_host
from ..base.linger import SECONDS
from ..carriers.pipe import Pipe
from ..carriers.websocket import MAX_MESSAGE, Watched, WebSocketPipe
from .lobby import PATIENCE
from .reception import Visitor
from .settings import WebSocketSettings
from .web_certificate import WebCertificate, read_certificate

CLOSE_SECONDS: Final = 0.5
"""For what is left when all links are closed."""
MAX_LINE: Final = 8_190
MAX_HEADERS: Final = 64
NEVER_DRAIN: Final = 1 << 62
"""aiohttp is not to wait for an empty transport; the carrier does."""

type Welcome = Callable[[Visitor, Pipe, str], Awaitable[None]]
"""Runs the handshake on the pipe of a visitor from that address. Closes the pipe if it fails; raises nothing."""


class UpgradeRequest(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Called by aiohttp before it sends a response; this removes the name of the server."""
        response.headers.pop("Server", None)


class _Connection(Watched, web.RequestHandler):
    """One HTTP connection. `ended` is done when it carries a link, or has failed."""

    def __init__(self, server: web.Server, visitor: Visitor, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=0,
            tcp_keepalive=False,
        )
        self.visitor = visitor
        self.host = visitor.host
        # What no proxy on TCP has named yet, a reverse proxy will. A named address is never taken for the proxy's own.
        self.behind_proxy = not visitor.prefixes
        self.ended = loop.create_future()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.end()

    def handle_error(self, *_: Any, **__: Any) -> web.StreamResponse:
        """Answer what is not HTTP like every other wrong request, without a line in the log."""
        return _not_found()


class WebEntrance:
    """Makes pipes of connections for `welcome`. `refuses` says whether no more may come from an address for now."""

    def __init__(self, settings: WebSocketSettings, welcome: Welcome, refuses: Callable[[str], bool]) -> None:
        self._settings = settings
        self._welcome = welcome
        self._refuses = refuses
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._handle, request_factory=self._request)
        self._certificate = read_certificate(settings.certificate, settings.key)

    def take_certificate(self, certificate: WebCertificate | None) -> bool:
        """For connections from now on; None: without TLS. Returns whether it is another one than before."""
        before, self._certificate = self._certificate, certificate
        return certificate != before

    def is_proxy(self, host: str) -> bool:
        """Whether a connection from `host` is that of a reverse proxy, which names the address of its client."""
        return self._settings.forwarded and ip_address(host.partition("%")[0]).is_loopback

    async def visit(self, visitor: Visitor, sock: socket.socket) -> None:
        """Take over `sock`, the visitor's connection, non-blocking. Returns when it carries a link or has failed. The
        caller bounds the time."""
        connection = _Connection(self._server, visitor, self._loop)
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": PATIENCE,
                "ssl_shutdown_timeout": SECONDS,
            }
        transport: asyncio.Transport | None = None
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: connection, sock, **tls)
            await connection.ended
        except OSError:
            _cut(transport, sock)
        except BaseException:
            _cut(transport, sock)
            raise

    async def close(self) -> None:
        """Cut all connections."""
        await self._server.shutdown(CLOSE_SECONDS)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return UpgradeRequest(message, payload, protocol, writer, task, self._loop)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, _Connection) or connection.transport is None:
            return _not_found()
        host = _client(connection.host, request) if connection.behind_proxy else connection.host
        response = web.WebSocketResponse(
            timeout=SECONDS,
            autoping=False,
            compress=False,
            max_msg_size=MAX_MESSAGE,
            writer_limit=NEVER_DRAIN,
        )
        if (
            request.path != self._settings.path
            or request.method != "GET"
            or "Origin" in request.headers
            or "Sec-WebSocket-Protocol" in request.headers
            or not response.can_prepare(request)
            or (connection.behind_proxy and self._refuses(host))
        ):
            return _not_found()
        transport = connection.transport
        await response.prepare(request)
        over = self._loop.create_future()

        async def ended() -> None:
            if not over.done():
                over.set_result(None)

        try:
            await self._welcome(
                connection.visitor, WebSocketPipe(response, transport, connection, ended), host
            )
        finally:
            connection.end()
        await over
        return response


def _client(host: str, request: web.BaseRequest) -> str:
    """The client's address behind the reverse proxy `host`: the last one that the proxy names."""
    named = request.headers.getall("X-Forwarded-For", [""])[-1].rpartition(",")[2].strip()
    try:
        client = canonical_host(named.encode("ascii"))
        ip_address(client)
    except (AddressError, ValueError):
        return host
    return client


def _not_found() -> web.Response:
    response = web.Response(status=404, text="404: Not Found")
    response.force_close()
    return response


def _cut(transport: asyncio.Transport | None, sock: socket.socket) -> None:
    if transport is None:
        sock.close()
    else:
        transport.abort()
