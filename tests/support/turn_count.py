"""Turns of the event loop, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class TurnCount:
    """`now` is the number of the present turn. The loop never waits meanwhile."""

    def __init__(self) -> None:
        self.now = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self.now += 1
        self._next = self._loop.call_soon(self._begin)

    def stop(self) -> None:
        self._next.cancel()


@contextmanager
def counted_turns() -> Iterator[TurnCount]:
    count = TurnCount()
    try:
        yield count
    finally:
        count.stop()
