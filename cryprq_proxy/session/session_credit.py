"""The credit of a whole session: bytes of all streams of one direction together, each counted up to its highest offset.

It is what bounds the memory of the receiver in one number, however many streams the sender has. An honest sender does
not reach it: a receiver gives twice what the windows of the streams may add up to, so that no stream waits for another
one whose handler stands still. Of each stream no more is counted here than its window and the half of it that may be
taken before that is said (`Stream.next_window`).
"""

from __future__ import annotations

from typing import Final

from ..errors import CloseReason, PeerError
from .windows import INITIAL_WINDOW

INITIAL_CREDIT: Final = 1 << 27
"""Bytes of all streams together that may be sent before the first WINDOW of the session."""
LONGEST_STEP: Final = 1 << 24
"""Bytes of new credit after which it is announced, or a quarter of the pool if that is less: so the rest is left for a
stream whose handler takes what comes, even while all other windows are full."""


class SessionCredit:
    """The receiver's side. `received` and `consumed` are sums over all streams since the session began; `announced` is
    the bound on the first."""

    __slots__ = ("_pools", "_step", "announced", "consumed", "received")

    def __init__(self, window_pool: int) -> None:
        self._pools = 2 * window_pool
        self._step = min(LONGEST_STEP, max(window_pool >> 2, 1))
        self.received = self.consumed = 0
        self.announced = INITIAL_CREDIT

    def take(self, size: int) -> None:
        """`size` new bytes came. Raises PeerError (CREDIT) if they are too many."""
        self.received += size
        if self.received > self.announced:
            raise PeerError(CloseReason.CREDIT, "the peer sent more data than the session allows")

    def next_limit(self, streams: int) -> int | None:
        """The limit to announce now with so many streams alive; None if the old one will do."""
        limit = self.consumed + self._pools + 2 * INITIAL_WINDOW * streams
        if limit - self.announced < self._step:
            return None
        self.announced = limit
        return limit
