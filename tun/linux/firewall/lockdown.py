"""The block of `cryprq-proxy lockdown on`: the client's filter while no client runs, from before the network comes.

    on               the filter is written to a file beside the journal, and loaded; that the file is there means "on"
    boot             cryprq-lockdown.service gives the file to nft before the network comes
    start            the client's filter takes the place of this one, as of one that a crash has left
    while it runs    the file follows what the client's filter follows: exits, local networks, rules
    stop, cleanup    this filter takes the place of the client's
    off              the file goes, and then the filter

Each taking of a place is one transaction of the kernel. The filter is the client's as it is before there is a tunnel
(client_table.py), but for excluded cgroups, which may not exist yet, for which nft would refuse all of it. The empty
table LOCKDOWN beside it tells every tool in this network namespace that it is on, wherever the file is.

An exit's name is asked for by the client itself, by its marked sockets, after it has put up its own filter, or its last
address is taken (known_addresses.py). So between boot and start no question for a name has to get out, and none does.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from cryprq_proxy.base.file_access import replace_file, sync_directory
from cryprq_proxy.base.files import is_own_file, locked_directory
from cryprq_proxy.base.linux_marks import LOCKDOWN
from cryprq_proxy.base.program import to_run_as_root
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of

from ...firewall.filter_settings import FilterSettings
from ...firewall.inbound import Inbound
from ...journal import Entry, Undoer, own_directory
from . import nft
from .client_table import script
from .marks import Marks
from .nft import CLIENT

_log = logging.getLogger(__name__)

FILE: Final = "lockdown.nft"
MAX_SIZE: Final = 64 << 20
"""Bytes of the file that are read: lists of rules with millions of prefixes fit."""


class AtRest(NamedTuple):
    """What the filter is made from."""

    settings: FilterSettings
    inbound: Inbound
    marks: Marks

    def script(self, *, now: bool = False) -> str:
        """One transaction, which takes the place of the client's table, whatever that is now. Connections that are kept
        are in it where it is carried out `now`."""
        settings = replace(
            self.settings,
            tunnel4=None,
            tunnel6=None,
            dns_port=None,
            excluded_cgroups=frozenset(),
            portal_resolvers=(),
            page=None,
            kill_switch=True,
        )
        inbound = self.inbound if now else replace(self.inbound, connections=frozenset())
        return f"add table inet {LOCKDOWN}\n{script(settings, inbound, marks=self.marks)}"


class Lockdown:
    """The file in the state directory `state`. Methods block, and raise CryprqError."""

    def __init__(self, state: Path) -> None:
        self.file = state / FILE
        self._kept: tuple[AtRest, tuple[int, int]] | None = None
        self._complained = False

    @property
    def on(self) -> bool:
        """Also where the file cannot be used: then nothing may open."""
        return os.path.lexists(self.file)

    def turn_on(self, at_rest: AtRest) -> None:
        """Write the file, of what nft takes. From then on it is on, whatever becomes of this process."""
        text = at_rest.script()
        nft.check(text)
        self._write(text, always=True)

    def turn_off(self) -> bool:
        """Remove the file. From then on it is off. Returns whether it was on."""
        if not self.on:
            return False
        try:
            with locked_directory(self.file.parent):
                self.file.unlink(missing_ok=True)
                sync_directory(self.file.parent)
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be removed: {reason_of(error)}") from None
        return True

    def keep(self, at_rest: AtRest) -> None:
        """Where it is on, let the file say what the running client's filter says. A failure is logged, once."""
        try:
            if self._kept == (at_rest, self._state()):
                return
            self._write(at_rest.script(), always=False)
            self._kept = at_rest, self._state()
        except FileNotFoundError:
            # It was turned off.
            return
        except (OSError, CryprqError) as error:
            if not self._complained:
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                _log.warning("the block of lockdown is not kept up to date: %s", reason)
            self._complained = True

    def stand(self) -> None:
        """Put the filter up, in the place of whatever stands. No client may live. A filter that is left where this
        fails holds everything in."""
        with locked_directory(self.file.parent):
            nft.remove(CLIENT, instead=self._read())

    def undoers(self) -> dict[str, Undoer]:
        """As nft.UNDO, for the client's journal."""
        return {nft.KIND: self._undo}

    def _undo(self, entry: Entry) -> None:
        if self.on and entry.get("table") == CLIENT:
            self.stand()
            return
        nft.UNDO[nft.KIND](entry)

    def _state(self) -> tuple[int, int]:
        status = self.file.lstat()
        return status.st_ino, status.st_mtime_ns

    def _write(self, text: str, *, always: bool) -> None:
        try:
            own_directory(self.file.parent)
            with locked_directory(self.file.parent):
                if always or self.on:
                    os.close(replace_file(self.file, text.encode("ascii")))
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be written: {reason_of(error)}") from None

    def _read(self) -> str:
        try:
            handle = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(handle, "rb") as file:
                own = is_own_file(os.fstat(handle))
                text = file.read(MAX_SIZE + 1).decode("ascii", "replace")
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be read: {reason_of(error)}; {_ANEW}") from None
        if not own or len(text) > MAX_SIZE or f"table inet {CLIENT} {{" not in text:
            raise ConfigError(f"{self.file} is not as this program writes it; {_ANEW}")
        return text


_ANEW: Final = f"write it anew: {to_run_as_root('lockdown on')}"


def forget_mark() -> None:
    """Remove the table LOCKDOWN, whether it stands or not. Raises NftError."""
    nft.run(f"add table inet {LOCKDOWN}\ndelete table inet {LOCKDOWN}\n")


def set_mark() -> None:
    """Let the table LOCKDOWN stand. Raises NftError."""
    nft.run(f"add table inet {LOCKDOWN}\n")
