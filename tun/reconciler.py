"""Keeps what system-wide mode has set, on both roles: looks at facts, and puts back what other programs change.

    the kernel's message, or a second  ->  Fact.look  ->  words for what was found  ->  Fact.put_back  ->  log, count

A fact is one thing that stands as this program set it: a table, addresses, a kernel setting. Each fact has a task of
its own, so that a slow one delays no other. `Schedule` holds its times and its words, and does no I/O.

Another program may always win. After FIGHT repairs within FIGHT_SECONDS the fact is in trouble, and is put back only
every SLOW seconds until it has stood for PEACE_SECONDS; a vital fact is still put back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from cryprq_proxy.base.changes import Changes, NoChanges, pause
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError, reason_of
from cryprq_proxy.status import RepairStatus

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks at what sends no events, and at what is in trouble."""
FIGHT: Final = 8
FIGHT_SECONDS: Final = 10.0
PEACE_SECONDS: Final = 60.0
SLOW: Final = 10.0
"""Seconds between two repairs of what another program changes again and again."""
QUIET: Final = 10.0
"""Seconds for which a repair is not logged again, if the same was found."""
STOP_SECONDS: Final = 5.0
"""For repairs that are in progress at the end."""


class Fact:
    """One thing that must stand as this program set it. The journal undoes it, not this class."""

    name: str
    """For people, and the key in status and metrics: "kill switch", "device address"."""
    vital = False
    """Never slowed down."""
    polled = False
    """Looked at each second too: the kernel tells none of its changes, or not all."""
    changes: Callable[[], Changes] = NoChanges
    """The events that wake it, besides `Reconciler.wake`."""

    async def look(self) -> str:
        """Nothing if it stands as set, else what was found instead: a part of a sentence. Raises CryprqError."""
        raise NotImplementedError

    async def put_back(self) -> None:
        """Set it again. Raises CryprqError where that cannot be: a sentence for the person."""
        raise NotImplementedError


class Schedule:
    """When one fact is looked at next, and what is known of it. `now`: seconds of any one clock."""

    def __init__(self, name: str, *, vital: bool, polled: bool, now: float) -> None:
        self.due = now
        """When it is to be looked at; infinite while only an event is waited for."""
        self.repairs = 0
        self.found = ""
        self.trouble = ""
        self._name = name
        self._vital = vital
        self._polled = polled
        self._recent: deque[float] = deque(maxlen=FIGHT)
        self._fighting = False
        self._not_before = now
        self._logged: tuple[str, float] = ("", -math.inf)

    def event(self, now: float) -> None:
        """Something has changed in the kernel."""
        self._next(now, 0.0)

    def begin(self) -> None:
        """A look begins. An event from now on leads to another one, also if it comes before this one is over."""
        self.due = math.inf

    def stands(self, now: float) -> None:
        """A look found it as set."""
        self.found = ""
        if self._fighting and now - self._recent[-1] < PEACE_SECONDS:
            self._next(now, LOOK_SECONDS)
            return
        if self.trouble:
            _log.info("%s: stands again as it was set", self._name)
        self.trouble = ""
        self._fighting = False
        self._next(now, LOOK_SECONDS if self._polled else math.inf)

    def repaired(self, now: float, found: str) -> None:
        """A look found something else, and it was put back."""
        self.repairs += 1
        self.found = found
        self._recent.append(now)
        if not self._fighting and len(self._recent) == FIGHT and now - self._recent[0] < FIGHT_SECONDS:
            self._fighting = True
            _log.warning(
                "%s: another program changes it again and again, last: %s; %s. Tell that program to leave it alone",
                self._name,
                found,
                "it is put back each time" if self._vital else f"it is put back every {SLOW:.0f} s only",
            )
        if self._fighting:
            self.trouble = f"another program changes it again and again, last: {found}"
            if not self._vital:
                self._not_before = now + SLOW
        else:
            self.trouble = ""
            self._log_once(now, f"another program changed it: {found}; it is put back")
        self._next(now, LOOK_SECONDS)

    def failed(self, now: float, found: str, reason: str) -> None:
        """It could not be read or put back. What was tried may be an event itself, and must not hasten the next try."""
        self.found = found
        self.trouble = reason
        self._log_once(now, reason)
        self._not_before = max(self._not_before, now + LOOK_SECONDS)
        self._next(now, LOOK_SECONDS)

    def status(self) -> RepairStatus:
        return RepairStatus(name=self._name, repairs=self.repairs, found=self.found, trouble=self.trouble)

    def _next(self, now: float, seconds: float) -> None:
        self.due = max(self._not_before, min(self.due, now + seconds))

    def _log_once(self, now: float, text: str) -> None:
        last, at = self._logged
        if text == last and (text == self.trouble or now - at < QUIET):
            return
        self._logged = text, now
        _log.warning("%s: %s", self._name, text)


