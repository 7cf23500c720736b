"""The kernel settings that an exit changes on macOS, and how each is set back, by `sysctl`.

Only names from a fixed list are written, also by undo: a journal that was tampered with can switch no others. Undo
writes the old value only where the live one is still ours: a person or program that has changed it since has the last
word. After a reboot the kernel has started from the machine's own settings, so nothing is written.

All functions block for some milliseconds. Not yet run on a Mac; written from sysctl(8).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from functools import partial
from typing import Any, Final

from cryprq_proxy.errors import ConfigError, CryprqError, LocalError

from ..journal import Entry, Record, Undoer, same_boot
from ..reconciler import Fact
from .programs import Command, ProgramError, Run, ask, change, run

FORWARD4: Final = "net.inet.ip.forwarding"
FORWARD6: Final = "net.inet6.ip6.forwarding"
KIND: Final = "mac_sysctl"
"""The kind of our entries in the journal."""
_NAMES: Final = (FORWARD4, FORWARD6)
_VALUE: Final = re.compile(r"-?[0-9]{1,10}")
_ON: Final = "1"
_OFF: Final = "0"


class MacSetting(Fact):
    """One value that some settings have and keep, from `keep` on. The journal has what each was before its first
    change."""

    polled = True

    def __init__(self, name: str, record: Record, run: Run = run) -> None:
        """`name` is for people. Nothing is set before `keep`."""
        self.name = name
        self._record = record
        self._run = run
        self._kept: tuple[str, ...] = ()
        self._recorded: set[str] = set()

    async def keep(self, setting: str) -> None:
        """Switch this on, and keep it; the same again changes nothing. Raises as set_setting."""
        if setting not in self._kept:
            await asyncio.to_thread(self._set, setting)
            self._kept = (*self._kept, setting)

    def _set(self, setting: str) -> None:
        record = _no_record if setting in self._recorded else self._record
        if set_setting(setting, _ON, record, self._run):
            self._recorded.add(setting)

    async def look(self) -> str:
        return await asyncio.to_thread(self._look)

    def _look(self) -> str:
        live = {setting: read_setting(setting, self._run) for setting in self._kept}
        return ", ".join(f"{setting} was {value}" for setting, value in live.items() if value != _ON)

    async def put_back(self) -> None:
        for setting in self._kept:
            await asyncio.to_thread(self._set, setting)


def _no_record(entry: Entry) -> None:
    """An older entry has the value from before."""


def read_setting(name: str, run: Run = run) -> str:
    """A number. Raises ProgramError, CryprqError for an unknown answer."""
    said = ask(run, "sysctl", "-n", name).strip()
    if not _VALUE.fullmatch(said):
        raise CryprqError(f"`sysctl -n {name}` answers in a form that is not understood: {said[:80]!r}")
    return said


def set_setting(name: str, value: str, record: Record, run: Run = run) -> bool:
    """Set `name` to a number; `record` gets the old value first.

    Returns False, with nothing recorded or written, if it has that value already. Raises LocalError for a name or value
    that is not ours, ConfigError where the kernel does not have or allow it, and what `record` raises.
    """
    if name not in _NAMES or not _VALUE.fullmatch(value):
        raise LocalError(f"{name}={value} is not among the settings that this program changes")
    try:
        before = read_setting(name, run)
        if before == value:
            return False
    except ProgramError as error:
        raise ConfigError(f"this kernel has no setting {name}: {error}") from None
    record({"kind": KIND, "name": name, "before": before, "value": value})
    _write(name, value, run)
    return True


def _write(name: str, value: str, run: Run) -> None:
    try:
        change(run, Command(("sysctl", "-w", f"{name}={value}")))
    except ProgramError as error:
        if "not permitted" in str(error) or "ermission denied" in str(error):
            raise ConfigError(f"setting {name}={value} needs root") from None
        raise ConfigError(f"this kernel does not take {name}={value}: {error}") from None
    if (now := read_setting(name, run)) != value:
        raise ConfigError(f"this kernel does not take {name}={value}: it is {now} still")


def undo_setting(entry: Entry, run: Run = run) -> None:
    """Set back what an entry of the journal says, if the value is still ours. Raises CryprqError."""
    name, before = _checked(entry.get("name"), entry.get("before"))
    _, ours = _checked(entry.get("name"), entry.get("value"))
    if same_boot(entry) and read_setting(name, run) == ours:
        _write(name, before, run)


def _checked(name: Any, value: Any) -> tuple[str, str]:
    if name not in _NAMES or not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise CryprqError(
            f"the journal names a kernel setting that this program does not change ({name!r:.80})"
        )
    return name, value


def undoers(run: Run = run) -> dict[str, Undoer]:
    return {KIND: partial(undo_setting, run=run)}


def lost_settings(recorded: Collection[str] = (), run: Run = run) -> str:
    """A sentence about the settings that stand as an exit sets them, without those that a journal knows; empty if there
    are none. Raises CryprqError."""
    found = [name for name in _NAMES if name not in recorded and read_setting(name, run) == _ON]
    if not found:
        return ""
    return (
        "the journal of an earlier run is lost, so nobody knows what it found in the kernel's settings: "
        "if nothing else on this machine needs them, call: sysctl -w "
        + " ".join(f"{name}={_OFF}" for name in found)
    )
