"""The admin server: the dashboard and what it asks, the PAC file, the metrics. At the exit the metrics alone.

    GET  /                  the page (page.py)              POST /api/streams/close   {"id": "home/17"}
    GET  /api/status        as `status --json`              POST /api/exit            {"name": "home"} or "auto"
    GET  /api/streams       what is open                    POST /api/reload          {}
    GET  /api/events        both, live (events.py)
    GET  /proxy.pac         for browsers                    GET  /metrics             for Prometheus (metrics.py)
                                                            GET  /healthz             "ok", while the process answers

guard.py checks each request first. Everything that a stranger can make grow has a bound: connections, the time to the
first request, headers, bodies, listeners, and how many requests are answered in one turn of the loop: one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from ..address import Destination
from ..base.accept_loop import Acceptor, protocol_acceptor
from ..base.text import to_json
from ..errors import CryprqError
from ..process.actions import Actions
from ..process.answers import OneATurn, SharedAnswer
from ..rules.pac.script import PAC_TYPE
from ..status import StatusSource
from .connections import AdminConnection, bounded_connection
from .events import Events
from .guard import Asked, RequestGuard
from .metrics import Exposition
from .page import NOTHING, dashboard, etag

BACKLOG: Final = 64
MAX_BODY: Final = 4096
BODY_SECONDS: Final = 10.0
STOP_SECONDS: Final = 1.0

_SECURE: Final = {
    "Content-Security-Policy": NOTHING,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer that does not set them itself."""
_QUIET: Final = frozenset({"/", "/healthz"})
"""Paths that tell nothing of the running program: the page is empty before it asks for data."""

type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


