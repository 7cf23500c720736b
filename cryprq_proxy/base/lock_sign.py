"""The sign of life on macOS, which has no abstract sockets: a file with the process id, locked by flock(2).

The lock ends with its process, whatever ends that. /var/run belongs to root, and is emptied at each boot. Every user
can read the file, so every user can lock it too, but write no process id into it: the lock counts only with a process
that lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

DIRECTORY: Path = Path("/var/run")
_MAX_PID: Final = 20
"""Characters."""
_TRIES: Final = 5
_POLL: Final = 0.02
"""Who looks has the lock for some microseconds, and the process id follows the lock."""


class LockSign:
    """The sign of `name`, once `take` has returned True."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file = -1
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
        if self._file >= 0:
            # The file stays: another process may wait at it.
            os.close(self._file)

    def take(self) -> bool:
        """Whether it is this process's now. Blocks for up to 0.1 s where another one looks."""
        try:
            if self._file < 0:
                self._file = os.open(lock_file(self._name), os.O_RDWR | os.O_CREAT | _SAFE, 0o644)
                # Whatever the mask: every user may look.
                os.fchmod(self._file, 0o644)
            for _ in range(_TRIES):
                if self._taken or _locked(self._file, fcntl.LOCK_EX):
                    self._taken = True
                    os.ftruncate(self._file, 0)
                    os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
                    return True
                if holder(self._name) is not None:
                    return False
                time.sleep(_POLL)
        except OSError:
            return False
        return False

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Who looks at a file needs no answer."""
        return contextlib.nullcontext()


def holder(name: str) -> int | None:
    """The process id of who has the sign of `name`, None if nobody has it."""
    with contextlib.suppress(OSError), _opened(name) as file:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return None
        if _locked(file, fcntl.LOCK_SH):
            return None
        pid = os.pread(file, _MAX_PID, 0).decode("ascii", "replace").strip()
        return int(pid) if pid.isdecimal() and _lives(int(pid)) else None
    return None


def lock_file(name: str) -> Path:
    return DIRECTORY / f"cryprq-proxy-{name}.lock"


_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    file = os.open(lock_file(name), os.O_RDONLY | _SAFE)
    try:
        yield file
    finally:
        os.close(file)


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    except OverflowError:
        return False
    return True
