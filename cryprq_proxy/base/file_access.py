"""The few things that are done to a file of the configuration, and with whose rights.

Usually they are those of this process. As root they hold only for paths on which root alone decides (owners.py). Where
root works with the configuration of another user, a deputy does the same things as that user (deputy.py):

    access_for(path)     the deputy that serves the path, else this process after a look at the path
    open_own(path)       a file that this process reads itself, after the same look
    FileAccess           read, replace, create, rename, lock: by path, and all errors are OSError
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from ..errors import ConfigError, reason_of
from .owners import ROOT, foreign_home, others_can_write, require_own, user_name

type Mark = tuple[int, int, int, int] | None
"""Device, inode, time of the last change in ns, size; None if stat(2) fails."""


class FileContent(NamedTuple):
    """What was read, at most as many bytes as asked for, and who may do what with the file."""

    data: bytes
    mode: int
    uid: int
    gid: int


class FileAccess:
    """With the rights of this process. With `links` false a file that is a link is never followed: reading fails, and
    replacing replaces the link."""

    def __init__(self, *, links: bool = True) -> None:
        self._links = links

    @property
    def uid(self) -> int:
        """The user with whose rights it works."""
        return os.geteuid()

    def serves(self, path: Path) -> bool:
        """Whether files at `path` are opened with these rights."""
        return True

    def exists(self, path: Path) -> bool:
        """Whether there is a file, a directory or a link. Raises OSError if that cannot be seen."""
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return True

    def mark(self, path: Path) -> Mark:
        """The state of a file, to compare with a later one."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size

    def read(self, path: Path, most: int) -> FileContent:
        """At most `most` bytes of a file. Of what is no regular file only the mode is told. Raises OSError."""
        # Non-blocking, so that a FIFO in the file's place cannot stop this process.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        handle = os.open(path, flags if self._links else flags | os.O_NOFOLLOW)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            data = file.read(most) if stat.S_ISREG(status.st_mode) else b""
        return FileContent(data, status.st_mode, status.st_uid, status.st_gid)

    def replace(self, path: Path, data: bytes) -> None:
        """Replace the content in one step, synced to the disk. Hold the lock. Raises OSError and ConfigError."""
        if self._links:
            path = Path(os.path.realpath(path))
            require_own(path.parent, "the directory")
        os.close(replace_file(path, data))

    def create(self, path: Path, data: bytes) -> None:
        """Write a new file for its owner alone, synced to the disk. Raises OSError; FileExistsError if there is one."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(handle, data, 0)
            os.fsync(handle)
            sync_directory(path.parent)
        except BaseException:
            # A later start must not find half a file.
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file, or a link and not what it leads to. Raises OSError."""
        os.unlink(path)

    def make_directory(self, directory: Path) -> None:
        """Make a missing directory, for its owner alone, and those above it. Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self, directory: Path) -> int:
        """Take the lock of `directory`, flock(2); returns what `unlock` wants. Raises BlockingIOError if another
        process has it, and OSError."""
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def unlock(self, lock: int) -> None:
        os.close(lock)


OWN: Final = FileAccess()
_deputies: Final[list[FileAccess]] = []


def appoint(deputy: FileAccess) -> None:
    """Let `deputy` open what it serves from now on."""
    _deputies.append(deputy)


def deputy_for(path: Path) -> FileAccess | None:
    """The deputy that opens files at `path`, if there is one."""
    return next((deputy for deputy in _deputies if deputy.serves(path)), None)


def access_for(path: Path, what: str) -> FileAccess:
    """The rights for `path`. As root, raises ConfigError if another user decides on it whom no deputy stands for."""
    if (deputy := deputy_for(path)) is not None:
        return deputy
    require_own(path, what)
    return OWN


def open_own(path: Path, what: str) -> BinaryIO:
    """A regular file, opened for reading by this process itself. `what` names it. For files that no deputy can read:
    they are too large, or a library reads them.

    As root, raises ConfigError if another user decides what the path leads to, or has written the configuration that
    names it. Nothing is read of what is no regular file, and no pipe stops this process. Raises OSError.
    """
    require_own(path, what)
    if deputy_for(path) is not None:
        raise ConfigError(
            f"root opens {what} {path} itself, and not for the configuration of another user: run this as that user"
        )
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{what} {path} is not a regular file")
        if os.geteuid() == ROOT and status.st_uid != ROOT:
            raise ConfigError(f"{what} {path} belongs to the user {user_name(status.st_uid)}")
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_list(path: Path) -> BinaryIO:
    """`open_own` as an OpenList of rules/lists.py."""
    return open_own(path, "the list")


def path_again(file: BinaryIO, path: Path) -> str:
    """For a library that opens paths only: one that leads root to the opened `file`, whatever `path` leads to now."""
    return f"/proc/self/fd/{file.fileno()}" if sys.platform == "linux" and os.geteuid() == ROOT else str(path)


def mark(path: Path) -> Mark:
    """The state of a file. It is looked at, and not opened, so root looks at any."""
    return (deputy_for(path) or OWN).mark(path)


def exists(path: Path, what: str) -> bool:
    """Whether there is a file. Raises ConfigError if that cannot be said; `what` names the file."""
    try:
        return access_for(path, what).exists(path)
    except OSError as error:
        whose = foreign_home() if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{what} {path} cannot be looked up: {reason_of(error)}{whose}") from None


# --- steps ---


def replace_file(path: Path, data: bytes) -> int:
    """Replace the content of the file at `path` with `data` in one step, synced to the disk.

    A crash leaves the old file or the new one. Hold a lock: only one process at a time may replace a file. Returns the
    descriptor of the new file; the caller closes it. Raises OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    # A killed writer may have left one.
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _inherit(handle, path)
        write_all(handle, data, 0)
        os.fsync(handle)
        os.replace(fresh, path)
        sync_directory(path.parent)
    except BaseException:
        os.close(handle)
        fresh.unlink(missing_ok=True)
        raise
    return handle


def write_all(handle: int, data: bytes, position: int) -> None:
    """Write `data` at `position`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, position)
        view = view[written:]
        position += written


def sync_directory(directory: Path) -> None:
    """Sync the names in `directory`, so that a new or renamed file survives a crash. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _inherit(handle: int, path: Path) -> None:
    """Give a new file the mode and the group of the file that it replaces, if that one is this user's or root's.

    It stays this user's own: who could write the old file must not get what this process writes. Not kept is a
    permission to write that others have, for which a reader would refuse the file after every replacement, and the
    rights of a group that this user cannot give a file to: they would be another group's.
    """
    try:
        old = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(old.st_mode) or old.st_uid not in (ROOT, os.geteuid()):
        return
    mode = old.st_mode & 0o777
    if others_can_write(mode, old.st_uid, old.st_gid):
        mode &= ~0o022
    if os.fstat(handle).st_gid != old.st_gid:
        try:
            os.fchown(handle, -1, old.st_gid)
        except PermissionError:
            mode &= ~0o070
    os.fchmod(handle, mode)
