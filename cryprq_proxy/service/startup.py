"""What the client's process and the exit's have in common: words for what fails, the status, reading files again.

client.py and exit.py turn a configuration into the running thing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from msgspec import Struct, structs

from .. import __version__
from ..address import Destination
from ..base.tasks import spawn
from ..errors import CryprqError, reason_of
from ..process.file_watch import FileWatch
from ..process.lifecycle import Stop
from ..process.recent_errors import RecentErrors
from ..process.reload import Reloader
from ..status import RoleStatus

_log = logging.getLogger(__name__)


@contextmanager
def explained(listen: Sequence[Destination], flag: str = "--listen") -> Iterator[None]:
    """Turns an OSError of listening into a CryprqError that names the address and says what to do."""
    try:
        yield
    except OSError as error:
        # The standard library puts the address into the text, and nowhere else.
        named = [address for address in listen if repr((address.host, address.port)) in str(error)]
        where = " or ".join(map(str, named or listen))
        # socket.create_server passes the negative numbers of getaddrinfo on in a plain OSError.
        if isinstance(error, socket.gaierror) or (error.errno or 0) < 0:
            text = f"there is no address for {where}; give another one with {flag}"
        elif error.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another program; stop that one, or give another address with {flag}"
        elif error.errno == errno.EADDRNOTAVAIL:
            text = f"this machine has no address {where}; give one that it has with {flag}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            text = f"listening on {where} needs more rights; give a port from 1024 on with {flag}"
        else:
            text = f"listening on {where} failed: {reason_of(error)}"
        raise CryprqError(text) from None


class ProcessStatus:
    """What only the process knows. `listen`: where the role listens."""

    def __init__(self, recent: RecentErrors) -> None:
        self._recent = recent
        self._started = time.monotonic()
        self.listen: tuple[Destination, ...] = ()

    def add_to[S: RoleStatus](self, status: S) -> S:
        """A role's status with the fields of the process."""
        return structs.replace(
            status,
            listen=tuple(map(str, self.listen)),
            log_level=logging.getLevelName(logging.getLogger().level).lower(),
            errors=self._recent.status(),
            logged=self._recent.totals(),
            version=__version__,
            pid=os.getpid(),
            uptime=round(time.monotonic() - self._started, 3),
        )


def read_again[T](stack: AsyncExitStack, stop: Stop, reloader: Reloader[T], watch: FileWatch) -> None:
    """From now until the stack ends: reload at a SIGHUP, one that came before too, and after a change of a file that
    `watch` has."""
    stack.callback(spawn(watch.run(reloader.quietly), "file watch").cancel)
    stop.reload_by(lambda: spawn(reloader.quietly(), "reload"))


def changed_keys(before: Struct, now: Struct) -> list[str]:
    """The keys whose values differ, as in "tun.dns.split", and never the values: some are secrets."""
    found = []
    for field in structs.fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old == new:
            continue
        if isinstance(old, Struct) and type(old) is type(new):
            found += [f"{field.encode_name}.{key}" for key in changed_keys(old, new)]
        else:
            found.append(field.encode_name)
    return found


def needs_restart(before: Struct, now: Struct, taken: Collection[str]) -> str:
    """What to add to the result of a reload, which has `taken` some keys; empty where no other has changed."""
    keys = [key for key in changed_keys(before, now) if not {key, key.partition(".")[0]} & set(taken)]
    return f"; what else has changed in the configuration needs a restart: {', '.join(keys)}" if keys else ""


async def until_one_ends(*works: asyncio.Task[None]) -> None:
    """Raises what the first one that ends has raised; the others are cancelled."""
    try:
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        for work in done:
            work.result()
    finally:
        for work in works:
            work.cancel()
