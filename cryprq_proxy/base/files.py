"""Small text files that several processes read and change: one writer at a time, never half a file.

    lock the directory -> read -> change -> write beside it -> fsync -> rename over it -> fsync the directory

Readers need no lock: they find the old file or the new one. The lock is flock(2) on the directory: it leaves no lock
file and ends with its process. A file keeps its mode and its group, unless it belongs to a stranger.
Whose rights count says file_access.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError, reason_of
from .file_access import OWN, FileAccess, access_for, exists
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
        return read_text(self.path, self.what, most=self._most)[0] if exists(self.path, self.what) else ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory; create a missing one. Blocks for at most LOCK_SECONDS.

        Raises ConfigError.
        """
        directory = self.path.parent
        access = access_for(directory, f"the directory of {self.what},")
        with contextlib.ExitStack() as held:
            try:
                access.make_directory(directory)
                held.enter_context(locked_directory(directory, access))
            except OSError as error:
                raise self._unwritable(error) from None
            yield

    def replace(self, text: str) -> None:
        """Replace the text, synced to the disk. Call it inside of `locked`. Raises ConfigError."""
        data = text.encode("utf-8")
        if len(data) > self._most:
            raise ConfigError(f"{self.what} {self.path} would become larger than {self._most >> 20} MiB")
        access = access_for(self.path.parent, f"the directory of {self.what},")
        try:
            access.replace(self.path, data)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.what} {self.path} cannot be written: {reason_of(error)}")


@contextlib.contextmanager
def locked_directory(directory: Path, access: FileAccess = OWN) -> Iterator[None]:
    """Hold the lock of `directory`. Blocks for at most LOCK_SECONDS.

    Raises ConfigError after that time, and OSError.
    """
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock = access.lock(directory)
            break
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise ConfigError(f"another program keeps {directory} locked; try again") from None
            time.sleep(_POLL)
    try:
        yield
    finally:
        access.unlock(lock)


def is_own_file(status: os.stat_result) -> bool:
    """Whether it is a plain file that no user but this one can read or write."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def is_own_directory(status: os.stat_result) -> bool:
    """Whether no user but this one can add, remove or replace files in it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
