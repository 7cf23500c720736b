"""The watch on files: it looks at each file once a second and reports a change when it is complete.

A file has changed if its inode, size or time of change differs, or if it appears or disappears. Editors and package
managers write a file in several steps, so a change is reported after the first look that finds no further one. A look
is stat(2) on a thread, a few microseconds per file. Unlike inotify it works on every file system, and it sees a file
that was replaced by renaming.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 1.0

type Mark = tuple[int, int, int, int] | None
"""Device, inode, time of change in ns, size; None if stat(2) fails."""


def mark(file: Path) -> Mark:
    """The state of a file, to compare with a later one."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class FileWatch:
    """Calls `changed` after a change of one of `files`. Every look calls `files`, since a reload may change the list.
    The first look at a file is no change."""

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        changed: Callable[[], Awaitable[object]],
        look: Callable[[Path], Mark] = mark,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._files = files
        self._changed = changed
        self._look = look
        self._sleep = sleep
        self._seen: dict[Path, Mark] | None = None
        self._restless = False

    def note(self, marks: Mapping[Path, Mark]) -> bool:
        """Take one look's result. Returns whether a change is complete now."""
        seen, self._seen = self._seen, dict(marks)
        if seen is None:
            return False
        if any(seen[file] != state for file, state in marks.items() if file in seen):
            self._restless = True
            return False
        over, self._restless = self._restless, False
        return over

    async def run(self) -> None:
        """Look until cancelled. An error of `changed` ends it."""
        while True:
            files = tuple(self._files())
            if self.note(await asyncio.to_thread(self._look_at, files)):
                await self._changed()
            await self._sleep(LOOK_SECONDS)

    def _look_at(self, files: Iterable[Path]) -> dict[Path, Mark]:
        return {file: self._look(file) for file in files}
