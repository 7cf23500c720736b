"""What resolves names on this system, and one interface to set it.

systemd-resolved, where it runs and /etc/resolv.conf sends programs to it (its stub on 127.0.0.53, or the file in which
it lists the servers itself); else the file /etc/resolv.conf. A resolved that runs while the file names other servers
reads the file too, so the file decides then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from ..journal import Record, Undoer
from . import resolvconf_files, resolved
from .resolvconf import ResolvConf
from .resolvconf_files import MAX_FILE, RESOLV_CONF, STATE
from .resolvconf_text import nameservers
from .resolved import Resolved

STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})
"""Where resolved listens (systemd-resolved.service(8))."""
RESOLVED_FILES: Final = (
    Path("/run/systemd/resolve"),
    Path("/usr/lib/systemd/resolv.conf"),
    Path("/lib/systemd/resolv.conf"),
)
"""What /etc/resolv.conf is linked to where resolved is in charge: the directory, or the static file."""


class ResolverSetting(Protocol):
    """Sends the names of all programs to our addresses. Made by `choose`; the journal undoes it."""

    @property
    def kind(self) -> str:
        """For people: "systemd-resolved" or "resolv.conf"."""

    @property
    def repairs(self) -> int:
        """How often it had to be set again."""

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Resolve everything at `addresses` (IP literals) from now on.

        `index` and `name` are the tunnel's interface. May be called again with other addresses. Raises ConfigError;
        then nothing is changed.
        """

    async def watch(self) -> None:
        """Set it again when something else has changed it. Call `set` first, run this as a task and cancel it."""

    def upstreams(self) -> tuple[str, ...]:
        """The resolvers from before, as they are known now, as IP literals, IPv6 ones perhaps with a zone; or none."""


async def choose(
    record: Record, *, path: Path = RESOLV_CONF, state: Path = STATE, bus_address: str | None = None
) -> ResolverSetting:
    """How this system's resolver is set. Changes nothing and starts no service.

    `record` writes to the journal before each change. `path` is the resolv.conf, `state` the directory for its backup,
    `bus_address` another bus than the system's.
    """
    if points_to_resolved(path) and await resolved.runs(bus_address):
        return Resolved(record, bus_address=bus_address)
    return ResolvConf(record, path, state)


def points_to_resolved(path: Path = RESOLV_CONF) -> bool:
    """Whether programs that read the file at `path` end up at systemd-resolved."""
    target = Path(os.path.realpath(path))
    if any(target == file or file in target.parents for file in RESOLVED_FILES):
        return True
    try:
        with path.open("rb") as file:
            servers = nameservers(file.read(MAX_FILE))
    except OSError:
        return False
    return bool(servers) and STUBS.issuperset(servers)


def undoers(
    path: Path = RESOLV_CONF, state: Path = STATE, bus_address: str | None = None
) -> dict[str, Undoer]:
    """For the journal's `undo`: kind of entry -> synchronous undo, of both settings."""
    return {
        resolvconf_files.KIND: lambda entry: resolvconf_files.undo(entry, path=path, state=state),
        resolved.KIND: lambda entry: resolved.undo(entry, bus_address=bus_address),
    }
