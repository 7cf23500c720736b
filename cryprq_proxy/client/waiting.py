"""Requests that wait for a link, each for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from .requests import StreamRequest


class WaitingRoom:
    """`refuse` is called for each request that has waited `seconds`, and for all that are left at `close`. Who comes
    again before there was a link has not more time than at first."""

    def __init__(
        self,
        seconds: float,
        refuse: Callable[[StreamRequest], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._seconds = seconds
        self._refuse = refuse
        self._loop = loop
        self._waiting: list[tuple[float, int, StreamRequest]] = []
        """A heap, by deadline and number."""
        self._numbers = count()
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: StreamRequest) -> None:
        """Let `request` wait. With no time to wait, it is refused before this returns."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        heappush(self._waiting, (self.until(request, loop), next(self._numbers), request))
        if self._sweeper is None or self._waiting[0][2] is request:
            self._sweep(loop)

    def until(self, request: StreamRequest, loop: asyncio.AbstractEventLoop) -> float:
        """When the time of `request` is over; it begins now if it has not begun."""
        if request.wait_until is None:
            request.wait_until = loop.time() + self._seconds
        return request.wait_until

    def take(self, served: Callable[[StreamRequest], bool] = lambda request: True) -> list[StreamRequest]:
        """Take out the requests for which `served` says that they need not wait any more, in their order."""
        entries = [(served(entry[2]), entry) for entry in sorted(self._waiting)]
        self._waiting = [entry for taken, entry in entries if not taken]
        return [entry[2] for taken, entry in entries if taken]

    def close(self) -> None:
        """Refuse all."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        while self._waiting:
            self._refuse(heappop(self._waiting)[2])

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = None
        try:
            while self._waiting and self._waiting[0][0] <= loop.time():
                self._refuse(heappop(self._waiting)[2])
        finally:
            if self._waiting and self._sweeper is None:
                self._sweeper = loop.call_at(self._waiting[0][0], self._sweep, loop)
