"""The throughput of the last ten minutes, for the dashboard when it is opened: rates, and no names."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ..base.tasks import spawn
from ..status import Traffic

SECONDS: Final = 5.0
"""Between two samples."""
SAMPLES: Final = 120
"""Ten minutes of them."""


class Throughput(NamedTuple):
    """Bytes a second, over the time that ended `at`, in seconds since 1970."""

    at: float
    up: int
    down: int


class History:
    """`start`, then `stop`. `traffic` tells the bytes since the program's start."""

    def __init__(self, traffic: Callable[[], Traffic], clock: Callable[[], float]) -> None:
        self._traffic = traffic
        self._clock = clock
        self._before: tuple[float, Traffic] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.samples: deque[Throughput] = deque(maxlen=SAMPLES)
        """The oldest first."""

    def start(self) -> None:
        self._ticker = spawn(self._tick(), "throughput")

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def _tick(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(SECONDS)

    def look(self) -> None:
        """Take a sample of the time since the last look. When the clock was set back, begin anew."""
        now, moved = self._clock(), self._traffic()
        if self._before is not None:
            then, before = self._before
            seconds = now - then
            if seconds > 0:
                up, down = moved.sent - before.sent, moved.received - before.received
                self.samples.append(Throughput(round(now, 3), int(up / seconds), int(down / seconds)))
            elif seconds < 0:
                self.samples.clear()
        self._before = now, moved
