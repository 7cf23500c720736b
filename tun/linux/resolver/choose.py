"""The resolver of this system, and one interface to set it.

It is systemd-resolved if that runs and /etc/resolv.conf leads programs to it (its stub on 127.0.0.53, or its own list
of servers). Else it is the file /etc/resolv.conf. If the file names other servers, a running resolved reads the file
too, so the file decides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryprq_proxy.base.resolv_conf import nameservers

from ...journal import Record, Undoer
from ...resolver.left_alone import LeftAlone
from ...system import ResolverSetting
from . import recovery, resolvconf_files, resolved, resolved_bus
from .resolvconf import ResolvConf
from .resolvconf_files import RESOLV_CONF, STATE, read
from .resolved import Resolved

STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})
"""Where resolved listens (systemd-resolved.service(8))."""
RESOLVED_FILES: Final = (
    Path("/run/systemd/resolve"),
    Path("/usr/lib/systemd/resolv.conf"),
    Path("/lib/systemd/resolv.conf"),
)
"""Targets of the link /etc/resolv.conf if resolved is in use: the directory, or the static file."""


async def choose(
    record: Record,
    *,
    leave: bool = False,
    path: Path = RESOLV_CONF,
    state: Path = STATE,
    bus_address: str | None = None,
) -> ResolverSetting:
    """Find how to set this system's resolver. Starts no service, and changes nothing but what an earlier run has left.

    `record` writes to the journal before each change. With `leave` the resolver is only read. `path` is the
    resolv.conf, `state` the directory for its backup, `bus_address` another bus than the system's.
    """
    recovery.recover_or_empty(state, path)
    return await find(record, leave=leave, path=path, state=state, bus_address=bus_address)


async def find(
    record: Record,
    *,
    leave: bool = False,
    path: Path = RESOLV_CONF,
    state: Path = STATE,
    bus_address: str | None = None,
) -> ResolverSetting:
    """As `choose`, and changes nothing at all: what an earlier run has left stays."""
    found: ResolverSetting = ResolvConf(record, path, state)
    if points_to_resolved(path) and await resolved_bus.runs(bus_address):
        found = Resolved(record, bus_address=bus_address)
    return LeftAlone(found) if leave else found


def points_to_resolved(path: Path = RESOLV_CONF) -> bool:
    """Whether programs that read the file at `path` ask systemd-resolved."""
    target = Path(os.path.realpath(path))
    if any(target == file or file in target.parents for file in RESOLVED_FILES):
        return True
    try:
        servers = nameservers(read(path))
    except OSError:
        return False
    return bool(servers) and STUBS.issuperset(servers)


def undoers(
    path: Path = RESOLV_CONF, state: Path = STATE, bus_address: str | None = None
) -> dict[str, Undoer]:
    """For the journal's `undo`: kind of entry -> synchronous undo, of both settings."""
    return {
        resolvconf_files.KIND: lambda entry: recovery.undo(entry, state, path),
        resolved.KIND: lambda entry: resolved.undo(entry, bus_address=bus_address),
    }
