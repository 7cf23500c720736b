"""What our own page tells (fronts/own_page.py): of the status, and of what the exit reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import structs

from ..base.clock import clock
from ..base.tasks import spawn
from ..client.exits import Exits
from ..errors import CryprqError
from ..fronts.own_page import Facts
from ..status import AskedExit, ClientStatus

KEPT_SECONDS: Final = 5.0
"""For so long a report is not asked for again."""


type NamesProblem = Callable[[], Awaitable[str]]
"""Why the programs of this machine find no name in system-wide mode; empty if they do, and without that mode."""


async def no_problem() -> str:
    """The NamesProblem without system-wide mode."""
    return ""


def facts_of(status: ClientStatus, unasked: str, paused: int = 0) -> Facts:
    """What the status tells, without a report; `unasked` is the reason."""
    active = next((exit for exit in status.exits if exit.active), None)
    return Facts(
        exit=active.name if active is not None else "",
        address=status.exit.address,
        up=status.link == "up",
        problem=status.last_error or "",
        unasked=unasked,
        paused=paused,
    )


class OwnFacts:
    """Gives the Facts when called. Whoever asks meanwhile gets the same report: a page that many open at once asks the
    exit one time."""

    def __init__(
        self, exits: Exits, paused: Callable[[], int] = int, names: NamesProblem = no_problem
    ) -> None:
        """`paused` gives the whole seconds left of a pause."""
        self._exits = exits
        self._paused = paused
        self._names = names
        self._names_problem = ""
        self._asking: asyncio.Task[AskedExit | str] | None = None
        self._asked = 0.0

    async def __call__(self) -> Facts:
        told = await asyncio.shield(self._report())
        facts = facts_of(self._exits.status(), told if isinstance(told, str) else "", self._paused())
        if isinstance(told, str):
            return facts
        if told.exit != facts.exit:
            return structs.replace(facts, unasked=f"the exit in use has just changed, from {told.exit}")
        return structs.replace(facts, report=told.report, names_problem=self._names_problem)

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
            told, self._names_problem = await asyncio.gather(self._exits.report(), self._names())
            return told
        except CryprqError as error:
            return str(error)
