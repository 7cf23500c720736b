"""What our own page tells (fronts/own_page.py): of the status, and of what the exit reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..base.clock import clock
from ..base.tasks import spawn
from ..client.exits import Exits
from ..errors import CryprqError
from ..fronts.own_page import Facts
from ..status import AskedExit

KEPT_SECONDS: Final = 5.0
"""For so long a report is not asked for again."""


class OwnFacts:
    """Gives the Facts when called. Whoever asks meanwhile gets the same report: a page that many open at once asks the
    exit one time."""

    def __init__(self, exits: Exits, paused: Callable[[], int] = int) -> None:
        """`paused` gives the whole seconds left of a pause."""
        self._exits = exits
        self._paused = paused
        self._asking: asyncio.Task[AskedExit | str] | None = None
        self._asked = 0.0

    async def __call__(self) -> Facts:
        told = await asyncio.shield(self._report())
        status = self._exits.status()
        active = next((exit for exit in status.exits if exit.active), None)
        name = active.name if active is not None else ""
        if isinstance(told, AskedExit) and told.exit != name:
            told = f"the exit in use has just changed, from {told.exit}"
        return Facts(
            exit=name,
            address=status.exit.address,
            up=status.link == "up",
            problem=status.last_error or "",
            report=told.report if isinstance(told, AskedExit) else None,
            unasked=told if isinstance(told, str) else "",
            paused=self._paused(),
        )

    def _report(self) -> asyncio.Task[AskedExit | str]:
        task, now = self._asking, clock()
        if task is None or (task.done() and now - self._asked > KEPT_SECONDS):
            task, self._asked = spawn(self._ask(), "report for our own page"), now
            self._asking = task
        return task

    async def _ask(self) -> AskedExit | str:
        if self._exits.status().link != "up":
            return "there is no link to the exit"
        try:
            return await self._exits.report()
        except CryprqError as error:
            return str(error)
