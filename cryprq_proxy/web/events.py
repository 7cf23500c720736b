"""Live data for the pages: one ticker for all listeners, and none without a listener.

    first listener -> ticker starts: ask the sources, encode once, wake all, sleep a second -> last one gone: it ends

A listener gets the newest events when it is ready for them and never sees those in between, so a slow one costs no
memory. One that takes nothing for WRITE_SECONDS is cut off. The events (server-sent events, HTML
standard section 9.2): `status`, with `at` (Unix seconds) beside it, and `streams`; before them, once, `history`: the
samples of the last ten minutes (history.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from aiohttp import web

from ..base.tasks import spawn
from ..base.text import to_json
from ..process.actions import Actions
from .history import History

MAX_LISTENERS: Final = 16
"""Open pages at once; further ones are refused."""
SECONDS: Final = 1.0
"""Between two events."""
WRITE_SECONDS: Final = 10.0
MANY: Final = 300
"""Open streams from which on their list comes with every third event only, so that looking stays cheap."""

_log = logging.getLogger(__name__)


class Events:
    """`start`; then `serve` answers one request for live data; `stop` ends all of them. `clock` gives Unix seconds."""

    def __init__(
        self, actions: Actions, seconds: float = SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._actions = actions
        self._seconds = seconds
        self._clock = clock
        self.history = History(actions.traffic, clock)
        self._ticked = asyncio.Event()
        self._latest: _Event | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._stopping = False
        self._failing = False
        self.listeners = 0
        self.ticks = 0
        """Events made since the start."""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Events until the page is closed, the server stops or the listener is too slow."""
        if self.listeners >= MAX_LISTENERS or self._stopping:
            raise web.HTTPServiceUnavailable(text="too many pages are open; close one\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self.listeners += 1
        try:
            await response.prepare(request)
            if self.history.samples:
                await response.write(b"event: history\ndata: %b\n\n" % to_json(list(self.history.samples)))
            await self._follow(request, response)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.listeners -= 1
            if self.listeners == 0 and self._ticker is not None:
                self._ticker.cancel()
                self._ticker, self._latest = None, None
        return response

    async def _follow(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._ticker is None:
            self._ticker = spawn(self._tick(), "dashboard")
        taken: _Event | None = None
        while not self._stopping and request.transport is not None:
            latest = self._latest
            if latest is None or latest is taken:
                ticked = self._ticked
                await ticked.wait()
                continue
            whole = latest.fresh or taken is None
            taken = latest
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(latest.status + latest.streams if whole else latest.status)

    async def _tick(self) -> None:
        while True:
            try:
                self._latest = await self._event()
                self.ticks += 1
                self._failing = False
            except Exception:  # noqa: BLE001
                # A bug in a report must not end the reports; it is logged once.
                if not self._failing:
                    _log.exception("the dashboard's data cannot be made")
                self._failing = True
            # Also without an event: listeners that have gone are noticed then.
            self._wake()
            await asyncio.sleep(self._seconds)

    def _wake(self) -> None:
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    async def _event(self) -> _Event:
        told = to_json({"at": self._clock(), "status": await self._actions.status()})
        status, before = b"event: status\ndata: %b\n\n" % told, self._latest
        if before is not None and before.rows >= MANY and self.ticks % 3:
            return _Event(status, before.streams, False, before.rows)
        rows = self._actions.streams()
        return _Event(status, b"event: streams\ndata: %b\n\n" % to_json(rows), True, len(rows))

    def start(self) -> None:
        """Begin to remember the throughput."""
        self.history.start()

    def stop(self) -> None:
        """End all answers, at once for those that wait."""
        self.history.stop()
        self._stopping = True
        self._wake()


class _Event(NamedTuple):
    """One tick, as it is sent. `streams` is the newest list, of `rows` streams; `fresh`: it was made in this tick."""

    status: bytes
    streams: bytes
    fresh: bool
    rows: int
