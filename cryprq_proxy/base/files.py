"""Small text files that several processes read and change: one writer at a time, never half a file.

    lock the directory -> read -> change -> write beside it -> fsync -> rename over it -> fsync the directory

Readers need no lock: they find the old file or the new one. The lock is flock(2) on the directory: it leaves no lock
file and ends with its process. A file keeps its mode and its owner: the exit runs as a user of its own and must be able
to read its lists after root has changed them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError, reason_of
from .paths import MAX_FILE, read_text

LOCK_SECONDS: Final = 5.0
"""Longest time that a writer waits for others. Each needs a few milliseconds."""
_POLL: Final = 0.005


class SharedFile:
    """One such file of at most `most` bytes. `what` names it in errors, for example "the list of invites"."""

    def __init__(self, path: Path, what: str, most: int = MAX_FILE) -> None:
        self.path = path
        self.what = what
        self._most = most

    def read(self) -> str:
        """The text of the file, "" if the file does not exist. Raises ConfigError."""
        return read_text(self.path, self.what, most=self._most)[0] if os.path.lexists(self.path) else ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory; create a missing one. Blocks for at most LOCK_SECONDS.

        Raises ConfigError.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                held.enter_context(locked_directory(self.path.parent))
            except OSError as error:
                raise self._unwritable(error) from None
            yield

    def replace(self, text: str) -> None:
        """Replace the text, synced to the disk. Call it inside of `locked`. Raises ConfigError."""
        data = text.encode("utf-8")
        if len(data) > self._most:
            raise ConfigError(f"{self.what} {self.path} would become larger than {self._most >> 20} MiB")
        try:
            os.close(replace_file(Path(os.path.realpath(self.path)), data))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.what} {self.path} cannot be written: {reason_of(error)}")


@contextlib.contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`. Blocks for at most LOCK_SECONDS.

    Raises ConfigError after that time, and OSError.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    give_up = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise ConfigError(f"another program keeps {directory} locked; try again") from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(handle)


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


def is_own_file(status: os.stat_result) -> bool:
    """Whether it is a plain file that no user but this one can read or write."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def is_own_directory(status: os.stat_result) -> bool:
    """Whether no user but this one can add, remove or replace files in it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _inherit(handle: int, path: Path) -> None:
    """Give a new file the mode and owner of the file that it replaces.

    If there is none, and this process is root, the owner of the directory gets the file.
    """
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    owner = path.parent.stat() if old is None else old
    if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (0, os.getegid()):
        os.fchown(handle, owner.st_uid, owner.st_gid)
    if old is not None:
        os.fchmod(handle, old.st_mode & 0o777)
