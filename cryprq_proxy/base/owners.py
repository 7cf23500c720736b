"""Who decides what a path leads to, and how root gives up its rights.

/etc/cryprq belongs to the user that the service runs as. A process of that user can replace a file there with a link
between any two system calls of root, and so lead root to a file outside. No check by root closes this: only the user's
own rights do, with which such a link leads nowhere that the user could not go. So root opens no file where another user
decides; a child that has become that user does it (deputy.py).

The look at a path is no race: its components are looked up in turn, each in a directory of root, and it ends at the
first one that another user could exchange.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import ConfigError, reason_of

ROOT: Final = 0
MAX_LINKS: Final = 40
"""Links in one path, as in the kernel (path_resolution(7))."""
_NOBODY: Final = 65534
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP: Final = 24
_PR_SET_DUMPABLE: Final = 4
_MAX_CAPABILITY: Final = 63


class Owner(NamedTuple):
    """The user who decides, and what of a path is his: `base` and all below. `rest` is the path from there on."""

    uid: int
    gid: int
    base: Path
    rest: Path

    @property
    def name(self) -> str:
        return user_name(self.uid)


def user_name(uid: int) -> str:
    """The name of a user for a sentence; the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def foreign_home() -> str:
    """The end of a sentence about a file that is looked for in HOME: whose that is, if not this user's."""
    home = os.environ.get("HOME", "")
    try:
        owner = os.stat(home).st_uid
    except OSError:
        return f"; HOME is {home}" if home else ""
    return "" if owner == os.geteuid() else f"; HOME is {home}, of the user {user_name(owner)}"


def others_can_write(mode: int, uid: int, gid: int) -> bool:
    """Whether more users than the owner can change it. A group in which the owner is alone counts for the owner."""
    return bool(mode & 0o002) or (bool(mode & 0o020) and not _is_private_group(uid, gid))


def _is_private_group(uid: int, gid: int) -> bool:
    """Whether it is the group that useradd(8) makes for one user: with the user's name, without other members, and no
    other user's own group."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    if user.pw_gid != gid or group.gr_name != user.pw_name or set(group.gr_mem) - {user.pw_name}:
        return False
    return all(other.pw_uid == uid for other in pwd.getpwall() if other.pw_gid == gid)


# --- who decides ---


def owner_of(path: Path) -> Owner:
    """The owner of the first component of `path` that does not belong to root; root if there is none. Call it as root.

    The end of the path may be missing: then its nearest directory counts. Links of root are followed. Raises
    ConfigError if any user can decide, because a directory of root on the path is open to all.
    """
    try:
        return _first_foreign(path)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "the path is invalid"
        raise ConfigError(f"{path} cannot be looked up: {reason}") from None


def _first_foreign(path: Path) -> Owner:
    real, links = Path("/"), 0
    rest = _parts(Path.cwd() / path)
    while True:
        status = real.lstat()
        if status.st_uid != ROOT or not rest:
            if status.st_uid == ROOT:
                _check_closed(real, status)
            return Owner(status.st_uid, status.st_gid, real, Path(*reversed(rest)))
        name = rest.pop()
        if name == "..":
            real = real.parent
            continue
        if not status.st_mode & stat.S_ISVTX:
            # Where the bit is set, as in /tmp, nobody can exchange what belongs to another user.
            _check_closed(real, status)
        entry = real / name
        try:
            found = entry.lstat()
        except FileNotFoundError:
            _check_closed(real, status)
            return Owner(ROOT, status.st_gid, real, Path(name, *reversed(rest)))
        if not stat.S_ISLNK(found.st_mode) or found.st_uid != ROOT:
            real = entry
            continue
        links += 1
        if links > MAX_LINKS:
            raise ConfigError(f"{path} leads through more than {MAX_LINKS} links")
        target = Path(os.readlink(entry))
        real = Path("/") if target.is_absolute() else real
        rest += _parts(target)


def _parts(path: Path) -> list[str]:
    """The components, the first one last."""
    return [part for part in reversed(path.parts) if part != "/"]


def _check_closed(directory: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode) and others_can_write(status.st_mode, status.st_uid, status.st_gid):
        raise ConfigError(
            f"several users can write to {directory}: as root, use files in a directory to which one user can write"
        )


def require_own(path: Path, what: str) -> None:
    """As root, raise ConfigError if another user decides what `path` leads to. `what` names the file."""
    if os.geteuid() == ROOT and (owner := owner_of(path)).uid != ROOT:
        if not owner.rest.parts and not owner.base.is_dir():
            raise ConfigError(f"{what} {path} belongs to the user {owner.name}; run: chown root {path}")
        raise ConfigError(
            f"{what} {path} is in the hands of the user {owner.name}, who could lead root to another file: use a file "
            "in a directory of root, or run this as that user"
        )


def require_name(path: Path, what: str) -> None:
    """As root, raise ConfigError if another user decides in which directory `path` lies. The directory itself may be
    another user's: a name that is made or removed in it, and not followed, leads nowhere else."""
    if os.geteuid() != ROOT:
        return
    owner = owner_of(path.parent)
    if owner.uid != ROOT and (owner.rest.parts or owner.base.is_symlink()):
        raise ConfigError(
            f"{what} {path} lies where the user {owner.name} decides, who could lead root to another directory: "
            "choose a path in a directory of root"
        )


# --- how root becomes another user ---


def become(owner: Owner) -> None:
    """Give up groups, group, user and capabilities for good; no set-user-id program gives any back.

    The process becomes undumpable, so that no other process of the user can look into it (ptrace(2)); with
    fs.suid_dumpable=1 the kernel would leave it open. Raises OSError, with EPERM also if a right was left over.
    """
    if sys.platform != "linux":
        raise PermissionError(1, "only Linux can do that")
    gid = _group_of(owner)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _failed()
    for capability in range(_MAX_CAPABILITY + 1):
        # It fails for numbers that the kernel does not know, and without CAP_SETPCAP: then the flag above is enough.
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    # While the saved group is another one, ptrace(2) is refused: between the change of the user, which may make the
    # process dumpable, and the next line.
    os.setresgid(gid, gid, os.getegid())
    os.setresuid(owner.uid, owner.uid, owner.uid)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise _failed()
    os.setresgid(gid, gid, gid)
    if {*os.getresuid()} != {owner.uid} or {*os.getresgid()} != {gid} or os.getgroups() or _capabilities():
        raise PermissionError(1, os.strerror(1))


def _failed() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _group_of(owner: Owner) -> int:
    """The user's own group; of a user without an entry, that of the directory, unless it is root's."""
    try:
        return pwd.getpwuid(owner.uid).pw_gid
    except KeyError:
        return owner.gid or _NOBODY


def _capabilities() -> int:
    """The permitted, effective and ambient ones of this process, as bits (proc(5))."""
    held = 0
    for line in Path("/proc/self/status").read_bytes().splitlines():
        name, _, bits = line.partition(b":\t")
        if name in (b"CapPrm", b"CapEff", b"CapAmb"):
            held |= int(bits, 16)
    return held
