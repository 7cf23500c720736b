"""Which way to each exit worked last time, kept for the next start: a small file in the user's state directory.

It saves seconds where only one way gets through, and no more: what cannot be read or written is done without.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from ..base.files import SharedFile
from ..base.log import describe
from ..base.paths import read_text, state_dir
from ..carriers.dial.endpoint import Endpoint
from ..crypto.identity import PeerId
from ..errors import ConfigError

_log = logging.getLogger(__name__)

FILE: Final = "ways.json"
WHAT: Final = "the file of the ways that worked"
MAX_TEXT: Final = 1024
"""Characters of one endpoint."""


class Winners:
    """The text of the endpoint that worked, for each of some exits. `path` is None where there is no place for it."""

    def __init__(self, path: Path | None, known: dict[str, str]) -> None:
        self._path = path
        self._known = known

    @classmethod
    def load(cls, exits: Iterable[PeerId]) -> Self:
        """What is known of these exits; of others it is forgotten at the next change."""
        try:
            path = state_dir() / FILE
        except ConfigError:
            return cls(None, {})
        try:
            held = json.loads(read_text(path, WHAT)[0])
        except (ConfigError, ValueError, RecursionError):
            return cls(path, {})
        wanted = {str(peer) for peer in exits}
        known = held.items() if isinstance(held, dict) else ()
        return cls(
            path,
            {
                peer: text
                for peer, text in known
                if peer in wanted and isinstance(text, str) and len(text) <= MAX_TEXT
            },
        )

    def of(self, exit: PeerId) -> str | None:
        return self._known.get(str(exit))

    def remember(self, exit: PeerId, endpoint: Endpoint) -> None:
        """Write it down, if it is news."""
        if self._known.get(str(exit)) == str(endpoint):
            return
        self._known[str(exit)] = str(endpoint)
        if self._path is not None:
            file = SharedFile(self._path, WHAT)
            asyncio.get_running_loop().run_in_executor(None, _write, file, json.dumps(self._known))


def _write(file: SharedFile, text: str) -> None:
    try:
        with file.locked():
            file.replace(text)
    except ConfigError as error:
        _log.debug("%s", describe(error))
