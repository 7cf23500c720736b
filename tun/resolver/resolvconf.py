"""The system's resolver where /etc/resolv.conf decides: replaced while the tunnel stands, and put back as it was.

    what stands there  ->  backup in the state directory  ->  journal  ->  ours, by rename
    ours               ->  what the backup holds, by rename  ->  backup removed

The backup is a copy of the thing itself: a file for a file, a symbolic link for a link. So the journal names nothing
but a random tag, and nothing that stands in a journal can make the undo write anywhere else. The tag is in the first
line of our file too: every version we ever wrote differs from every other, and "still ours" means byte for byte.
What is no longer ours belongs to whoever wrote it and stays.

In a container or a namespace the file is often bind-mounted, so that no other can be renamed over it; then it is
overwritten in place, in two steps (write, cut), and the journal knows the state between them too.

Another program that overwrites the file (a DHCP client, a connection manager) has news: what it wrote becomes the new
backup, and our file is put back. Whoever overwrites it again and again is met slowly, and is named in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import logging
import os
import re
import secrets
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryprq_proxy.base.text import reason_of
from cryprq_proxy.errors import ConfigError

from ..journal import Record, Undoer

_log = logging.getLogger(__name__)

RESOLV_CONF: Final = Path("/etc/resolv.conf")
STATE: Final = Path("/var/lib/cryprq-proxy")
KIND: Final = "resolv.conf"
"""The kind of our entries in the journal."""

MAX_FILE: Final = 65_536
"""Bytes of a resolv.conf that are read; a larger one is refused."""
MAX_NAMESERVERS: Final = 8
"""Name servers taken from a file; the C library takes three (resolv.conf(5))."""
INTERVAL: Final = 1.0
"""Seconds between two looks at the file."""
FIGHT: Final = 5
"""So many times within `FIGHT_SECONDS` our file is put back at once; then it is left alone for as long."""
FIGHT_SECONDS: Final = 60.0
MAX_REPAIRS: Final = 500
"""Then the file is left alone: each time leaves a line in the journal, which must not grow for ever."""

_MARKER: Final = "# cryprq-proxy "
_TAG: Final = re.compile(r"[0-9a-f]{16}")
_DROPPED_OPTIONS: Final = frozenset({"trust-ad", "inet6"})
"""`trust-ad` was said about another resolver."""


class ResolvConf:
    """`SystemResolver` by way of the file. `state` is where the backup goes; the rest is for tests."""

    kind: Final = "resolv.conf"

    def __init__(
        self,
        path: Path = RESOLV_CONF,
        state: Path = STATE,
        *,
        interval: float = INTERVAL,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._state = state
        self._interval = interval
        self._pause = pause
        self._clock = clock
        self._record: Record | None = None
        self._addresses: tuple[str, ...] = ()
        self._entry: Mapping[str, object] | None = None
        self._ours = b""
        self._repairs = 0

    @property
    def repairs(self) -> int:
        """How often another program overwrote the file and ours was put back."""
        return self._repairs

    async def set(self, addresses: Sequence[str], index: int, name: str, record: Record) -> None:
        """Make `addresses` the name servers of the system; `record` gets the journal's entry before the change.

        The interface does not matter here. Called again, it first restores what was there. Raises ConfigError.
        """
        await self.restore()
        self._record = record
        self._addresses = tuple(addresses)
        content = self._content()
        if content.startswith(_MARKER.encode()):
            raise ConfigError(
                f"{self._path} was left by an earlier run whose journal is gone; put your own in its place "
                f"(for example a line 'nameserver ADDRESS') and start again"
            )
        self._replace(content)

    async def watch(self) -> None:
        """Put our file back whenever another program has overwritten it; runs until cancelled.

        It acts on what two looks have found alike, so that half a file is not taken for the news.
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
            if self._entry is None or now == self._ours or now != before:
                continue
            if self._repairs >= MAX_REPAIRS:
                _log.error(
                    "another program has overwritten %s %d times and keeps it now", self._path, MAX_REPAIRS
                )
                return
            self._repairs += 1
            recent.append(self._clock())
            try:
                self._repair()
            except ConfigError as error:
                _log.warning("%s", error)
            else:
                _log.info("another program had overwritten %s: our resolver is set again", self._path)

    async def restore(self) -> None:
        """Put back what was there, unless another program has overwritten our file. Raises ConfigError."""
        entry, self._entry, self._ours = self._entry, None, b""
        if entry is not None:
            undo(entry, path=self._path, state=self._state)

    def upstreams(self) -> tuple[str, ...]:
        """The name servers from before, the newest that are known: what the exit's own name is resolved with."""
        if self._entry is None:
            return nameservers(self._content())
        backup = _backup(self._state, str(self._entry["tag"]))
        try:
            if backup.is_symlink():
                backup = self._path.parent / os.readlink(backup)
            return nameservers(_read(backup))
        except OSError:
            return ()

    def _repair(self) -> None:
        content = self._content()
        entry = self._entry
        if entry is None or not content.startswith(_MARKER.encode()):
            self._replace(content)
        else:  # an older one of ours, which some program had saved: no news
            _write(self._path, self._ours, 0o644)

    def _replace(self, content: bytes) -> None:
        """Back up what stands there, `content` being what it says, and write our file."""
        assert self._record is not None  # set() came first
        tag = secrets.token_hex(8)
        ours = render(self._addresses, content, tag)
        old = self._entry
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            was = _copy(self._path, _backup(self._state, tag))
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be backed up in {self._state}: {_why(error)}") from None
        # The second and the third are the states between the two steps of overwriting in place, and of undoing it.
        states = (ours, ours + content[len(ours) :], content + ours[len(content) :])
        entry = {"kind": KIND, "tag": tag, "was": was, "ours": [_digest(state) for state in states]}
        self._record(entry)
        try:
            _write(self._path, ours, 0o644)
        except ConfigError:
            _remove(_backup(self._state, tag))
            raise
        self._entry, self._ours = entry, ours
        if old is not None:
            _remove(_backup(self._state, str(old["tag"])))

    def _content(self) -> bytes:
        try:
            return _read(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {_why(error)}") from None

    def _seen(self) -> str | bytes | None:
        """What stands there: where a link leads, what a file says, or None."""
        try:
            return os.readlink(self._path) if self._path.is_symlink() else _read(self._path)
        except OSError:
            return None


def render(addresses: Sequence[str], before: bytes, tag: str) -> bytes:
    """Our resolv.conf: `addresses` as its name servers, with the search domains and options that `before` had."""
    kept = []
    for words in _lines(before):
        if words[0] == "options":
            words = [word for word in words if word not in _DROPPED_OPTIONS]
        if words[0] in ("search", "domain", "options") and len(words) > 1:
            kept.append(" ".join(words))
    lines = [
        f"{_MARKER}{tag}: all names are resolved through the tunnel while it stands.",
        "# What was here before comes back when it ends, or with: cryprq-proxy cleanup",
        *(f"nameserver {address}" for address in addresses),
        *kept,
    ]
    return ("\n".join(lines) + "\n").encode("ascii")


def nameservers(content: bytes) -> tuple[str, ...]:
    """The addresses of the `nameserver` lines, at most `MAX_NAMESERVERS`, each once; what is no address is skipped.

    A link-local IPv6 address keeps its zone.
    """
    found: dict[str, None] = {}
    for words in _lines(content):
        if words[0] == "nameserver" and len(words) > 1 and len(found) < MAX_NAMESERVERS:
            with contextlib.suppress(ValueError):
                found[str(ipaddress.ip_address(words[1]))] = None
    return tuple(found)


def undo(entry: Mapping[str, Any], *, path: Path = RESOLV_CONF, state: Path = STATE) -> None:
    """Put back what stood at `path` before the change of `entry`, if the file is still the one we wrote.

    Whatever happens to the file, the backup is removed at the end. Idempotent. Raises ConfigError, also for an entry
    that is none of ours.
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
    backup = _backup(state, tag)
    try:
        _remove(_temporary(path))
        if _still(path, ours):
            _put_back(path, backup, was)
        _remove(backup)
    except OSError as error:
        raise ConfigError(f"{path} cannot be put back from {backup}: {_why(error)}") from None


def undoers(path: Path = RESOLV_CONF, state: Path = STATE) -> dict[str, Undoer]:
    """`UNDO` for another file or state directory."""
    return {KIND: lambda entry: undo(entry, path=path, state=state)}


UNDO: Final[dict[str, Undoer]] = undoers()


_WAS: Final = ("file", "link", "missing")


def _still(path: Path, ours: list[Any]) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        return _digest(_read(path)) in ours
    except FileNotFoundError:
        return False


def _put_back(path: Path, backup: Path, was: str) -> None:
    if was == "missing":
        path.unlink()
    elif was == "link":
        temporary = _temporary(path)
        os.symlink(os.readlink(backup), temporary)
        os.rename(temporary, path)
    else:
        found = backup.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError("the backup is not a file")
        _write(path, _read(backup), stat.S_IMODE(found.st_mode) & 0o777, found)


def _copy(path: Path, backup: Path) -> str:
    """Make `backup` what `path` is, and say which of `_WAS` that is. Raises OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return "missing"
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(path), backup)
        return "link"
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is neither a file nor a link")
    _create(backup, _read(path), stat.S_IMODE(found.st_mode) & 0o777, found)
    return "file"


