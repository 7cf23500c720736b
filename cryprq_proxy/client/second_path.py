"""A second path beside the one in use, so that the loss of one stops nothing.

There is one where several endpoints lead to the exit: over TCP, say, and in a WebSocket. The endpoint that comes first
in the configuration carries all, the other one waits. And there is one for a moment when the route to the exit has
changed: the old paths carry on until a new one is there.

Where the exit advertises an address of its own, the configured endpoints may lead to other exits, which do not have the
session. So nothing is kept beside the path then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from ..base.clock import clock
from ..base.faults import is_fault, report_fault
from ..base.tasks import spawn
from ..carriers.dial.endpoint import Endpoint
from ..errors import PeerError
from .endpoints import Endpoints
from .kept_session import KeptSession
from .path_opening import LivePath
from .rest import Pause

_log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds before the first attempt; before each that follows on one that came to nothing twice as many."""
STEADY_SECONDS: Final = 10.0
"""A path that was lost sooner has come to nothing, too: something on its route may end each connection at once. Every
path costs both sides a handshake and a rotation, and moves what the session sends if its endpoint comes first."""


class SecondPath:
    """`open_beside` makes an attempt by other endpoints than the given ones; `paths` are those that are up."""

    def __init__(
        self,
        open_beside: Callable[[Collection[Endpoint]], Awaitable[None]],
        paths: dict[int, LivePath],
        endpoints: Endpoints,
        kept: KeptSession,
        pause: Pause,
    ) -> None:
        self._open_beside = open_beside
        self._paths = paths
        self._endpoints = endpoints
        self._kept = kept
        self._pause = pause
        self._seconds = FIRST_PAUSE
        """Before the next attempt."""
        self._stale: set[int] = set()
        """Numbers of the paths that are to be left."""
        self.task: asyncio.Task[None] | None = None

    def path_up(self, path: LivePath) -> None:
        """There is one more path, which may be the only one."""
        for number in self._stale - {path.number}:
            stale = self._paths.get(number)
            if stale is not None:
                self._prefer(path)
                stale.carrier.drop()
        self._stale.clear()
        if len(self._paths) > 1:
            self._prefer(min(self._paths.values(), key=self._rank))
        self._look()

    def path_lost(self, path: LivePath) -> None:
        """One of several is lost."""
        self._stale.discard(path.number)
        if clock() - path.carrier.path.keys.joined >= STEADY_SECONDS:
            self._seconds = FIRST_PAUSE
        self._look()

    def replace(self) -> None:
        """Leave all paths that are up, as soon as there is a new one."""
        self._stale = set(self._paths)
        self._seconds = FIRST_PAUSE
        if self.task is not None:
            self.task.cancel()
            self.task = None
        self._look()

    def stop(self) -> None:
        """The link is down, or ends: the next path is the first one."""
        self._stale.clear()
        self._seconds = FIRST_PAUSE
        if self.task is not None:
            self.task.cancel()

    def _prefer(self, path: LivePath) -> None:
        if self._kept.session is not None:
            self._kept.session.prefer(path.number)

    def _rank(self, path: LivePath) -> tuple[int, int]:
        return self._endpoints.place(path.reached.endpoint), path.number

    @property
    def _avoided(self) -> frozenset[Endpoint]:
        """By which no second path is of use."""
        return (
            frozenset() if self._stale else frozenset(path.reached.endpoint for path in self._paths.values())
        )

    @property
    def _wanted(self) -> bool:
        if not self._paths:
            return False
        beside = len(self._paths) == 1 and self._kept.advertised is None
        return bool(self._stale) or (beside and self._endpoints.has_others(self._avoided))

    def _look(self) -> None:
        if self._wanted and (self.task is None or self.task.done()):
            self.task = spawn(self._run(), "second path")

    async def _run(self) -> None:
        if not self._stale:
            # There is no hurry, and what the exit advertises comes behind its verdict.
            await self._wait()
        while self._wanted:
            try:
                await self._open_beside(self._avoided)
            except Exception as error:
                if is_fault(error):
                    report_fault("ends an attempt to have a second path", error)
                elif isinstance(error, PeerError):
                    _log.debug("no second path: %s", error)
                else:
                    raise
            if self._wanted:
                await self._wait()

    async def _wait(self) -> None:
        seconds = self._seconds
        self._seconds = min(2 * seconds, LONGEST_PAUSE)
        await self._pause(seconds)
