"""Noticing that files have changed: a look at each once a second, and a call when they have come to rest.

A file counts as changed when its inode, size or time of change is another, also when it comes or goes. Editors and
package managers write a file in several steps, so nothing is called while one of them still changes: the call comes
after the first look that finds everything as the look before did. Looking is stat(2) on a thread, a few microseconds
for each file; unlike inotify it works on every file system, and sees a file that was replaced by renaming.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 1.0

type Mark = tuple[int, int, int, int] | None
"""Device, inode, time of change in ns, size; None for a file that cannot be looked at."""


def mark(file: Path) -> Mark:
    """What tells two states of a file apart."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class FileWatch:
    """Calls `changed` after a change of one of `files`, which is asked for them at every look: they may be others after
    a reload. What a file was like when it was first looked at is its state, not a change."""

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
        """Take one look's result; whether there was a change that is over now."""
        seen, self._seen = self._seen, dict(marks)
        if seen is None:
            return False
        if any(seen[file] != state for file, state in marks.items() if file in seen):
            self._restless = True
            return False
        over, self._restless = self._restless, False
        return over

    async def run(self) -> None:
        """Look until cancelled. What `changed` raises ends it."""
        while True:
            files = tuple(self._files())
            if self.note(await asyncio.to_thread(self._look_at, files)):
                await self._changed()
            await self._sleep(LOOK_SECONDS)

    def _look_at(self, files: Iterable[Path]) -> dict[Path, Mark]:
        return {file: self._look(file) for file in files}
