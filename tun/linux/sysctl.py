"""The kernel settings that system-wide mode changes, and how each is set back.

Only names from a fixed list are written, also by undo: a journal that was tampered with can switch no others. Interface
names may have dots; the fixed words around them show where they begin and end.

Undo writes the old value only where the live one is still ours: a person or program that has changed it since has the
last word. After a reboot the kernel has started from the machine's own settings, so nothing is written.

A setting bears no mark. Where the journal of an earlier run is lost, `lost_settings` names those that stand as we set
them; nothing is set back, since another program may need them.

The two forwarding switches change more than themselves: the kernel sets the switch of every interface to match, and
for IPv4 the opposite for accepting redirects. The entry keeps the values that setting the switch back would lose.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cryprq_proxy.base.linux_marks import TABLES
from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.errors import ConfigError, CryprqError, LocalError, reason_of

from ..journal import Entry, Record, Undoer, same_boot
from ..reconciler import Fact

PROC: Final = Path("/proc/sys")

VALID_MARK: Final = "net.ipv4.conf.all.src_valid_mark"
FORWARD4: Final = "net.ipv4.ip_forward"
FORWARD6: Final = "net.ipv6.conf.all.forwarding"
LIBERAL: Final = "net.netfilter.nf_conntrack_tcp_be_liberal"
"""Connections that went on while the exit was not there have sequence numbers that the kernel did not see. It must not
take their packets for invalid (nf_conntrack-sysctl.rst): it would translate their addresses no longer."""

KIND: Final = "sysctl"
"""The kind of our entries in the journal."""

_INTERFACE: Final = r"(?!\.{1,2}\.)[^/\s\x00]{1,15}"
_ALLOWED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(net)\.(ipv4)\.(ip_forward)",
        rf"(net)\.(ipv4)\.(conf)\.({_INTERFACE})\.(forwarding|rp_filter|src_valid_mark|accept_redirects|send_redirects)",
        rf"(net)\.(ipv6)\.(conf)\.({_INTERFACE})\.(forwarding|accept_ra|accept_redirects|disable_ipv6|addr_gen_mode)",
        r"(net)\.(core)\.([rw]mem_max)",
        r"(net)\.(netfilter)\.(nf_conntrack_tcp_be_liberal)",
    )
)
_VALUE: Final = re.compile(r"-?[0-9]{1,10}")
_MAX_FOLLOWERS: Final = 1024
"""Values that one entry keeps beside its own."""

_SWITCHES: Final = {
    "net.ipv4.ip_forward": "net/ipv4/conf/*/forwarding",
    "net.ipv4.conf.all.forwarding": "net/ipv4/conf/*/forwarding",
    "net.ipv6.conf.all.forwarding": "net/ipv6/conf/*/forwarding",
}
"""A switch -> the files that the kernel gives the same value (devinet.c, addrconf.c)."""
_REDIRECTS: Final = "net.ipv4.conf.all.accept_redirects"
"""Gets the opposite of the IPv4 switch."""

_SWITCH: Final = ("1", "0")
_SETTINGS: Final = {
    TABLES["client"]: {VALID_MARK: _SWITCH},
    TABLES["exit"]: {
        FORWARD4: _SWITCH,
        FORWARD6: _SWITCH,
        LIBERAL: _SWITCH,
        "net.ipv6.conf.*.accept_ra": ("2", "1"),
    },
}
"""Our table in the packet filter -> what the role that makes it sets: the setting, our value and the kernel's."""


class KernelSetting(Fact):
    """One value that some settings have and keep, from `keep` on. The journal has what each was before its first
    change."""

    changes = staticmethod(netlink_changes)

    polled = True

    def __init__(self, name: str, value: str, record: Record, proc: Path = PROC) -> None:
        """`name` is for people. Nothing is set before `keep`."""
        self.name = name
        self._value = value
        self._record = record
        self._proc = proc
        self._kept: tuple[str, ...] = ()
        self._recorded: set[str] = set()

    def keep(self, *settings: str) -> None:
        """Set these, with dots as in sysctl(8), and keep them in place of earlier ones; the same again changes
        nothing. Raises as set_sysctl."""
        for setting in settings:
            if setting not in self._kept:
                self._set(setting)
        self._kept = settings

    def _set(self, setting: str) -> None:
        record = _no_record if setting in self._recorded else self._record
        if set_sysctl(setting, self._value, record, self._proc):
            self._recorded.add(setting)

    async def look(self) -> str:
        live = {setting: self._live(setting) for setting in self._kept}
        return ", ".join(f"{setting} was {value}" for setting, value in live.items() if value != self._value)

    def _live(self, setting: str) -> str:
        path = _path(setting, self._value, self._proc)
        try:
            return self._value if path is None else _read(path)
        except FileNotFoundError:
            # It went with its interface or its module.
            return self._value

    async def put_back(self) -> None:
        for setting in self._kept:
            if self._live(setting) != self._value:
                self._set(setting)


def _no_record(entry: Entry) -> None:
    """An older entry has the value from before."""


