"""Which endpoint of each exit worked last, kept for the next start in a small file in the user's state directory.

It saves seconds where only one endpoint is reached. A file that cannot be read or written is no failure.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final, Self

from ..base.files import SharedFile
from ..base.log import describe
from ..base.paths import read_text, state_dir
from ..crypto.identity import PeerId
from ..errors import ConfigError
from .settings import EndpointMemory

_log = logging.getLogger(__name__)

FILE: Final = "endpoints.json"
WHAT: Final = "the file of the endpoints that worked"
MAX_TEXT: Final = 1024
"""Characters of one endpoint."""


class EndpointFile:
    """The text of the endpoint that worked last, by the text of the exit's peer id. `path` is None where there is no
    place for a file."""

    def __init__(self, path: Path | None, known: dict[str, str]) -> None:
        self._path = path
        self.known = known

    @classmethod
    def load(cls, exits: Iterable[PeerId]) -> Self:
        """What is known of these exits; other exits are forgotten at the next change."""
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

    def of(self, exit: PeerId) -> EndpointMemory:
        """The part of one exit. A change is written on another thread."""
        return EndpointMemory(self.known.get(str(exit)), partial(self._learn, str(exit)))

    def _learn(self, exit: str, text: str) -> None:
        self.known[exit] = text
        if self._path is not None:
            file = SharedFile(self._path, WHAT)
            asyncio.get_running_loop().run_in_executor(None, _write, file, json.dumps(self.known))


def _write(file: SharedFile, text: str) -> None:
    try:
        with file.locked():
            file.replace(text)
    except ConfigError as error:
        _log.debug("%s", describe(error))
