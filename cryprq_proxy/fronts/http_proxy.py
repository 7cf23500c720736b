"""The HTTP/1.1 proxy for one client connection: a driver around two h11 connections.

    client ──bytes──> h11 SERVER ──request──> h11 CLIENT ──bytes──> stream to the origin
           <─bytes──            <─response──            <─bytes──

`HttpProxy.run` serves one request after another, each by an exchange (http_exchange.py). http_reader.py gives h11 no
more at once than is little work.

If an exchange ends badly and no byte of the response was sent, the client gets an error page. Else its connection is
aborted, so that it cannot take the response for complete.

After a CONNECT or an upgrade the bytes are no longer HTTP. Then `run` returns an `HttpTunnel` and ends.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import h11

from ..address import Destination
from ..client.requests import Early
from ..errors import DirectRefused, LocalError, StreamBlocked, StreamReason, StreamRefused, StreamReset
from ..outbound.bytestream import ByteStream, OriginStream
from ..session.turns import TurnBudget
from .credentials import Credentials
from .http_client import ClientGone, HttpClient
from .http_exchange import ClientBroke, OriginFailed, exchange
from .http_failures import RequestRefused, blocked, error_page, refusal_for
from .http_messages import (
    Target,
    check_authorization,
    check_request,
    forward_response,
    has_body,
    is_repeatable,
    parse_target,
)
from .http_origin import Origin, TcpSource
from .own_page import OWN_PAGE, TellFacts, form, head, no_facts, opens_page

_PSEUDONYM = re.compile("[A-Za-z0-9._-]+")

_OWN_HOSTS = ([OWN_PAGE.host.encode()], [str(OWN_PAGE).encode()])
"""The values of Host."""

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpTunnel:
    """A connection that no longer speaks HTTP. The caller owns `stream` from here on and relays raw bytes."""

    stream: OriginStream
    to_client: bytes
    """To send to the client before anything from `stream`."""
    early: bytes
    """To send into `stream` before anything from the client."""


class HttpProxy:
    """Serves the requests of one client connection.

    Times are in seconds. `header_timeout` bounds the time for a request's header section. `keepalive_timeout` bounds
    the time of a kept connection without a request, and of an upload after its complete response. `via` is this
    proxy's name for the Via field; without it there is no such field. All HTTP connections have the one budget `turns`.
    `facts` are told on our own page (own_page.py); `at_page`: the client takes us for the server of that page. If
    `named` the proxy was asked for it by its name, else that was resolved here, in system-wide mode.

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
        facts: TellFacts = no_facts,
        at_page: bool = False,
        named: bool = True,
    ) -> None:
        if via is not None and not _PSEUDONYM.fullmatch(via):
            raise LocalError(f"{via!r} cannot be a proxy's name in a Via field")
        self._client = HttpClient(client, turns)
        self._source = source
        self._credentials = credentials
        self._via = via
        self._header_timeout = header_timeout
        self._keepalive_timeout = keepalive_timeout
        self._turns = turns
        self._facts = facts
        self._at_page = at_page
        self._named = named
        self._reader = self._client.reader
        self.serving = False
        """Whether a request is being answered, so that the end of the connection is not in order."""
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
        except ClientGone as gone:
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
                    await self._client.receive(reader.read)
        except TimeoutError:
            return None
        try:
            async with asyncio.timeout(self._header_timeout):
                event = await self._client.receive(reader.head)
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
            if self._at_page:
                await self._serve_page(request)
                return None
            target = parse_target(request)
            if self._credentials is not None:
                check_authorization(request, self._credentials)
            if (target.destination, target.path) == (OWN_PAGE, b"/") and opens_page(request):
                await self._tell(request)
                return None
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
                switched = await exchange(
                    self._client, kept, request, target, via=self._via, patience=self._keepalive_timeout
                )
            except OriginFailed as failure:
                self._drop_origin()
                if self._http.our_state is not h11.SEND_RESPONSE:
                    raise ClientGone(StreamReason.CONNECTION_RESET) from None
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
            except ClientBroke as error:
                self._drop_origin()
                if self._http.our_state is h11.SEND_RESPONSE:
                    raise RequestRefused(400, str(error), close=True) from None
                if self._http.our_state is h11.SEND_BODY:
                    raise ClientGone(StreamReason.CONNECTION_RESET) from None
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

    # 3. Our own page

    async def _serve_page(self, request: h11.Request) -> None:
        """Answer as the server of the page. What may have come from a page of the web gets a reset, where the name of
        no host gets a refusal."""
        host = [value.lower() for name, value in request.headers if name == b"host"]
        if request.target != b"/" or host not in _OWN_HOSTS or not opens_page(request):
            await self._miss()
            raise ClientGone(StreamReason.CONNECTION_RESET)
        await self._tell(request)

    async def _tell(self, request: h11.Request) -> None:
        await self._miss()
        http, written = self._http, form(request)
        output = http.send(head(written))
        if request.method != b"HEAD":
            await self._client.write(output + http.send(h11.Data(data=written.beginning.encode())))
            output = http.send(h11.Data(data=written.end(await self._facts(), self._named).encode()))
        await self._client.write(output + http.send(h11.EndOfMessage()))

    async def _miss(self) -> None:
        """Wait as long as for a name that does not exist. In system-wide mode one that does not is answered at once."""
        if not self._named:
            return
        try:
            stream = await self._source.open(OWN_PAGE, Early.NEVER)
        except (StreamRefused, StreamReset):
            return
        stream.abort()

    # 4. Errors and the end

    async def _refuse(self, refusal: RequestRefused, *, head: bool = False) -> None:
        """Send an error page (without body for HEAD). The connection goes on only if the request is complete."""
        http = self._http
        close = refusal.close or http.their_state in (h11.SEND_BODY, h11.ERROR)
        response, body = error_page(refusal, close=close)
        await self._answer(response, b"" if head else body)

    async def _answer(self, response: h11.Response, body: bytes) -> None:
        output = self._http.send(response)
        if body:
            output += self._http.send(h11.Data(data=body))
        await self._client.write(output + self._http.send(h11.EndOfMessage()))

    def _drop_origin(self) -> None:
        if self._origin is not None:
            self._origin.stream.abort()
            self._origin = None
