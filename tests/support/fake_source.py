"""A StreamSource that gives fake streams, and answers when the test says so."""

from __future__ import annotations

from dataclasses import dataclass

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import Begin, Early, StreamRequest, opened
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.bytestream import OriginStream
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.session.streams import StreamHandler
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_streams import FakeStream


@dataclass
class Asked:
    """One request."""

    protocol: StreamProtocol
    destination: Destination
    stream: FakeStream

    def expect(self) -> None:
        """As the client does that takes the target as reached."""
        self.stream.handler.expected()

    def open(self) -> None:
        """As the exit does."""
        self.stream.handler.opened()

    def refuse(self, reason: StreamReason) -> None:
        self.stream.handler.refused(reason)


class FakeSource:
    """`asked` has the requests in their order. With `at_once` set, each is refused before `request` returns."""

    def __init__(self, at_once: StreamReason | None = None) -> None:
        self.slots = SlotPool()
        self.asked: list[Asked] = []
        self.at_once = at_once

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, begin: Begin
    ) -> None:
        if self.at_once is not None:
            handler.refused(self.at_once)
            return
        stream = FakeStream(self.slots)
        stream.handler = handler
        self.asked.append(Asked(protocol, destination, stream))
        begin(stream)

    def start(self, request: StreamRequest) -> None:
        self.request(request.protocol, request.destination, request.handler, request.begin)

    async def open(self, destination: Destination, early: Early = Early.NEVER) -> OriginStream:
        return await opened(self.start, StreamProtocol.TCP, destination, early=early)


class LateSource(FakeSource):
    """Gives no stream: each of `begin` takes one from the test. `handlers` are those of the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.begin: list[Begin] = []
        self.handlers: list[StreamHandler] = []

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, begin: Begin
    ) -> None:
        self.begin.append(begin)
        self.handlers.append(handler)
