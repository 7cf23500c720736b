"""The watch on files: it looks at each file now and then, and reports a change when it is complete.

    mark -> read -> ... start ... -> look, look, look ... -> changed: mark what is new -> read
                    a change here is found by the first look

A file is marked before it is read, so no change is missed: neither one during the start nor one during a reload. A
file has changed if its inode, size or time of change differs, or if it appears or disappears. Editors and package
managers write a file in several steps, so a change is reported after the first look that finds no further one. A look
is stat(2) on a thread, a few microseconds per file. Unlike inotify it works on every file system, and it sees a file
that was replaced by renaming.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from ..base.file_access import Mark, mark

LOOK_SECONDS: Final = 5.0
"""Between two looks. Each wakes the process, also an idle one."""
REST_SECONDS: Final = 1.0
"""The same after a look that has found a change, until one finds none."""


class FileWatch:
    """Watches the files that were given to `before_reading`, from then on and until the program ends."""

    def __init__(
        self,
        look: Callable[[Path], Mark] = mark,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._look = look
        self._sleep = sleep
        self._seen: dict[Path, Mark] = {}
        self._read: dict[Path, Mark] = {}
        """The marks of the last reading."""
        self._restless = False

    def before_reading(self, *files: Path, anew: bool = False) -> None:
        """Watch `files`, which the caller is about to read, `anew` as the first ones of all. May be called on any
        thread.

        A file that is watched already is still compared with its last look: whether it has changed is what the next
        one tells."""
        if anew:
            self._read = {}
        for file in files:
            self._read[file] = self._look(file)
            self._seen.setdefault(file, self._read[file])

    async def differs(self) -> bool:
        """Whether a file of the last reading is another one now."""
        read = dict(self._read)
        return await asyncio.to_thread(self._look_at, read) != read

    def note(self, marks: Mapping[Path, Mark]) -> bool:
        """Take one look's result. Returns whether a change is complete now."""
        changed = any(self._seen[file] != state for file, state in marks.items())
        self._seen.update(marks)
        over, self._restless = self._restless and not changed, changed
        return over

    async def run(self, changed: Callable[[], Awaitable[object]]) -> None:
        """Look until cancelled, and call `changed` after each change. An error of `changed` ends it."""
        while True:
            if self.note(await asyncio.to_thread(self._look_at, tuple(self._seen))):
                await changed()
            await self._sleep(REST_SECONDS if self._restless else LOOK_SECONDS)

    def _look_at(self, files: Iterable[Path]) -> dict[Path, Mark]:
        return {file: self._look(file) for file in files}
