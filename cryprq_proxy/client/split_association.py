"""A UDP association whose datagrams take different routes: one stream for each route that a rule has named so far.

    application -> send_datagram -> rules: which route? -> the stream of that route, requested for its first datagram
                <- handler       <-                   <- from whichever it comes

A route that is refused or breaks is forgotten: the next datagram for it tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..address import Destination
from ..errors import LocalError, StreamReason
from ..rules.engine import Decision
from ..rules.syntax import RuleAction, Verdict
from ..session.streams import AnyStream, Half, StreamHandler
from ..session.wire import StreamProtocol
from .requests import NOWHERE, StreamRequest

MAX_EARLY: Final = 16
"""Datagrams of one route that may wait until it is open; more are dropped."""


class DatagramsOnly:
    """The part of AnyStream that belongs to bytes, for a stream of datagrams."""

    handler: StreamHandler
    send_half = Half.OPEN
    receive_half = Half.OPEN
    frame_limit = 0

    def request_room(self) -> int:
        return 0

    def wait_for_turn(self) -> None:
        """There is nothing to take turns at."""

    def waits(self) -> bool:
        return False

    def consumed(self, size: int) -> None:
        """Datagrams have no window."""

    def progress(self) -> int:
        return 0

    def finish(self) -> None:
        """There is no half-close."""

    def send(self, data: bytes | memoryview) -> None:
        raise LocalError("bytes were sent on a stream of datagrams")

    def send_slot(self, slot: memoryview, size: int) -> None:
        self.send(slot)


class SplitAssociation(DatagramsOnly):
    """The stream of an association, for its handler. `decide` chooses the route of a datagram, `start` requests
    a stream for a route, and `blocked` is called for the first datagram that each rule forbids."""

    def __init__(
        self,
        handler: StreamHandler,
        decide: Callable[[Destination], Decision],
        start: Callable[[StreamRequest], None],
        blocked: Callable[[], None],
    ) -> None:
        self.handler = handler
        self._decide = decide
        self._start = start
        self._blocked = blocked
        self._blocking: set[int] = set()
        self._routes: dict[RuleAction, _DatagramRoute] = {}

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        decision = self._decide(destination)
        if decision.action.verdict is Verdict.BLOCK:
            if decision.index not in self._blocking:
                self._blocking.add(decision.index)
                self._blocked()
            return
        route = self._routes.get(decision.action)
        if route is None:
            route = self._routes[decision.action] = _DatagramRoute(self, decision.action)
            self._start(
                StreamRequest(StreamProtocol.UDP, NOWHERE, route, route.begin, decision.action.exit, decision)
            )
        route.send(destination, payload)

    def reset(self, reason: StreamReason) -> None:
        routes, self._routes = self._routes, {}
        for route in routes.values():
            route.reset_stream(reason)

    def forget(self, route: _DatagramRoute) -> None:
        """The stream of `route` has ended."""
        if self._routes.get(route.action) is route:
            del self._routes[route.action]


class _DatagramRoute(StreamHandler):
    """Handler of the stream of one route."""

    def __init__(self, association: SplitAssociation, action: RuleAction) -> None:
        self._association = association
        self.action = action
        self._stream: AnyStream | None = None
        self._early: list[tuple[Destination, bytes]] | None = []
        self._reset: StreamReason | None = None

    def begin(self, stream: AnyStream) -> None:
        self._stream = stream
        if self._reset is not None:
            stream.reset(self._reset)

    def send(self, destination: Destination, payload: bytes | memoryview) -> None:
        if self._early is None:
            if self._stream is not None:
                self._stream.send_datagram(destination, payload)
        elif len(self._early) < MAX_EARLY:
            self._early.append((destination, bytes(payload)))

    def reset_stream(self, reason: StreamReason) -> None:
        """The application is gone."""
        self._reset = reason
        if self._stream is not None:
            self._stream.reset(reason)

    # --- handler ---------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        early, self._early = self._early, None
        if self._stream is not None:
            for destination, payload in early or ():
                self._stream.send_datagram(destination, payload)

    def refused(self, reason: StreamReason) -> None:
        self._association.forget(self)

    def reset(self, reason: StreamReason) -> None:
        self._association.forget(self)

    def eof_received(self) -> None:
        self.reset_stream(StreamReason.CANCELLED)
        self._association.forget(self)

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        if self._reset is None:
            self._association.handler.datagram_received(destination, payload)
