"""Requests for streams. Front-ends ask a `StreamSource`, which gives a stream, now or when the link is up.

    front-end -> Dispatcher (rules: which route?) -> Exits (which exit?) -> Client -> a stream of its session
                                                  -> Direct              -> a DirectStream

A StreamRequest stays with its stream as its label. It tells later what the stream is for, and it is made again at
another exit when its exit fell silent before it had answered, if nothing was sent on its stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from ..address import Destination
from ..errors import StreamReason
from ..outbound.bytestream import LinkStream, OriginStream
from ..rules.engine import Decision
from ..session.retention import SlotPool
from ..session.streams import AnyStream, Stream, StreamHandler
from ..session.wire import StreamProtocol

NOWHERE: Final = Destination("0.0.0.0", 0)
"""The destination of a stream whose destinations come later, or that has none."""

type Begin = Callable[[AnyStream], None]
"""Gets the stream before anything is called on its handler."""


class Early(Enum):
    """Whether a front goes on before the exit has answered. None does so before its stream has begun, on a link that is
    up or opens, so what this side knows itself is said precisely."""

    NEVER = 0
    AS_CONFIGURED = 1
    """It tells its application that the target is connected: as `connect` in the configuration says."""
    ALWAYS = 2
    """It tells nobody anything, and what it sends may be sent again: a request of HTTP that can be repeated."""


class StreamRequest:
    """One requested stream. `exit` is the name of the only exit that may serve it, or "". `decision` is what the rules
    said, None for a stream of the program's own. `since` is by time.monotonic. `wait_until` is by the loop's time: when
    it is refused if there is no link yet, None while it does not wait for one. `answered`: the application was told
    that the target is connected before the exit had said so."""

    __slots__ = (
        "answered", "begin", "decision", "destination", "early", "exit", "handler", "protocol", "since", "wait_until",
    )  # fmt: skip

    def __init__(
        self,
        protocol: StreamProtocol,
        destination: Destination,
        handler: StreamHandler,
        begin: Begin,
        exit: str = "",
        decision: Decision | None = None,
        early: Early = Early.NEVER,
    ) -> None:
        self.protocol = protocol
        self.destination = destination
        self.handler = handler
        self.begin = begin
        self.exit = exit
        self.decision = decision
        self.early = early
        self.answered = False
        self.since = time.monotonic()
        self.wait_until: float | None = None

    def leave(self, stream: Stream) -> None:
        """Give `stream` up. What becomes of the request is told to whoever handles the stream now."""
        if stream.handler is not self.handler:
            self.handler, self.begin = stream.handler, stream.handler.moved
        stream.reset(StreamReason.CANCELLED)


class ClientObserver:
    """What a client tells the one that owns it: Exits. These defaults are for a client that is the only one."""

    def opens(self) -> None:
        """Streams may be requested at an exit that has not said yet whether it lets this client in."""

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
        called without the other, and before this returns. Before either, `handler.expected` may be called, as the
        configuration says (Early.AS_CONFIGURED)."""

    async def open(self, destination: Destination, early: Early = Early.NEVER) -> OriginStream:
        """A TCP stream to `destination`, within a bounded time: opened, or so `early` that it may still be reset with
        the reason for which it was refused. Raises StreamRefused."""


async def opened(
    start: Callable[[StreamRequest], None],
    protocol: StreamProtocol,
    destination: Destination,
    exit: str = "",
    decision: Decision | None = None,
    early: Early = Early.NEVER,
) -> OriginStream:
    """The stream that `start` gives, as something to await. Raises StreamRefused."""
    link = LinkStream()
    start(StreamRequest(protocol, destination, link, link.begin, exit, decision, early))
    try:
        await link.wait_opened()
    except asyncio.CancelledError:
        link.give_up()
        raise
    return link
