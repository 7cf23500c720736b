"""The client's side of the HTTP proxy: its connection, and the h11 state of its messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h11

from ..errors import StreamReason, StreamReset
from ..outbound.bytestream import ByteStream
from ..outbound.http_reader import HttpReader
from ..session.turns import TurnBudget


class ClientGone(Exception):
    """The client's connection was reset, or must be reset because its response was cut."""

    def __init__(self, reason: StreamReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class HttpClient:
    """One connection of a client."""

    def __init__(self, stream: ByteStream, turns: TurnBudget) -> None:
        self._stream = stream
        self.reader = HttpReader(stream, h11.SERVER, turns)
        self.withholds = False
        """Whether it waits for a 100 before it sends the body of its request."""

    @property
    def http(self) -> h11.Connection:
        return self.reader.http

    async def receive[T](self, step: Callable[[], Awaitable[T]]) -> T:
        """One step of `reader`. Raises ClientGone."""
        try:
            return await step()
        except StreamReset as reset:
            raise ClientGone(reset.reason) from None

    async def write(self, data: bytes) -> None:
        """Raises ClientGone."""
        try:
            await self._stream.write(data)
        except StreamReset as reset:
            raise ClientGone(reset.reason) from None