class Reconciler:
    """Looks after `facts` from `__init__` to `stop`, in this thread's network namespace."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._clock = asyncio.get_running_loop().time
        self._kept = [_Kept(fact, self._clock) for fact in facts]
        self._stopping = False
        self._tasks = [spawn(self._keep(kept), f"keeping the {kept.fact.name}") for kept in self._kept]
        sources = dict.fromkeys(fact.changes for fact in facts)
        self._listening = [spawn(self._listen(changes), "changes of the kernel") for changes in sources]

    async def stop(self) -> None:
        """Put back nothing any more; a repair in progress is finished first."""
        self._stopping = True
        for task in self._listening:
            task.cancel()
        self.wake()
        await asyncio.wait([*self._listening, *self._tasks], timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def wake(self) -> None:
        """Look at everything soon: something has changed that the kernel does not tell."""
        for kept in self._kept:
            kept.wake()

    def status(self) -> tuple[RepairStatus, ...]:
        return tuple(kept.schedule.status() for kept in self._kept)

    async def _listen(self, changes: Callable[[], Changes]) -> None:
        woken = [kept for kept in self._kept if kept.fact.changes == changes]
        try:
            with changes() as told:
                while True:
                    await told.wait()
                    for kept in woken:
                        kept.wake()
        except OSError as error:
            names = ", ".join(kept.fact.name for kept in woken)
            _log.warning(
                "the kernel tells no changes (%s), so each second is looked at: %s", reason_of(error), names
            )
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for kept in woken:
                kept.wake()

    async def _keep(self, kept: _Kept) -> None:
        while not self._stopping:
            started = self._clock()
            if started < kept.schedule.due:
                await kept.sleep(kept.schedule.due - started)
                continue
            kept.schedule.begin()
            await kept.look()
            await asyncio.sleep(pause(self._clock() - started))


class _Kept:
    """One fact with its schedule."""

    def __init__(self, fact: Fact, clock: Callable[[], float]) -> None:
        self.fact = fact
        self.schedule = Schedule(fact.name, vital=fact.vital, polled=fact.polled, now=clock())
        self.woken = asyncio.Event()
        self._clock = clock

    def wake(self) -> None:
        """Look at it soon."""
        self.schedule.event(self._clock())
        self.woken.set()

    async def sleep(self, seconds: float) -> None:
        """Until something has changed, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self.woken.wait()
        self.woken.clear()

    async def look(self) -> None:
        """Look once, and put back what is not as it was set."""
        found = ""
        try:
            found = await self.fact.look()
            if found:
                await self.fact.put_back()
        except (CryprqError, OSError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            self.schedule.failed(self._clock(), found, reason)
            return
        except Exception as error:  # noqa: BLE001  a fault of ours must not end the watch, of the filter least of all
            _log.debug("%s", self.fact.name, exc_info=error)
            self.schedule.failed(self._clock(), found, f"this is a bug: {type(error).__name__}: {error}")
            return
        if found:
            self.schedule.repaired(self._clock(), found)
        else:
            self.schedule.stands(self._clock())
