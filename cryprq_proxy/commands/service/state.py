"""The state directory, for a service: given to its user like the configuration, with the first flights that the exit of
a person has answered. Without them the service would answer each once more that somebody has recorded.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...base import paths
from ...base.deputy import act_as_owner
from ...base.file_access import access_for, exists, write_all
from ...base.paths import read_text
from ...exit.flight_memory import FILE, LARGEST_FILE, RECENT, WHAT, joined
from .ownership import NewOwner, give, nothing

_NEW: Final = f".{FILE}.new"


class StateOf:
    """The first flights beside the configuration in `source`, read with the rights of its owner. Raises ConfigError."""

    def __init__(self, source: Path | None) -> None:
        self._directory = None if source is None else _state_beside(source)
        self._found: dict[Path, str] = {}
        if self._directory is not None:
            act_as_owner(self._directory, everywhere=False)
            for path in (self._directory / FILE, self._directory / RECENT):
                if exists(path, WHAT):
                    self._found[path] = read_text(path, WHAT, most=LARGEST_FILE)[0]

    def place(self, owner: NewOwner, before: frozenset[int]) -> None:
        """Add them to root's state directory, and give that to `owner`; see `give`. Raises CryprqError."""
        if self._found or os.path.lexists(paths.ROOTS_STATE):
            give(paths.ROOTS_STATE, owner, before, self._add() if self._found else nothing)

    def remove(self) -> None:
        """Remove them where they were. No secret is lost or left where that cannot be done."""
        for path in self._found:
            with contextlib.suppress(OSError):
                access_for(path, WHAT).remove(path)

    def _add(self) -> Callable[[int], None]:
        def add(handle: int) -> None:
            text = joined([_text_at(handle, FILE), *self._found.values()])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_NEW, dir_fd=handle)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(_NEW, flags, 0o600, dir_fd=handle)
            try:
                write_all(file, text.encode(), 0)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(_NEW, FILE, src_dir_fd=handle, dst_dir_fd=handle)

        return add


def _state_beside(source: Path) -> Path | None:
    """The state directory of the person in whose home `source` is the configuration."""
    try:
        home = Path(pwd.getpwuid(source.stat().st_uid).pw_dir)
    except (KeyError, OSError):
        return None
    return home / ".local" / "state" / "cryprq" if source == home / ".config" / "cryprq" else None


def _text_at(handle: int, name: str) -> str:
    """The text of a file in the open directory; "" of what is no regular file."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
    except OSError:
        return ""
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return ""
        return opened.read(LARGEST_FILE).decode("ascii", "replace")
