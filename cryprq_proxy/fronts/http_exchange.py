"""One request and its response through the HTTP proxy, both directions at once.

`_upload` moves the request, `_download` the response. So a server may answer before it has read everything, a
100-continue passes while the client waits for it, and a client that closes early ends the exchange at once. Neither
coroutine makes a task, a future or a copy in a queue per piece. A body passes in pieces and is never collected.

Three exceptions end an exchange: ClientGone, ClientBroke and OriginFailed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import h11

from ..errors import StreamReset
from ..outbound.http_sections import MAX_HEADER
from .http_client import ClientGone, HttpClient
from .http_failures import RequestRefused, refusal_for
from .http_messages import Target, closes, ends_with_head, forward_request, forward_response, relay_body
from .http_origin import Origin


class ClientBroke(Exception):
    """The client's request body is malformed or was cut short."""


class OriginFailed(Exception):
    """The stream to the origin ended badly."""

    def __init__(self, refusal: RequestRefused, *, silent: bool) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.silent = silent
        """Whether no byte of a response was received."""


async def exchange(
    client: HttpClient,
    origin: Origin,
    request: h11.Request,
    target: Target,
    *,
    via: str | None,
    patience: float,
) -> h11.InformationalResponse | None:
    """Move the request and its response. Returns the 101 if the origin switches protocols.

    `via` is the proxy's name for the Via field. An upload goes on for `patience` seconds after its complete
    response. Raises ClientGone, ClientBroke, OriginFailed.
    """
    uploaded = asyncio.Event()
    origin.begin()
    client.withholds = client.http.they_are_waiting_for_100_continue
    # Before any read: an origin that sends first must not confuse h11.
    head = origin.http.send(forward_request(request, target, via))
    try:
        async with asyncio.TaskGroup() as group:
            upload = group.create_task(_upload(client, origin, head, uploaded))
            switched = await _download(client, origin, request, via)
            if switched is not None:
                # RFC 9110 section 7.8: the client ends its request before it speaks the new protocol.
                await uploaded.wait()
            elif origin.http.their_state is h11.DONE and not client.withholds:
                # The origin answered early but keeps the connection, so it reads the rest of the body.
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await uploaded.wait()
            upload.cancel()
    except ExceptionGroup as failures:
        for kind in (ClientGone, ClientBroke, OriginFailed):
            for failure in failures.exceptions:
                if isinstance(failure, kind):
                    raise failure from None
        raise
    return switched


async def _upload(client: HttpClient, origin: Origin, output: bytes, uploaded: asyncio.Event) -> None:
    """Send the request, whose head is `output`. Then read ahead within bounds, to notice that the client closes."""
    http = client.http
    try:
        complete = False
        if http.their_state is h11.SEND_BODY:
            client.reader.feed()
        while True:
            if http.their_state is h11.SEND_BODY:
                piece, complete = relay_body(http, origin.http)
                if piece:
                    client.withholds = False
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
            await client.receive(client.reader.receive)
    except h11.RemoteProtocolError:
        raise ClientBroke("The body of the request is malformed or ends too early.") from None
    except StreamReset:
        return  # `_download` gets the same error, and may first have a response to finish.
    finally:
        uploaded.set()
    while not client.reader.ended and len(client.reader.rest) <= MAX_HEADER:
        await client.receive(client.reader.read)


async def _download(
    client: HttpClient, origin: Origin, request: h11.Request, via: str | None
) -> h11.InformationalResponse | None:
    """Pass the response on. Returns the 101 if there is one."""
    http = client.http
    modern = request.http_version != b"1.0"
    try:
        while isinstance(response := await origin.head(), h11.InformationalResponse):
            if response.status_code == 101:
                return response
            if response.status_code == 100:
                client.withholds = False
            if modern:
                await client.write(http.send(forward_response(response, via)))
        # Tell a client that still sends: its body will not be read. One that withholds its body may send another
        # request instead, which must not be read as that body (RFC 9110 section 10.1.1).
        ignored = http.their_state is h11.SEND_BODY and (client.withholds or closes(response))
        output = http.send(forward_response(response, via, close=ignored))
        if not ends_with_head(request, response):
            # So that the head and the beginning of the body leave as one piece.
            origin.reader.feed()
        while True:
            piece, complete = relay_body(origin.http, http, trailers=modern)
            if output or piece:
                await client.write(output + piece)
                output = b""
            if complete:
                break
            await origin.reader.receive()
    except StreamReset as reset:
        raise OriginFailed(refusal_for(reset.reason, origin.destination), silent=origin.silent) from None
    except h11.RemoteProtocolError:
        text = "The target's answer is incomplete or invalid HTTP."
        error = "http_response_incomplete" if origin.silent else "http_protocol_error"
        raise OriginFailed(RequestRefused(502, text, error), silent=origin.silent) from None
    return None
