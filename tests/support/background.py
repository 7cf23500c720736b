"""An event loop on a thread of its own: targets and forwarders run there, while a test blocks as it likes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

PATIENCE = 30.0
"""Seconds after which anything that a test waits for counts as a hang."""
ACCEPT_TURNS = 4
"""From the accept of a connection to the first step of the task that serves it: transport, protocol, task."""


class Background:
    """`run` and `call` from the test's thread; `close` at the end."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="background", daemon=True)
        self._thread.start()

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, run in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def call[T](self, function: Callable[..., T], *args: Any) -> T:
        """The result of `function`, called in the loop."""

        async def wrapped() -> T:
            return function(*args)

        return self.run(wrapped())

    def end_server(self, server: asyncio.Server) -> None:
        """Close `server`, so that what it has accepted is served. A connection that is accepted in the same turn of the
        loop would find a closed server, and CPython 3.12 then leaves its socket open."""
        self.run(self._end_server(server))

    def close(self) -> None:
        self.run(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _end_server(self, server: asyncio.Server) -> None:
        for listening in server.sockets:
            self.loop.remove_reader(listening.fileno())
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        server.close()

    async def _end_tasks(self) -> None:
        # A connection that has just been accepted gets its task in the next turn of the loop.
        await asyncio.sleep(0)
        while tasks := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()