class _Close(msgspec.Struct, forbid_unknown_fields=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Choose(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class HttpServer:
    """One listening address with its guard; derived classes say what is served there."""

    def __init__(self, listen: Destination, token: str) -> None:
        self._configured = listen
        self._token = token
        self._turns = OneATurn()
        self._guard: RequestGuard | None = None
        self._runner: web.AppRunner | None = None
        self._acceptor: Acceptor | None = None

    def _routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    async def start(self) -> Destination:
        """Listen; the address as bound. Raises OSError."""
        application = web.Application(middlewares=[self._guarded], client_max_size=MAX_BODY)
        application.add_routes(self._routes())
        application.on_response_prepare.append(_secure)
        self._runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=STOP_SECONDS)
        await self._runner.setup()
        assert self._runner.server is not None
        connections = partial(bounded_connection, self._runner.server)
        host, port = self._configured
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError:
            await self._runner.cleanup()
            raise
        bound = Destination(*listener.getsockname()[:2])
        self._guard = RequestGuard(bound, self._configured, self._token)
        self._acceptor = protocol_acceptor(asyncio.get_running_loop(), listener, connections)
        self._acceptor.start()
        return bound

    async def stop(self) -> None:
        """Close the listener and all connections. Does nothing if not started."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._guard is None:  # the moment between listening and knowing the port
            raise web.HTTPServiceUnavailable(text="not ready yet\n")
        if isinstance(request.protocol, AdminConnection):
            request.protocol.silence.cancel()
        # Also for what is refused, of which one connection sends a hundred in a packet.
        await self._turns.turn()
        asked = Asked(
            target=request.raw_path,
            hosts=tuple(request.headers.getall("Host", ())),
            headers=request.headers,
            changes=request.method not in ("GET", "HEAD"),
            tells=request.path not in _QUIET,
        )
        refusal = self._guard.refuse(asked)
        if refusal is not None:
            _log.debug("the admin server refused %s %s: %s", request.method, request.path[:100], refusal.text)
            return _refused(refusal.status, refusal.text)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refused(error.status, error.text or error.reason, allow=error.headers.get("Allow"))
        except CryprqError as error:
            return _refused(409, str(error))


class MetricsServer(HttpServer):
    """At the exit: `/metrics` and `/healthz`."""

    def __init__(self, listen: Destination, status: StatusSource, token: str) -> None:
        super().__init__(listen, token)
        self._told = SharedAnswer(status)
        self._exposition = Exposition()

    def _routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self._metrics), web.get("/healthz", _healthz)]

    async def _metrics(self, request: web.Request) -> web.Response:
        status = await self._told.get()
        await self._turns.turn()
        body, kind = self._exposition.write(status, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})


class AdminServer(MetricsServer):
    """At the client: everything."""

    def __init__(
        self, listen: Destination, actions: Actions, token: str, events: Events | None = None
    ) -> None:
        super().__init__(listen, actions.status, token)
        self._actions = actions
        self._events = Events(actions) if events is None else events

    def _routes(self) -> list[web.RouteDef]:
        return [
            *super()._routes(),
            web.get("/", _page),
            web.get("/api/status", self._tell_status),
            web.get("/api/streams", self._tell_streams),
            web.get("/api/events", self._events.serve, allow_head=False),
            web.get("/proxy.pac", self._pac),
            web.post("/api/streams/close", self._close),
            web.post("/api/exit", self._choose),
            web.post("/api/reload", self._reload),
        ]

    async def start(self) -> Destination:
        bound = await super().start()
        self._events.start()
        return bound

    async def stop(self) -> None:
        self._events.stop()
        await super().stop()

    async def _tell_status(self, _: web.Request) -> web.Response:
        status = await self._told.get()
        await self._turns.turn()
        return _json(status)

    async def _tell_streams(self, _: web.Request) -> web.Response:
        return _json(self._actions.streams())

    async def _pac(self, request: web.Request) -> web.Response:
        body = self._actions.pac().encode()
        headers = {"Content-Type": PAC_TYPE, "Cache-Control": "no-cache"}
        response = _with_etag(request, body, etag(body), headers)
        # Programs ask for it once, and many leave the connection open.
        response.force_close()
        return response

    async def _close(self, request: web.Request) -> web.Response:
        wanted = await _read(request, _Close)
        if not self._actions.close(wanted.id):
            return _refused(404, "that stream is no longer open")
        return _json({"closed": wanted.id})

    async def _choose(self, request: web.Request) -> web.Response:
        wanted = await _read(request, _Choose)
        self._actions.choose_exit(wanted.name)
        return _json({"exit": wanted.name})

    async def _reload(self, request: web.Request) -> web.Response:
        await _read(request, _Nothing)
        return _json({"reloaded": await self._actions.reload()})


async def _page(request: web.Request) -> web.Response:
    page = dashboard()
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": page.policy,
        "Cache-Control": "no-cache",
    }
    return _with_etag(request, page.body, page.etag, headers)


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _read[T](request: web.Request, kind: type[T]) -> T:
    """The body as JSON of that shape. Raises HTTPException."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return msgspec.json.decode(await request.read(), type=kind)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not come in time") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise web.HTTPBadRequest(text="the body is not what this address takes") from None


def _with_etag(request: web.Request, body: bytes, tag: str, headers: Mapping[str, str]) -> web.Response:
    """RFC 9110 section 13.1.2, with the weak comparison that it asks for."""
    known = {part.strip().removeprefix("W/") for part in request.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return web.Response(status=304, headers={**headers, "ETag": tag})
    return web.Response(body=body, headers={**headers, "ETag": tag})


def _json(value: Any) -> web.Response:
    return web.Response(body=to_json(value), content_type="application/json")


def _refused(status: int, text: str, *, allow: str | None = None) -> web.Response:
    """One sentence, as JSON; it repeats nothing of the request."""
    response = web.Response(
        status=status, body=to_json({"error": text.strip()}), content_type="application/json"
    )
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if allow is not None:
        response.headers["Allow"] = allow
    return response


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _SECURE.items():
        response.headers.setdefault(name, value)
    response.headers.popall("Server", None)
