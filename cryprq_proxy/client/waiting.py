"""Requests that wait for a link, each for a bounded time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .requests import StreamRequest


class WaitingRoom:
    """`refuse` is called for each request that has waited `seconds`, and for all that are left at `close`."""

    def __init__(
        self,
        seconds: float,
        refuse: Callable[[StreamRequest], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._seconds = seconds
        self._refuse = refuse
        self._loop = loop
        self._waiting: deque[tuple[float, StreamRequest]] = deque()
        """In the order of their deadlines."""
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: StreamRequest) -> None:
        """Let `request` wait. With no time to wait, it is refused before this returns."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._seconds, request))
        if self._sweeper is None:
            self._sweep(loop)

    def take(self, served: Callable[[StreamRequest], bool] = lambda request: True) -> list[StreamRequest]:
        """Take out the requests for which `served` says that they need not wait any more."""
        taken = [request for _, request in self._waiting if served(request)]
        if taken:
            gone = set(map(id, taken))
            self._waiting = deque(entry for entry in self._waiting if id(entry[1]) not in gone)
        return taken

    def close(self) -> None:
        """Refuse all."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        while self._waiting:
            self._refuse(self._waiting.popleft()[1])

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        try:
            while self._waiting and self._waiting[0][0] <= loop.time():
                self._refuse(self._waiting.popleft()[1])
        finally:
            if self._waiting and self._sweeper is None:
                self._sweeper = loop.call_at(self._waiting[0][0], self._sweep, loop)
