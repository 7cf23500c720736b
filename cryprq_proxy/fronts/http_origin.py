"""The origin's side of the HTTP proxy: a stream to an origin server, and the h11 state of its messages.

A stream is kept for the next request to the same destination if both messages were complete and had one clear end.
Between requests a server may close it at any time, which ends the stream at once. A later close, while the next request
is sent, is an end before the first byte of the response (`silent`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import h11

from ..address import Destination
from ..client.requests import Early
from ..errors import StreamReset
from ..outbound.bytestream import OriginStream
from ..outbound.http_reader import HttpReader
from ..session.turns import TurnBudget
from .http_messages import has_both_framings


class TcpSource(Protocol):
    """Opens streams to targets."""

    async def open(self, destination: Destination, early: Early) -> OriginStream:
        """See StreamSource.open in client/requests.py. Raises StreamRefused."""


class Origin:
    """The stream of one server. Its owner ends it with `stream.abort`, or passes it on."""

    def __init__(self, destination: Destination, stream: OriginStream, turns: TurnBudget) -> None:
        self.destination = destination
        self.stream = stream
        self.reader = HttpReader(stream, h11.CLIENT, turns, lenient=True)
        self.http = self.reader.http
        self.asked = False
        """Whether the whole request has been sent."""
        self._clear = True
        """Whether the response has only one mark of its end."""

    @property
    def silent(self) -> bool:
        """Whether no byte was received since the last request."""
        return self.reader.silent

    def begin(self) -> None:
        """A request is going to be sent."""
        self.asked = False
        self.stream.use()

    def leave(self) -> None:
        """The client has gone. What it sent before is not to be lost, so a whole request ends in order."""
        if self.asked and self.silent:
            self.stream.leave()
        else:
            self.stream.abort()

    async def head(self) -> h11.Response | h11.InformationalResponse:
        """The next header section. Raises StreamReset, h11.RemoteProtocolError."""
        event = await self.reader.head()
        if not isinstance(event, (h11.Response, h11.InformationalResponse)):
            raise h11.RemoteProtocolError("the connection has ended")
        if not event.http_version.startswith(b"1."):
            raise h11.RemoteProtocolError("the response is not HTTP/1.x")
        self._clear = not has_both_framings(event)
        return event

    def renew(self) -> bool:
        """Prepare for another request; False if the stream cannot carry one."""
        complete = self.http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
        if not complete or not self._clear or self.reader.odd or self.reader.rest or self.reader.ended:
            return False
        if not self.stream.keep():
            return False
        self.reader.renew()
        return True

    async def is_idle(self) -> bool:
        """Whether neither bytes nor the end were received on the kept stream."""
        try:
            async with asyncio.timeout(0):
                await self.stream.read()
        except TimeoutError:
            return True
        except StreamReset:
            pass
        return False
