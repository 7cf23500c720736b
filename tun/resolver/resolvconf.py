"""The system's resolver where /etc/resolv.conf decides: replaced while the tunnel stands, and put back as it was.

    what stands there  ->  backup in the state directory  ->  journal  ->  ours, by rename
    ours               ->  what the backup holds, by rename  ->  backup removed

resolvconf_files.py does both, resolvconf_text.py reads and writes what the file says. The journal undoes it.

Another program that overwrites the file (a DHCP client, a connection manager) has news: what it wrote becomes the new
backup, and our file is put back. Where that happens again and again, our file is put back at longer intervals, and the
log says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from cryprq_proxy.errors import ConfigError

from ..journal import Record
from .resolvconf_files import RESOLV_CONF, STATE, Untouched, content_of, read, replace, write
from .resolvconf_text import is_ours

_log = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks at the file."""
FIGHT: Final = 5
"""So many times within `FIGHT_SECONDS` our file is put back at once; then it is left alone for as long."""
FIGHT_SECONDS: Final = 60.0
MAX_REPAIRS: Final = 500
"""Then the file is left alone: each time leaves a line in the journal, which must not grow for ever."""


class ResolvConf:
    """`ResolverSetting` through the file. `state` is where the backup goes; the rest is for tests."""

    kind: Final = "resolv.conf"

    def __init__(
        self,
        record: Record,
        path: Path = RESOLV_CONF,
        state: Path = STATE,
        *,
        interval: float = INTERVAL,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._path = path
        self._state = state
        self._interval = interval
        self._pause = pause
        self._clock = clock
        self._addresses: tuple[str, ...] = ()
        self._current = Untouched(path)
        self._repairs = 0

    @property
    def repairs(self) -> int:
        """How often another program overwrote the file and ours was put back."""
        return self._repairs

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Make `addresses` the name servers of the system. The interface does not matter here.

        Called again, it first puts back what was there. Raises ConfigError.
        """
        current, self._current = self._current, Untouched(self._path)
        current.undo()
        self._addresses = tuple(addresses)
        content = content_of(self._path)
        if is_ours(content):
            raise ConfigError(
                f"{self._path} was left by an earlier run whose journal is gone; put your own in its place "
                f"(for example a line 'nameserver ADDRESS') and start again"
            )
        self._current = replace(self._path, self._state, content, self._addresses, self._record)

    async def watch(self) -> None:
        """Put our file back whenever another program has overwritten it; runs until cancelled. Call `set` first.

        It acts on what two looks have found alike, so that half a file is not taken for the news.
        """
        recent: deque[float] = deque(maxlen=FIGHT)
        warned = False
        while True:
            if len(recent) == FIGHT and self._clock() - recent[0] < FIGHT_SECONDS:
                if not warned:
                    warned = True
                    _log.warning(
                        "another program has overwritten %s %d times in a minute; from now on it is put back at "
                        "longer intervals: tell that program to leave the file alone",
                        self._path,
                        FIGHT,
                    )
                await self._pause(FIGHT_SECONDS)
            before = self._seen()
            await self._pause(self._interval)
            now = self._seen()
            if now != before or not self._current.is_overwritten(now):
                continue
            if self._repairs >= MAX_REPAIRS:
                _log.error(
                    "another program has overwritten %s %d times; its version stays", self._path, MAX_REPAIRS
                )
                return
            self._repairs += 1
            recent.append(self._clock())
            try:
                self._repair()
            except ConfigError as error:
                _log.warning("%s", error)
            else:
                _log.info("another program had overwritten %s: our resolver is set again", self._path)

    def upstreams(self) -> tuple[str, ...]:
        """The name servers from before, the newest that are known: what the exit's own name is resolved with."""
        return self._current.nameservers()

    def _repair(self) -> None:
        content = content_of(self._path)
        if is_ours(content):
            # An older one of ours, which some program had saved: no news.
            write(self._path, self._current.ours)
            return
        old = self._current
        self._current = replace(self._path, self._state, content, self._addresses, self._record)
        old.forget()

    def _seen(self) -> str | bytes | None:
        """What stands there: where a link leads, what a file says, or None."""
        try:
            return os.readlink(self._path) if self._path.is_symlink() else read(self._path)
        except OSError:
            return None
