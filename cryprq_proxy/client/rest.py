"""The rest of a client between two attempts to dial; who waits for the link can shorten it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..base.clock import clock
from ..base.tasks import spawn

SOON_SECONDS: Final = 1.0
"""Between two attempts while a request waits for the link, or packets do."""

type Pause = Callable[[float], Awaitable[None]]


class Rest:
    """`pause` is how it waits. `wanted` gives a number that changes with each packet that is to be sent meanwhile, None
    where no packets are carried."""

    def __init__(self, pause: Pause, wanted: Callable[[], int] | None) -> None:
        self._pause = pause
        self._wanted = wanted
        self._task: asyncio.Task[Any] | None = None
        self._began = 0.0

    async def take(self, seconds: float) -> None:
        """Wait so long, unless `hasten` ends it, or packets are to be sent for which SOON_SECONDS are enough."""
        self._began = clock()
        self._task = spawn(self._wait(seconds), "backoff")
        try:
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()
            self._task = None

    async def _wait(self, seconds: float) -> None:
        if self._wanted is None:
            await self._pause(seconds)
            return
        wanted = self._wanted()
        while seconds > 0 and self._wanted() == wanted:
            step = min(seconds, SOON_SECONDS)
            await self._pause(step)
            seconds -= step

    def hasten(self) -> None:
        """Somebody waits for the link: the next attempt comes at the latest SOON_SECONDS after the last one."""
        if self._task is not None:
            left = max(self._began + SOON_SECONDS - clock(), 0.0)
            asyncio.get_running_loop().call_later(left, self._task.cancel)
