"""The first flights that this exit has taken: it answers none of them twice, also after a restart.

A client makes a fresh first flight for each attempt. One that comes again was recorded by somebody else. The memory
holds by number and not by time: a client tells no time, so a flight of last month looks like one of now. Only flights
that open are remembered. So who does not know the exit's id cannot crowd out those of others.

    seen -> FlightMemory                       in each handshake, in constant time
         -> first-flights.recent               a second after new ones: at most MAX_RECENT
         -> first-flights                      all of them, when the recent ones are that many

Both files are replaced in one step and synced, on another thread, under the lock of their directory: exits may share
it. A crash, also of the machine, loses the last second.
Whoever reads them learns which recorded connections this exit has taken; they are for its user alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from ..base.files import SharedFile
from ..base.log import describe
from ..base.paths import state_dir
from ..base.tasks import spawn
from ..errors import ConfigError

_log = logging.getLogger(__name__)

MAX_FLIGHTS: Final = 65_536
MAX_RECENT: Final = 4_096
"""So that a second with new flights costs 135 KB of writing at most, and not all 2 MB."""
HASH: Final = 16
"""Bytes that are kept of SHA-256: who finds a collision can have a flight of his own refused."""
SAVE_SECONDS: Final = 1.0
FILE: Final = "first-flights"
RECENT: Final = "first-flights.recent"
WHAT: Final = "the list of first flights"
LARGEST_FILE: Final = 4 << 20
_CONSEQUENCE: Final = "a first flight that somebody has recorded may be answered once more after a restart"
_LINE: Final = re.compile(f"[0-9a-f]{{{2 * HASH}}}")


class FlightMemory:
    """Recognizes the latest `most` first flights by their hashes. About 200 bytes for each. `known` are hashes of
    earlier ones, the oldest first."""

    __slots__ = ("_hashes", "_most", "news", "taken")

    def __init__(self, known: Iterable[bytes] = (), most: int = MAX_FLIGHTS) -> None:
        self._most = most
        self._hashes = OrderedDict.fromkeys(known)
        while len(self._hashes) > most:
            self._hashes.popitem(last=False)
        self.taken = len(self._hashes)
        """How many have been remembered, forgotten ones included."""
        self.news = asyncio.Event()
        """Set with each one that is new."""

    def __len__(self) -> int:
        return len(self._hashes)

    def seen(self, flight: bytes) -> bool:
        """Whether `flight` has been here before. A new one is remembered, and the oldest is forgotten for it."""
        hashed = hashlib.sha256(flight).digest()[:HASH]
        if hashed in self._hashes:
            return True
        if len(self._hashes) >= self._most:
            self._hashes.popitem(last=False)
        self._hashes[hashed] = None
        self.taken += 1
        self.news.set()
        return False

    def latest(self, number: int) -> list[bytes]:
        """At most that many hashes, the oldest first."""
        return list(islice(reversed(self._hashes), number))[::-1]


class FlightFiles:
    """Reads `memory` from disk, and writes there what is new until `close`. Several exits may share the directory."""

    def __init__(self, directory: Path, most: int = MAX_FLIGHTS) -> None:
        self._all = SharedFile(directory / FILE, WHAT, LARGEST_FILE)
        self._recent = SharedFile(directory / RECENT, WHAT, LARGEST_FILE)
        self._most = most
        self._ending = asyncio.Event()
        self._failing = False
        lines = [*_lines_of(self._all), *_lines_of(self._recent)]
        self.memory = FlightMemory((bytes.fromhex(line) for line in lines if _LINE.fullmatch(line)), most)
        self._saved = self.memory.taken
        """The value of `taken` at the last writing."""
        self._work = spawn(self._keep(), "first flights")

    async def close(self) -> None:
        """Write what is new."""
        self._ending.set()
        self.memory.news.set()
        await self._work

    async def _keep(self) -> None:
        ending, news = False, self.memory.news
        while not ending:
            await news.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(SAVE_SECONDS):
                    ending = await self._ending.wait()
            if self.memory.taken != self._saved:
                await self._save()
            # `close` may have come while this wrote: what it has set stays set, and a last turn follows.
            if self.memory.taken == self._saved and not self._ending.is_set():
                news.clear()

    async def _save(self) -> None:
        taken = self.memory.taken
        try:
            await asyncio.to_thread(self._write, self.memory.latest(taken - self._saved))
        except ConfigError as error:
            if not self._failing:
                _log.warning("%s; %s", describe(error), _CONSEQUENCE)
            self._failing = True
            return
        self._failing = False
        self._saved = taken

    def _write(self, new: list[bytes]) -> None:
        """Raises ConfigError. A crash between the two files leaves some hashes in both."""
        with self._all.locked():
            recent = [*_lines_of(self._recent), *(hashed.hex() for hashed in new)]
            if len(recent) > MAX_RECENT:
                known = dict.fromkeys([*_lines_of(self._all), *recent])
                self._all.replace(_text(list(known)[-self._most :]))
                recent = []
            self._recent.replace(_text(recent))


@asynccontextmanager
async def kept_flights() -> AsyncIterator[FlightMemory]:
    """The memory that the user's state directory keeps; where there is none, one that ends with the process."""
    try:
        directory = state_dir()
    except ConfigError as error:
        _log.warning("%s; %s", describe(error), _CONSEQUENCE)
        yield FlightMemory()
        return
    files = FlightFiles(directory)
    try:
        yield files.memory
    finally:
        await files.close()


def _lines_of(file: SharedFile) -> list[str]:
    """Those of a file that cannot be read count as forgotten."""
    try:
        return file.read().split()
    except ConfigError as error:
        _log.warning("%s; %s", describe(error), _CONSEQUENCE)
        return []


def joined(texts: Iterable[str], most: int = MAX_FLIGHTS) -> str:
    """The text of one file with the latest `most` hashes of several, those of the last one being the latest."""
    lines = dict.fromkeys(line for text in texts for line in text.split() if _LINE.fullmatch(line))
    return _text(list(lines)[-most:])


def _text(lines: list[str]) -> str:
    return "\n".join([*lines, ""])
