"""The system's resolver by /etc/resolv.conf: the file is replaced while the tunnel is up, and then restored.

    present file  ->  backup in the state directory  ->  journal  ->  our file, by rename
    our file      ->  the backup's content, by rename  ->  backup removed

resolvconf_files.py does both, resolvconf_text.py reads and writes the text. The journal undoes it.

A file that cannot be changed stays, with a warning, if names work nonetheless (left_alone.py).

If another program (a DHCP client, a connection manager) overwrites the file, its version becomes the new backup, and
our file is put back. If that repeats, our file is put back at longer intervals, and the log says so.
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
from . import left_alone
from .resolvconf_files import (
    RESOLV_CONF,
    STATE,
    UnchangeableError,
    Untouched,
    content_of,
    read,
    replace,
    write,
)
from .resolvconf_text import is_ours

_log = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks at the file."""
FIGHT: Final = 5
"""Our file is put back at once this often within `FIGHT_SECONDS`; then the watch pauses as long."""
FIGHT_SECONDS: Final = 60.0
MAX_REPAIRS: Final = 500
"""The most repairs: each adds a line to the journal, which must not grow without bound."""


class ResolvConf:
    """`ResolverSetting` through the file. `state` is where the backup goes; the rest is for tests."""

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
        self.kind = "resolv.conf"
        self.repairs = 0

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Make `addresses` the name servers of the system. The interface is not used.

        A second call first restores the earlier file. Raises ConfigError.
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
        try:
            self._current = replace(self._path, self._state, content, self._addresses, self._record)
        except UnchangeableError as error:
            if not left_alone.reaches_forwarder(content, self._addresses):
                raise
            self.kind = left_alone.KIND
            _log.warning(
                "%s; it stays, and names work all the same: the filter brings questions to port 53 into the tunnel",
                error,
            )

    async def watch(self) -> None:
        """Put our file back whenever another program has overwritten it; runs until cancelled. Call `set` first.

        It acts if two looks have found the same, so that it never reads half a file.
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
            if self.repairs >= MAX_REPAIRS:
                _log.error(
                    "another program has overwritten %s %d times; its version stays", self._path, MAX_REPAIRS
                )
                return
            self.repairs += 1
            recent.append(self._clock())
            try:
                self._repair()
            except ConfigError as error:
                _log.warning("%s", error)
            else:
                _log.info("another program had overwritten %s: our resolver is set again", self._path)

    def upstreams(self) -> tuple[str, ...]:
        """The newest known earlier name servers; they resolve the exit's own name."""
        return self._current.nameservers()

    def _repair(self) -> None:
        content = content_of(self._path)
        if is_ours(content):
            # An older file of ours, which another program had saved: not a new setting.
            write(self._path, self._current.ours)
            return
        old = self._current
        self._current = replace(self._path, self._state, content, self._addresses, self._record)
        old.forget()

    def _seen(self) -> str | bytes | None:
        """The present state: a link's target, a file's content, or None."""
        try:
            return os.readlink(self._path) if self._path.is_symlink() else read(self._path)
        except OSError:
            return None
