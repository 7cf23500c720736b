"""A bounded number of slots that askers share, so that no asker keeps the others waiting.

An asker gets a slot at once if fewer slots are in its hands than are free. So one asker alone gets half of them, a
second one half of the rest, and one that holds none finds a free one nearly always. (Dynamic thresholds: Choudhury and
Hahne, IEEE/ACM Transactions on Networking 6(2), 1998.) Who waits does so in the queue of its asker, and the askers take
turns.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from ...errors import StreamReason, StreamRefused
from .asker_queues import AskerQueues


class FairSlots:
    """`slots` in all; for each asker at most `waiting_each` calls wait, and at most `waiting` for all of them."""

    def __init__(self, slots: int, *, waiting_each: int, waiting: int) -> None:
        self._free = slots
        self._held: Counter[str] = Counter()
        self._queues: AskerQueues[None] = AskerQueues()
        self._waiting_each = waiting_each
        self._most_waiting = waiting
        self._closed = False

    @property
    def in_use(self) -> int:
        return sum(self._held.values())

    @property
    def waiting(self) -> int:
        return len(self._queues)

    async def take(self, asker: str) -> None:
        """Take a slot for `asker`, and give it back later. Raises StreamRefused with LIMIT or SHUTTING_DOWN."""
        if self._closed:
            raise StreamRefused(StreamReason.SHUTTING_DOWN)
        queued = self._queues.calls_of(asker)
        if not queued and self._may_take(asker):
            self._grant(asker)
            return
        if queued >= self._waiting_each or self.waiting >= self._most_waiting:
            raise StreamRefused(StreamReason.LIMIT)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.add(asker, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queues.discard(asker, turn)
            elif turn.exception() is None:
                # The turn came in the same moment as the cancellation.
                self.give_back(asker)
            raise

    def give_back(self, asker: str) -> None:
        """Give back a slot that `take` gave to `asker`; those that may have it now are woken."""
        self._held[asker] -= 1
        if not self._held[asker]:
            del self._held[asker]
        self._free += 1
        while (following := next(filter(self._may_take, self._queues), None)) is not None:
            turn = self._queues.pop(following)
            # One that is being cancelled stands here until its task runs.
            if not turn.done():
                self._grant(following)
                turn.set_result(None)
                self._queues.pass_turn(following)

    def close(self) -> None:
        """Refuse who waits, and all others from now on."""
        self._closed = True
        for asker in list(self._queues):
            while self._queues.calls_of(asker):
                turn = self._queues.pop(asker)
                if not turn.done():
                    turn.set_exception(StreamRefused(StreamReason.SHUTTING_DOWN))

    def _may_take(self, asker: str) -> bool:
        return self._held[asker] < self._free

    def _grant(self, asker: str) -> None:
        self._held[asker] += 1
        self._free -= 1
