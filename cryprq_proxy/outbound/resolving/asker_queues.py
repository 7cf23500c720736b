"""Calls that wait, in a queue for each asker. The askers have turns, so none waits for another one's whole queue."""

from __future__ import annotations

from asyncio import Future
from collections import OrderedDict
from collections.abc import Iterator


class AskerQueues[Result]:
    """`len` is the number of calls. Iterating gives the askers with calls, that with the next turn first."""

    __slots__ = ("_queues", "_size")

    def __init__(self) -> None:
        self._queues: OrderedDict[str, OrderedDict[Future[Result], None]] = OrderedDict()
        """Never an empty one."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def calls_of(self, asker: str) -> int:
        return len(self._queues.get(asker, ()))

    def add(self, asker: str, call: Future[Result]) -> None:
        self._queues.setdefault(asker, OrderedDict())[call] = None
        self._size += 1

    def pop(self, asker: str) -> Future[Result]:
        """Remove the oldest call of `asker`, who keeps the turn. There is one."""
        call, _ = self._queues[asker].popitem(last=False)
        self._removed(asker)
        return call

    def pass_turn(self, asker: str) -> None:
        """Let the others have their turns before `asker`, who may have no more calls."""
        if asker in self._queues:
            self._queues.move_to_end(asker)

    def discard(self, asker: str, call: Future[Result]) -> None:
        """Remove `call`, if it is still here."""
        queue = self._queues.get(asker)
        if queue is not None and call in queue:
            del queue[call]
            self._removed(asker)

    def _removed(self, asker: str) -> None:
        self._size -= 1
        if not self._queues[asker]:
            del self._queues[asker]
