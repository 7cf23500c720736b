"""The reload of the configuration of a running program: after SIGHUP, a changed file, or a person's command.

    asked -> read and check everything on a thread -> apply it in the event loop, in one step
                          |
                          +-- not valid: nothing is applied, and one sentence says why

Reading may take seconds (long lists); data moves on meanwhile. A call during a reload starts a second one after it,
since the files may have changed after they were read. All such calls share that second one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ..base.descriptors import one_is_free
from ..base.faults import report_fault
from ..errors import ConfigError, CryprqError
from .sd_notify import Notifier

_log = logging.getLogger(__name__)

DESCRIPTOR_SECONDS: Final = 1.0
"""Between two looks for a free descriptor."""
UNCHANGED: Final = "everything stays as it was"
FAILED: Final = "the reload failed: a fault in this program, which the log describes"


class Reloader[T]:
    """`read` gives the new state or raises ConfigError; it runs on a thread. `apply` puts the state in force and
    returns a summary like "12 rules, 3 peers allowed"."""

    def __init__(
        self,
        read: Callable[[], T],
        apply: Callable[[T], Awaitable[str]],
        notifier: Notifier,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        turn: asyncio.Lock | None = None,
    ) -> None:
        """`turn` is held from reading until applying, for those that change what is read; one of its own if None."""
        self._read = read
        self._apply = apply
        self._notifier = notifier
        self._now = now
        self._sleep = sleep
        self._turn = asyncio.Lock() if turn is None else turn
        self._asked = 0
        self._served = 0
        self._said = ""
        self.loaded_at = now()
        """The time when the state in force was read; seconds since 1970."""
        self.error: str | None = None
        """Why the last reload failed; None if it succeeded."""

    async def reload(self) -> str:
        """Read and apply. Returns the summary. Logs and raises ConfigError if the old state stays."""
        self._asked += 1
        number = self._asked
        async with self._turn:
            if self._served < number:
                # A caller from here on may have changed a file that is being read.
                self._served = self._asked
                await self._once()
            if self.error is not None:
                raise ConfigError(self.error)
            return self._said

    async def quietly(self) -> None:
        """As `reload`, for a signal or a changed file: an error is logged and not raised. Waits for a free descriptor,
        since a change that could not be read would never be noticed again."""
        while not one_is_free():
            await self._sleep(DESCRIPTOR_SECONDS)
        try:
            await self.reload()
        except ConfigError:
            return

    async def _once(self) -> None:
        with self._notifier.reloading():
            at = self._now()
            try:
                state = await asyncio.to_thread(self._read)
                self._said = await self._apply(state)
            except CryprqError as error:
                self.error = f"{UNCHANGED}: {error}"
                _log.error("%s", self.error)
                return
            except Exception as error:  # noqa: BLE001  the watch on files goes on, and with it later reloads
                report_fault("ends a reload", error)
                self.error = FAILED
                return
            self.loaded_at, self.error = at, None
            _log.info("reloaded: %s", self._said)
