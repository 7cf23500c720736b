"""The system's resolver by /etc/resolv.conf: the file is replaced while the tunnel is up, and then restored.

    present file  ->  backup in the state directory  ->  journal  ->  our file, by rename
    our file      ->  the backup's content, by rename  ->  backup removed

resolvconf_files.py does both, resolvconf_text.py reads and writes the text. The journal undoes it.

A file that cannot be changed stays, with a warning, if names work nonetheless (left_alone.py).

If another program (a DHCP client, a connection manager) overwrites the file, its version becomes the new backup, and
our file is put back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.errors import ConfigError

from ...journal import Record
from ...resolver import left_alone
from ...system import ResolverSetting
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

SETTLED_SECONDS: Final = 0.2
"""A file that has not changed for so long is not being written."""
UNSETTLED_LOOKS: Final = 10
MAX_REPAIRS: Final = 500
"""The most repairs: each adds a line to the journal, which must not grow without bound."""


class ResolvConf(ResolverSetting):
    """Through the file. `state` is where the backup goes; the rest is for tests."""

    changes = staticmethod(netlink_changes)

    def __init__(
        self,
        record: Record,
        path: Path = RESOLV_CONF,
        state: Path = STATE,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._record = record
        self._path = path
        self._state = state
        self._pause = pause
        self._addresses: tuple[str, ...] = ()
        self._current = Untouched(path)
        self.kind = "resolv.conf"
        self._repairs = 0

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
            if not left_alone.any_reaches_forwarder(nameservers(content), self._addresses):
                raise
            self.kind = left_alone.KIND
            _log.warning(
                "%s; it stays, and names work all the same: the filter brings questions to port 53 into the tunnel",
                error,
            )

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        if left_alone.any_reaches_forwarder(nameservers(content_of(self._path)), addresses):
            return ""
        return f"{self._path} names no server whose questions reach the forwarder; name one, for example {addresses[0]}"

    async def look(self) -> str:
        """What stands in the place of our file. Waits until it is written, so that half a file is never read."""
        seen = self._seen()
        for _ in range(UNSETTLED_LOOKS):
            if not self._current.is_overwritten(seen):
                return ""
            await self._pause(SETTLED_SECONDS)
            before, seen = seen, self._seen()
            if before == seen:
                break
        if isinstance(seen, str):
            return f"{self._path} was made a link to {seen!r:.100}"
        if servers := nameservers(seen or b""):
            return f"{self._path} named {', '.join(servers)}"
        return f"{self._path} named no server"

    async def put_back(self) -> None:
        """Our file again; what is there becomes the new backup. Raises ConfigError."""
        if self._repairs >= MAX_REPAIRS:
            raise ConfigError(
                f"another program has overwritten {self._path} {MAX_REPAIRS} times; its version stays"
            )
        self._repairs += 1
        content = content_of(self._path)
        if is_ours(content):
            # An older file of ours, which another program had saved: not a new setting.
            write(self._path, self._current.ours)
            return
        old = self._current
        self._current = replace(self._path, self._state, content, self._addresses, self._record)
        old.forget()

    def upstreams(self) -> tuple[str, ...]:
        """The newest known earlier name servers; they resolve the exit's own name."""
        return self._current.nameservers()

    def _seen(self) -> str | bytes | None:
        """The present state: a link's target, a file's content, or None."""
        try:
            return os.readlink(self._path) if self._path.is_symlink() else read(self._path)
        except OSError:
            return None
