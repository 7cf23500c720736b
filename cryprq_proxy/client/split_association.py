"""A UDP association whose datagrams go different ways: one stream for each way that a rule has named so far.

    application -> send_datagram -> rules: which way? -> the stream of that way, opened for its first datagram
                <- handler       <-                   <- from whichever it comes

A way that is refused or breaks is forgotten: the next datagram for it tries again.
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
"""Datagrams of one way that may wait until it is open; more are dropped."""


class DatagramsOnly:
    """What a stream of datagrams answers to who treats it as one of bytes."""

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

    def finish(self) -> None:
        """There is no half-close."""

    def send(self, data: bytes | memoryview) -> None:
        raise LocalError("bytes were sent on a stream of datagrams")

    def send_slot(self, slot: memoryview, size: int) -> None:
        self.send(slot)


class SplitAssociation(DatagramsOnly):
    """The stream of an association, for its handler. `decide` chooses the way of a datagram, `start` opens a way, and
    `blocked` hears of the first datagram that each rule forbids."""

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
        self._ways: dict[RuleAction, _Way] = {}

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        decision = self._decide(destination)
        if decision.action.verdict is Verdict.BLOCK:
            if decision.index not in self._blocking:
                self._blocking.add(decision.index)
                self._blocked()
            return
        way = self._ways.get(decision.action)
        if way is None:
            way = self._ways[decision.action] = _Way(self, decision.action)
            self._start(
                StreamRequest(StreamProtocol.UDP, NOWHERE, way, way.begin, decision.action.exit, decision)
            )
        way.send(destination, payload)

    def reset(self, reason: StreamReason) -> None:
        ways, self._ways = self._ways, {}
        for way in ways.values():
            way.reset_stream(reason)

    def forget(self, way: _Way) -> None:
        """It is of no use any more."""
        if self._ways.get(way.action) is way:
            del self._ways[way.action]


class _Way(StreamHandler):
    """Handler of the stream of one way."""

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
