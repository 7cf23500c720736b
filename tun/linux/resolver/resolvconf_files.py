"""The files behind a changed resolv.conf: the backup, the change itself, and the undo.

The backup is a file for a file, and a symbolic link for a link. So a journal entry holds only a random tag, and cannot
make the undo write to another path. The first line of our file has the tag too, so all versions that we wrote differ,
and a file is ours only if every byte is equal. A file of another program stays.

In a container or a namespace the file is often bind-mounted, so no file can be renamed over it. Then it is overwritten
in place, in two steps (write, cut), and the journal also knows the state between them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of

from ...journal import Entry, Record
from .resolvconf_text import render

RESOLV_CONF: Final = Path("/etc/resolv.conf")
STATE: Final = Path("/var/lib/cryprq-proxy")
KIND: Final = "resolv.conf"
"""The kind of our entries in the journal."""

MAX_FILE: Final = 65_536
"""Bytes of a resolv.conf that are read; a larger one is refused."""
_TAG: Final = re.compile(r"[0-9a-f]{16}")
_UNCHANGEABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_WAS: Final = ("file", "link", "missing")


class UnchangeableError(ConfigError):
    """The file is where nobody can change it: on a read-only file system, or protected. Nothing has been changed."""


class BackupLostError(ConfigError):
    """Our file stands, and what it took the place of is gone from the state directory."""


class Untouched:
    """A resolv.conf that we have not replaced, or have put back."""

    ours = b""
    """The content of our file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_overwritten(self, seen: str | bytes | None) -> bool:
        """Whether `seen` (a link's target or a file's content) has replaced our file."""
        return False

    def nameservers(self) -> tuple[str, ...]:
        """The earlier name servers. Raises ConfigError."""
        return nameservers(content_of(self._path))

    def forget(self) -> None:
        """Remove the backup, if there is one. Raises OSError."""

    def undo(self) -> None:
        """Restore the earlier file, if our file is still there. Raises ConfigError."""


class Replaced(Untouched):
    """A resolv.conf with our file in its place, made by `replace`."""

    def __init__(self, path: Path, state: Path, entry: Entry, ours: bytes) -> None:
        super().__init__(path)
        self.ours = ours
        self._state = state
        self._entry = entry
        self._saved = backup_of(state, entry["tag"])

    def is_overwritten(self, seen: str | bytes | None) -> bool:
        return seen != self.ours

    def nameservers(self) -> tuple[str, ...]:
        """The name servers in the backup, or in the target of its link."""
        saved = self._saved
        try:
            return nameservers(read(self._path.parent / os.readlink(saved) if saved.is_symlink() else saved))
        except OSError:
            return ()

    def forget(self) -> None:
        _remove(self._saved)

    def undo(self) -> None:
        undo(self._entry, path=self._path, state=self._state)


def replace(path: Path, state: Path, content: bytes, addresses: Sequence[str], record: Record) -> Replaced:
    """Back up `path` in `state`, journal it and write our file, with `addresses` as its name servers.

    `content` is that of the file at `path`. Raises ConfigError, with nothing changed.
    """
    tag = secrets.token_hex(8)
    saved = backup_of(state, tag)
    ours = render(addresses, content, tag)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        was = _copy(path, saved)
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove(saved)
        raise ConfigError(f"{path} cannot be backed up in {state}: {_reason(error)}") from None
    # The second and the third are the states between the two steps of overwriting in place, and of undoing it.
    states = (ours, ours + content[len(ours) :], content + ours[len(content) :])
    entry = {"kind": KIND, "tag": tag, "was": was, "ours": [_digest(content) for content in states]}
    try:
        record(entry)
        write(path, ours)
    except CryprqError:
        _remove(saved)
        raise
    return Replaced(path, state, entry, ours)


def content_of(path: Path) -> bytes:
    """The content of `path`. Raises ConfigError."""
    try:
        return read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {_reason(error)}") from None


