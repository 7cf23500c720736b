"""Requests for streams. Front-ends ask a `StreamSource`, which gives a stream, now or when the link is up.

    front-end -> Dispatcher (rules: which route?) -> Exits (which exit?) -> Client -> a stream of its session
                                                  -> Direct              -> a DirectStream

A StreamRequest stays with its stream as its label. It tells later what the stream is for, and it is made again at
another exit when its exit fell silent before it had answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from ..address import Destination
from ..outbound.bytestream import LinkStream, OriginStream
from ..rules.engine import Decision
from ..session.sendlog import SlotPool
from ..session.streams import AnyStream, StreamHandler
from ..session.wire import StreamProtocol

NOWHERE: Final = Destination("0.0.0.0", 0)
"""The destination of a stream whose destinations come later, or that has none."""

type Begin = Callable[[AnyStream], None]
"""Gets the stream before anything is called on its handler."""


class StreamRequest:
    """One requested stream. `exit` is the name of the only exit that may serve it, or "". `decision` is what the rules
    said, None for a stream of the program's own. `since` is by time.monotonic."""

    __slots__ = ("begin", "decision", "destination", "exit", "handler", "protocol", "since")

    def __init__(
        self,
        protocol: StreamProtocol,
        destination: Destination,
        handler: StreamHandler,
        begin: Begin,
        exit: str = "",
        decision: Decision | None = None,
    ) -> None:
        self.protocol = protocol
        self.destination = destination
        self.handler = handler
        self.begin = begin
        self.exit = exit
        self.decision = decision
        self.since = time.monotonic()


class ClientObserver:
    """What a client tells the one that owns it: Exits. These defaults are for a client that is the only one."""

    def changed(self) -> None:
        """The link came or went, the exit is about to shut down, or it has begun or ceased to carry packets."""

    def take_over(self, request: StreamRequest) -> bool:
        """The exit will not serve `request` because it is about to stop. True if it was made again, at whichever exit
        comes first."""
        return False


NO_OBSERVER: Final = ClientObserver()


class StreamSource(Protocol):
    """What gives streams to the front-ends."""

    @property
    def slots(self) -> SlotPool:
        """The buffers for what is sent on them."""

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, begin: Begin
    ) -> None:
        """Ask for a stream. `begin` gets it, and then `handler.opened` is called, or `handler.refused`; that may be
        called without the other, and before this returns."""

    async def open(self, destination: Destination) -> OriginStream:
        """A TCP stream to `destination`, within a bounded time. Raises StreamRefused."""


async def opened(
    start: Callable[[StreamRequest], None],
    protocol: StreamProtocol,
    destination: Destination,
    exit: str = "",
    decision: Decision | None = None,
) -> OriginStream:
    """The stream that `start` gives, as something to await. Raises StreamRefused."""
    link = LinkStream()
    start(StreamRequest(protocol, destination, link, link.begin, exit, decision))
    try:
        await link.wait_opened()
    except asyncio.CancelledError:
        link.give_up()
        raise
    return link
