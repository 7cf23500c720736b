"""The HTTP/1.1 proxy for one client connection: a driver around two h11 connections.

    client ──bytes──> h11 SERVER ──request──> h11 CLIENT ──bytes──> stream to the origin
           <─bytes──            <─response──            <─bytes──

`HttpProxy.run` serves one request after another, each with two coroutines: `_upload` moves the request, `_download` the
response. So a server may answer before it has read everything, a 100-continue passes while the client waits for it, and
a client that closes early ends the exchange at once. Neither coroutine makes a task, a future or a copy in a queue per
piece. A body passes in pieces and is never collected. http_reader.py gives h11 no more at once than is little work.

Three exceptions end an exchange: `_ClientGone`, `_ClientBroke` and `_OriginFailed`. If no byte of the response was
sent, the client gets an error page. Else its connection is aborted, so that it cannot take the response for complete.

After a CONNECT or an upgrade the bytes are no longer HTTP. Then `run` returns an `HttpTunnel` and ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import h11

from ..address import Destination
from ..client.requests import Early
from ..errors import DirectRefused, LocalError, StreamBlocked, StreamReason, StreamRefused, StreamReset
from ..outbound.bytestream import ByteStream, OriginStream
from ..outbound.http_reader import HttpReader
from ..outbound.http_sections import MAX_HEADER
from ..session.turns import TurnBudget
from .credentials import Credentials
from .http_failures import RequestRefused, blocked, error_page, refusal_for
from .http_messages import (
    Target,
    check_authorization,
    check_request,
    closes,
    ends_with_head,
    forward_request,
    forward_response,
    has_body,
    is_repeatable,
    parse_target,
    relay_body,
)
from .http_origin import Origin, TcpSource

_PSEUDONYM = re.compile("[A-Za-z0-9._-]+")

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpTunnel:
    """A connection that no longer speaks HTTP. The caller owns `stream` from here on and relays raw bytes."""

    stream: OriginStream
    to_client: bytes
    """To send to the client before anything from `stream`."""
    early: bytes
    """To send into `stream` before anything from the client."""


class _ClientGone(Exception):
    """The client's connection was reset, or must be reset because its response was cut."""

    def __init__(self, reason: StreamReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class _ClientBroke(Exception):
    """The client's request body is malformed or was cut short."""


class _OriginFailed(Exception):
    """The stream to the origin ended badly."""

    def __init__(self, refusal: RequestRefused, *, silent: bool) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.silent = silent
        """Whether no byte of a response was received."""


class HttpProxy:
    """Serves the requests of one client connection.

    Times are in seconds. `header_timeout` bounds the time for a request's header section. `keepalive_timeout` bounds
    the time of a kept connection without a request, and of an upload after its complete response. `via` is this
    proxy's name for the Via field; without it there is no such field. All HTTP connections have the one budget `turns`.

    A cancelled `read` must not consume anything, neither on the client's connection nor on the streams.
    """

    def __init__(
        self,
        client: ByteStream,
        source: TcpSource,
        turns: TurnBudget,
        *,
        credentials: Credentials | None = None,
        via: str | None = None,
        header_timeout: float = 30.0,
        keepalive_timeout: float = 120.0,
    ) -> None:
        if via is not None and not _PSEUDONYM.fullmatch(via):
            raise LocalError(f"{via!r} cannot be a proxy's name in a Via field")
        self._client = client
        self._source = source
        self._credentials = credentials
        self._via = via
        self._header_timeout = header_timeout
        self._keepalive_timeout = keepalive_timeout
        self._turns = turns
        self._reader = HttpReader(client, h11.SERVER, turns)
        self.serving = False
        """Whether a request is being answered, so that the end of the connection is not in order."""
        self._withholds = False
        """Whether the client waits for a 100 before it sends the body of its request."""
        self._origin: Origin | None = None
        """The one stream that this object must end: in use, or kept for the next request."""

    async def run(self, first_bytes: bytes) -> HttpTunnel | None:
        """Serve until the client or the protocol ends it; `first_bytes` were already read from the client.

        Returns an HttpTunnel, or None at the end. After None the caller closes the client's connection, but reads on
        for a while, as the client may still send (RFC 9112 section 9.6). Raises StreamReset if the caller must abort
        that connection: the client reset it, or the response was cut. Raises nothing else but CancelledError, and
        leaves no stream open. Cancel it if the client has gone.
        """
        try:
            self._reader.keep(first_bytes)
            while (request := await self._next_request()) is not None:
                self.serving = True
                tunnel = await self._serve(request)
                if tunnel is not None:
                    return tunnel
                self.serving = False
                if self._http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    break
                # Complete requests before the client's end are still served, incomplete ones are not.
                self._reader.restart()
            return None
        except _ClientGone as gone:
            raise StreamReset(gone.reason) from None
        except asyncio.CancelledError:
            if self._origin is not None:
                self._origin.leave()
                self._origin = None
            raise
        finally:
            self._drop_origin()

    # 1. The request

    @property
    def _http(self) -> h11.Connection:
        """The h11 state of the client's connection."""
        return self._reader.http

    async def _next_request(self) -> h11.Request | None:
        """The next request; None after the last one, or if it was answered with an error."""
        reader = self._reader
        try:
            async with asyncio.timeout(self._keepalive_timeout):
                # RFC 9112 section 2.2: ignore empty lines before a request.
                while not reader.skip(b"\r\n"):
                    if reader.ended:
                        return None
                    await self._receive(reader.read)
        except TimeoutError:
            return None
        try:
            async with asyncio.timeout(self._header_timeout):
                event = await self._receive(reader.head)
        except TimeoutError:
            await self._refuse(RequestRefused(408, "The request did not arrive in time.", close=True))
            return None
        except h11.RemoteProtocolError as error:
            # h11's own texts are not used: they quote the request.
            status = error.error_status_hint
            text = {
                431: "The header fields of the request are too large.",
                501: "This transfer coding is unknown.",
            }
            await self._refuse(
                RequestRefused(status, text.get(status, "This is not a valid HTTP/1.1 request."), close=True)
            )
            return None
        return event if isinstance(event, h11.Request) else None

    async def _serve(self, request: h11.Request) -> HttpTunnel | None:
        """Answer one request."""
        try:
            if not has_body(request):
                # No body follows. So the request is complete, and the connection survives an error page.
                self._http.next_event()
            check_request(request)
            target = parse_target(request)
            if self._credentials is not None:
                check_authorization(request, self._credentials)
            if request.method == b"CONNECT":
                return await self._connect(target)
            return await self._forward(request, target)
        except RequestRefused as refusal:
            # Bytes that the client sent early for the tunnel are not HTTP.
            refusal.close |= request.method == b"CONNECT"
            await self._refuse(refusal, head=request.method == b"HEAD")
            return None

    # 2. The stream

    async def _open(self, destination: Destination, early: Early) -> OriginStream:
        try:
            return await self._source.open(destination, early)
        except StreamBlocked as failure:
            raise blocked(failure.rule, destination) from None
        except DirectRefused as failure:
            raise refusal_for(failure.reason, destination, direct=True) from None
        except (StreamRefused, StreamReset) as failure:
            raise refusal_for(failure.reason, destination) from None

    async def _connect(self, target: Target) -> HttpTunnel:
        stream = await self._open(target.destination, Early.AS_CONFIGURED)
        return HttpTunnel(stream, ESTABLISHED, self._reader.rest)

    async def _forward(self, request: h11.Request, target: Target) -> HttpTunnel | None:
        """Send the request to its origin, on the kept stream if that has the same origin and is still open.

        One that may be sent again goes before the exit has connected the origin: nobody was told anything yet, so a
        refusal is still an error page. It is sent again, once, if the exit goes away before.
        """
        repeatable = is_repeatable(request)
        early = Early.ALWAYS if repeatable else Early.NEVER
        while True:
            kept, reused = await self._origin_of(target, early)
            try:
                switched = await self._exchange(kept, request, target)
            except _OriginFailed as failure:
                self._drop_origin()
                if self._http.our_state is not h11.SEND_RESPONSE:
                    raise _ClientGone(StreamReason.CONNECTION_RESET) from None
                unserved = early is Early.ALWAYS and kept.stream.unserved
                if not failure.silent or not (reused or unserved):
                    raise failure.refusal from None
                if unserved:
                    early = Early.NEVER
                if repeatable:
                    continue
                # It is unknown whether the origin acted on it. After a close without an answer the client applies
                # its own rule for lost connections (RFC 9112 section 9.3.1).
                return None
            except _ClientBroke as error:
                self._drop_origin()
                if self._http.our_state is h11.SEND_RESPONSE:
                    raise RequestRefused(400, str(error), close=True) from None
                if self._http.our_state is h11.SEND_BODY:
                    raise _ClientGone(StreamReason.CONNECTION_RESET) from None
                return None
            if switched is not None:
                return self._switch(kept, switched)
            if not kept.renew():
                self._drop_origin()
            return None

    async def _origin_of(self, target: Target, early: Early) -> tuple[Origin, bool]:
        """The kept stream if it is one to this origin and still open, else a new one; and whether it was kept."""
        kept = self._origin
        if kept is not None and kept.destination == target.destination and await kept.is_idle():
            return kept, True
        self._drop_origin()
        stream = await self._open(target.destination, early)
        self._origin = Origin(target.destination, stream, self._turns)
        return self._origin, False

    def _switch(self, origin: Origin, switched: h11.InformationalResponse) -> HttpTunnel:
        """Hand the stream over after a 101. Raises RequestRefused."""
        if self._reader.rest:
            # Bytes from before the 101 may be requests to other origins, with the password for this proxy.
            raise RequestRefused(
                400, "More was sent before the answer to a request to switch protocols.", close=True
            )
        self._origin = None
        reply = self._http.send(forward_response(switched, self._via))
        return HttpTunnel(origin.stream, reply + origin.reader.rest, b"")

    # 3. The exchange: both directions at once

    async def _exchange(
        self, origin: Origin, request: h11.Request, target: Target
    ) -> h11.InformationalResponse | None:
        """Move the request and its response. Returns the 101 if the origin switches protocols.

        Raises _ClientGone, _ClientBroke, _OriginFailed.
        """
        uploaded = asyncio.Event()
        origin.begin()
        self._withholds = self._http.they_are_waiting_for_100_continue
        # Before any read: an origin that sends first must not confuse h11.
        head = origin.http.send(forward_request(request, target, self._via))
        try:
            async with asyncio.TaskGroup() as group:
                upload = group.create_task(self._upload(origin, head, uploaded))
                switched = await self._download(origin, request)
                if switched is not None:
                    # RFC 9110 section 7.8: the client ends its request before it speaks the new protocol.
                    await uploaded.wait()
                elif origin.http.their_state is h11.DONE and not self._withholds:
                    # The origin answered early but keeps the connection, so it reads the rest of the body.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._keepalive_timeout):
                            await uploaded.wait()
                upload.cancel()
        except ExceptionGroup as failures:
            for kind in (_ClientGone, _ClientBroke, _OriginFailed):
                for failure in failures.exceptions:
                    if isinstance(failure, kind):
                        raise failure from None
            raise
        return switched

    async def _upload(self, origin: Origin, output: bytes, uploaded: asyncio.Event) -> None:
        """Send the request, whose head is `output`. Then read ahead within bounds, to notice that the client closes."""
        http = self._http
        try:
            complete = False
            if http.their_state is h11.SEND_BODY:
                self._reader.feed()
            while True:
                if http.their_state is h11.SEND_BODY:
                    piece, complete = relay_body(http, origin.http)
                    if piece:
                        self._withholds = False
                        output += piece
                elif not complete:
                    output += origin.http.send(h11.EndOfMessage())
                    complete = True
                if output:
                    await origin.stream.write(output)
                    output = b""
                if complete:
                    origin.asked = True
                    break
                await self._receive(self._reader.receive)
        except h11.RemoteProtocolError:
            raise _ClientBroke("The body of the request is malformed or ends too early.") from None
        except StreamReset:
            return  # `_download` gets the same error, and may first have a response to finish.
        finally:
            uploaded.set()
        while not self._reader.ended and len(self._reader.rest) <= MAX_HEADER:
            await self._receive(self._reader.read)

    async def _download(self, origin: Origin, request: h11.Request) -> h11.InformationalResponse | None:
        """Pass the response on. Returns the 101 if there is one."""
        http = self._http
        modern = request.http_version != b"1.0"
        try:
            while isinstance(response := await origin.head(), h11.InformationalResponse):
                if response.status_code == 101:
                    return response
                if response.status_code == 100:
                    self._withholds = False
                if modern:
                    await self._write(http.send(forward_response(response, self._via)))
            # Tell a client that still sends: its body will not be read. One that withholds its body may send another
            # request instead, which must not be read as that body (RFC 9110 section 10.1.1).
            ignored = http.their_state is h11.SEND_BODY and (self._withholds or closes(response))
            output = http.send(forward_response(response, self._via, close=ignored))
            if not ends_with_head(request, response):
                # So that the head and the beginning of the body leave as one piece.
                origin.reader.feed()
            while True:
                piece, complete = relay_body(origin.http, http, trailers=modern)
                if output or piece:
                    await self._write(output + piece)
                    output = b""
                if complete:
                    break
                await origin.reader.receive()
        except StreamReset as reset:
            raise _OriginFailed(refusal_for(reset.reason, origin.destination), silent=origin.silent) from None
        except h11.RemoteProtocolError:
            text = "The target's answer is incomplete or invalid HTTP."
            error = "http_response_incomplete" if origin.silent else "http_protocol_error"
            raise _OriginFailed(RequestRefused(502, text, error), silent=origin.silent) from None
        return None

    # 4. Errors and the end

    async def _refuse(self, refusal: RequestRefused, *, head: bool = False) -> None:
        """Send an error page (without body for HEAD). The connection goes on only if the request is complete."""
        http = self._http
        close = refusal.close or http.their_state in (h11.SEND_BODY, h11.ERROR)
        response, body = error_page(refusal, close=close)
        output = http.send(response)
        if not head:
            output += http.send(h11.Data(data=body))
        output += http.send(h11.EndOfMessage())
        await self._write(output)

    def _drop_origin(self) -> None:
        if self._origin is not None:
            self._origin.stream.abort()
            self._origin = None

    async def _receive[T](self, step: Callable[[], Awaitable[T]]) -> T:
        """One step of the reader of the client's bytes."""
        try:
            return await step()
        except StreamReset as reset:
            raise _ClientGone(reset.reason) from None

    async def _write(self, data: bytes) -> None:
        try:
            await self._client.write(data)
        except StreamReset as reset:
            raise _ClientGone(reset.reason) from None