def _write(path: Path, content: bytes, mode: int, owner: os.stat_result | None = None) -> None:
    """Make `path` a file of this content, in one step where that is possible. Raises ConfigError."""
    temporary = _temporary(path)
    try:
        try:
            _remove(temporary)
            _create(temporary, content, mode, owner)
            os.rename(temporary, path)
        except OSError as error:
            # EBUSY: a mount point. The others: a directory that cannot be written, with a file that perhaps can.
            if error.errno not in (errno.EBUSY, errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            with contextlib.suppress(OSError):
                _remove(temporary)
            if path.is_symlink():
                raise
            _overwrite(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be changed: {_why(error)}") from None


def _create(path: Path, content: bytes, mode: int, owner: os.stat_result | None) -> None:
    """A new file that is on the disk when this returns, with the times and the owner of `owner` where that is given."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb", closefd=True) as file:
        file.write(content)
        file.flush()
        os.fchmod(fd, mode)  # the umask does not count
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


def _read(path: Path) -> bytes:
    """What `path` says; nothing where it is missing or a dangling link. Raises OSError, also for a huge one."""
    try:
        # A pipe in this place must not hold the program.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with open(fd, "rb", closefd=True) as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content


def _lines(content: bytes) -> list[list[str]]:
    """The words of each line that is neither empty nor a comment. Lines with control or foreign characters are none."""
    found = []
    for raw in content.split(b"\n"):
        line = raw.strip().decode("ascii", "replace")
        if line and line[0] not in "#;" and all(char == "\t" or " " <= char <= "~" for char in line):
            found.append(line.split())
    return found


def _backup(state: Path, tag: str) -> Path:
    return state / f"resolv.conf.{tag}"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.cryprq-proxy")


def _remove(path: Path) -> None:
    if os.path.lexists(path):  # on a read-only file system even what is not there cannot be removed
        path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM and os.geteuid() == 0:
        return "it is protected from changes (see lsattr; chattr -i lifts that)"
    if error.errno == errno.EROFS:
        return "its file system is read-only"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "permission denied; run this as root"
    return reason_of(error)
