"""The thread for the slow steps of handshakes: signatures, and the slow provider's key exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from ..base.work import Work

STUCK_SECONDS: Final = 30.0
"""A step takes a tenth of a second at most."""
SIGNATURES_WAITING: Final = 8
"""While so many steps wait or run, no further handshake is begun. Those that have begun go on."""


class HandshakeThread:
    """`waiting` is the number of steps that wait or run, `ended` of those that did."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1, "handshake")
        self.waiting = 0
        self.ended = 0

    @property
    def free(self) -> bool:
        """Whether a further handshake may begin."""
        return self.waiting < SIGNATURES_WAITING

    def submit[*Args, T](self, step: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Run `step(*args)`, behind those submitted before. The future has its result or what it raised."""
        self.waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self.executor, step, *args)
        future.add_done_callback(self._done)
        return future

    def work(self) -> Work:
        """For the watchdog."""
        return Work("the thread of the handshakes", self.ended, self.waiting > 0, STUCK_SECONDS)

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self.waiting -= 1
        self.ended += 1
        if not future.cancelled():
            future.exception()  # nobody may wait for it any more