def set_sysctl(name: str, value: str, record: Record, proc: Path = PROC) -> bool:
    """Set `name` (with dots, as in sysctl(8)) to a number; `record` gets the old value first.

    Returns False, with nothing recorded or written, if it has that value already. Raises LocalError for a name or value
    that is not ours, ConfigError where the kernel does not have or allow it, and what `record` raises.
    """
    path = _path(name, value, proc)
    if path is None:
        raise LocalError(f"{name}={value} is not among the settings that this program changes")
    try:
        before = _read(path)
        if before == value:
            return False
        entry: dict[str, object] = {"kind": KIND, "name": name, "before": before, "value": value}
        if followers := dict(_followers(name, before, proc)):
            entry["followers"] = followers
        record(entry)
        path.write_text(value, encoding="ascii")
        return True
    except PermissionError as error:
        raise ConfigError(f"setting {name}={value} needs root, and /proc/sys writable") from error
    except OSError as error:
        raise ConfigError(f"this kernel does not take {name}={value}: {reason_of(error)}") from error


def before_a_start(name: str, value: str, proc: Path = PROC) -> str | None:
    """What stands in place of `value` now; None where it is that already. "0" where the kernel has no such setting yet,
    as for a module that is loaded later."""
    path = _path(name, value, proc)
    try:
        present = "0" if path is None else _read(path)
    except FileNotFoundError:
        present = "0"
    return None if present == value else present


def undo_sysctl(entry: Entry, proc: Path = PROC) -> None:
    """Set back what an entry of the journal says, if the value is still ours. Raises CryprqError."""
    followers = entry.get("followers", {})
    if not isinstance(followers, Mapping) or len(followers) > _MAX_FOLLOWERS:
        raise CryprqError("the journal's entry of a kernel setting is damaged")
    path, before = _checked(entry.get("name"), entry.get("before"), proc)
    _, ours = _checked(entry.get("name"), entry.get("value"), proc)
    back = [_checked(name, value, proc) for name, value in followers.items()]
    if not same_boot(entry):
        return
    try:
        if _read(path) != ours:
            return
    except OSError:
        # The interface is gone, and its settings with it.
        return
    failed: list[str] = []
    for file, value in ((path, before), *back):
        try:
            _restore(file, value)
        except CryprqError as error:
            # The next undo finds the switch set back and stops there: now or never for the others.
            failed.append(str(error))
    if failed:
        raise CryprqError("; ".join(failed))


UNDO: Final[dict[str, Undoer]] = {KIND: undo_sysctl}


# --- without a journal ---


def lost_settings(table: str, recorded: Collection[str] = (), proc: Path = PROC) -> str:
    """A sentence about the settings that stand as the role of `table` sets them; empty if there are none.

    `recorded` are those that a journal knows.
    """
    found = [f"{name}={usual}" for name, usual in _standing(table, proc) if name not in recorded]
    if not found:
        return ""
    return (
        "the journal of an earlier run is lost, so nobody knows what it found in the kernel's settings: "
        f"if nothing else on this machine needs them, call: sysctl -w {' '.join(map(shlex.quote, found))}"
    )


def _standing(table: str, proc: Path) -> Iterator[tuple[str, str]]:
    for setting, (ours, usual) in _SETTINGS[table].items():
        for path in sorted(proc.glob(setting.replace(".", "/"))):
            parts = path.relative_to(proc).parts
            try:
                stands = path.read_text(encoding="ascii").strip() == ours
            except OSError:
                # With its interface.
                continue
            if stands:
                # sysctl(8) takes either separator; an interface name may have dots.
                yield ("/" if any("." in part for part in parts) else ".").join(parts), usual


def _path(name: Any, value: Any, proc: Path) -> Path | None:
    """The file of an allowed name; None if name or value is not allowed."""
    if isinstance(name, str) and isinstance(value, str) and _VALUE.fullmatch(value):
        for pattern in _ALLOWED:
            if match := pattern.fullmatch(name):
                return proc.joinpath(*match.groups())
    return None


def _checked(name: Any, value: Any, proc: Path) -> tuple[Path, str]:
    if (path := _path(name, value, proc)) is None:
        raise CryprqError(
            f"the journal names a kernel setting that this program does not change ({name!r:.80})"
        )
    return path, value


def _followers(name: str, before: str, proc: Path) -> Iterator[tuple[str, str]]:
    """The settings and values that changing `name` and changing it back would not restore."""
    if name not in _SWITCHES:
        return
    for path in sorted(proc.glob(_SWITCHES[name])):
        if (value := _read(path)) != before:
            yield ".".join(path.relative_to(proc).parts), value
    if name.startswith("net.ipv4."):
        yield _REDIRECTS, _read(proc.joinpath(*_REDIRECTS.split(".")))


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _restore(path: Path, before: str) -> None:
    try:
        if _read(path) != before:
            path.write_text(before, encoding="ascii")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CryprqError(f"{path} could not be set back to {before}: {reason_of(error)}") from error