def undo(entry: Entry, *, path: Path = RESOLV_CONF, state: Path = STATE) -> None:
    """Restore `path` as it was before the change of `entry`, if it is still our file.

    The backup is always removed at the end. Idempotent. Raises BackupLostError, and ConfigError, also for an entry
    that is not ours.
    """
    tag, was, ours = entry.get("tag"), entry.get("was"), entry.get("ours")
    if not (
        isinstance(tag, str)
        and _TAG.fullmatch(tag)
        and was in _WAS
        and isinstance(ours, list)
        and len(ours) <= 3
    ):
        raise ConfigError("the journal holds an entry for resolv.conf that this program did not write")
    backup = backup_of(state, tag)
    try:
        _remove(_temporary(path))
        if _still(path, ours):
            if was == "missing":
                path.unlink()
            elif os.path.lexists(backup):
                put_back(path, backup)
            else:
                raise BackupLostError(f"the backup of {path}, {backup}, is gone")
    except OSError as error:
        raise ConfigError(f"{path} cannot be put back from {backup}: {_reason(error)}") from None
    try:
        _remove(backup)
    except OSError as error:
        raise ConfigError(
            f"{path} is put back, but its backup {backup} cannot be removed: {_reason(error)}"
        ) from None


def _still(path: Path, ours: list[Any]) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        return _digest(read(path)) in ours
    except FileNotFoundError:
        return False


def put_back(path: Path, backup: Path) -> None:
    """Make `path` what `backup` is, a file or a link. Raises OSError, ConfigError."""
    found = backup.lstat()
    if stat.S_ISLNK(found.st_mode):
        lead_to(path, os.readlink(backup))
    elif stat.S_ISREG(found.st_mode):
        write(path, read(backup), stat.S_IMODE(found.st_mode) & 0o777, found)
    else:
        raise OSError("the backup is not a file")


def lead_to(path: Path, target: str) -> None:
    """Make `path` a link to `target`, in one step. Raises OSError."""
    temporary = _temporary(path)
    _remove(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)


def _copy(path: Path, backup: Path) -> str:
    """Copy `path` to `backup`. Returns which of `_WAS` it is. Raises OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return "missing"
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(path), backup)
        return "link"
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is neither a file nor a link")
    _create(backup, read(path), stat.S_IMODE(found.st_mode) & 0o777, found)
    return "file"


def write(path: Path, content: bytes, mode: int = 0o644, owner: os.stat_result | None = None) -> None:
    """Make `path` a file of this content, in one step where that is possible. Raises ConfigError."""
    temporary = _temporary(path)
    try:
        try:
            _remove(temporary)
            _create(temporary, content, mode, owner)
            os.rename(temporary, path)
        except OSError as error:
            # EBUSY: a mount point. The others: a directory that cannot be written, with a file that perhaps can.
            with contextlib.suppress(OSError):
                _remove(temporary)
            if error.errno not in (errno.EBUSY, *_UNCHANGEABLE):
                raise
            if path.is_symlink():
                raise
            _overwrite(path, content)
    except OSError as error:
        kind = UnchangeableError if error.errno in _UNCHANGEABLE else ConfigError
        raise kind(f"{path} cannot be changed: {_reason(error)}") from None


def _create(path: Path, content: bytes, mode: int, owner: os.stat_result | None) -> None:
    """A new file that is on the disk when this returns, with the times and the owner of `owner` where that is given."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb", closefd=True) as file:
        file.write(content)
        file.flush()
        # Whatever the umask is.
        os.fchmod(fd, mode)
        if owner is not None:
            os.fchown(fd, owner.st_uid, owner.st_gid)
            os.utime(fd, ns=(owner.st_atime_ns, owner.st_mtime_ns))
        os.fsync(fd)


def _overwrite(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        written = os.pwrite(fd, content, 0)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, len(content))
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """The content of `path`; empty if it is missing or a dangling link. Raises OSError, also for a huge file."""
    try:
        # A pipe at this path must not block the program.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with open(fd, "rb", closefd=True) as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content


def backup_of(state: Path, tag: str) -> Path:
    """Where the file from before the change with this tag is kept."""
    return state / f"resolv.conf.{tag}"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.cryprq-proxy")


def _remove(path: Path) -> None:
    # A read-only file system reports an error even for a missing file.
    if os.path.lexists(path):
        path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _reason(error: OSError) -> str:
    if error.errno == errno.EPERM and os.geteuid() == 0:
        return "it is protected from changes (see lsattr; chattr -i lifts that)"
    if error.errno == errno.EROFS:
        return "its file system is read-only"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "permission denied; run this as root"
    return reason_of(error)
