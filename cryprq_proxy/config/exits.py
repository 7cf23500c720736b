"""The exits of a client's configuration: one or several, each with its endpoints.

peer = "cryprq://ID@exit.example:4433"          one exit
peer = ["cryprq://...", "cryprq+wss://..."]     the same id: further endpoints; another id: a further exit
[[exit]]                                        the same with a name, a priority and secrets of its own
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from msgspec import Struct

from ..carriers.dial.endpoint import Endpoint
from ..crypto.identity import PeerId
from ..errors import ConfigError
from .decode import Text, count, path
from .secret_files import read_psk
from .urls import PeerUrl, parse_peer_url

MAX_EXITS: Final = 32
MAX_ENDPOINTS: Final = 8
"""Endpoints of one exit."""
DEFAULT_PRIORITY: Final = 10
_NAME: Final = re.compile(r"(?!(?:auto|direct)$)[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
"""Words with a meaning of their own where a name is expected."""


def parse_exit_name(text: str) -> str:
    """Raises ConfigError."""
    if _NAME.fullmatch(text):
        return text
    raise ConfigError(
        'expected 1 to 60 letters, digits, dots, underscores and hyphens, but not "auto" or "direct", '
        f"got {text[:80]!a}"
    )


PEER: Final = Text(
    parse_peer_url, 'a string like "cryprq://PEERID@exit.example:4433", or a list of such', many=True
)


class ExitTable(Struct, frozen=True, kw_only=True):
    """One [[exit]]. The smaller `priority` is preferred."""

    peer: Annotated[tuple[PeerUrl, ...], PEER]
    name: Annotated[str, Text(parse_exit_name, "a string with the exit's name")] = ""
    priority: Annotated[int, count(0, 1000)] = DEFAULT_PRIORITY
    psk_file: Annotated[Path | None, path()] = None
    ca: Annotated[Path | None, path()] = None

    def __post_init__(self) -> None:
        ids = {url.peer_id for url in self.peer}
        if len(ids) != 1:
            raise ConfigError(
                "peer has endpoints of one exit, with one id; write an [[exit]] for each further exit"
            )


class ExitChoice(NamedTuple):
    """The settings of one exit. `endpoints`: the preferred one first."""

    name: str
    priority: int
    peer_id: PeerId
    endpoints: tuple[Endpoint, ...]
    psk_file: Path | None
    ca: Path | None

    def psk(self) -> bytes | None:
        """The pre-shared key, if there is one. Raises ConfigError if its file cannot be read."""
        return None if self.psk_file is None else read_psk(self.psk_file)


def exit_choices(
    peer: Sequence[PeerUrl], tables: Sequence[ExitTable], psk_file: Path | None, ca: Path | None
) -> tuple[ExitChoice, ...]:
    """All exits in the order of their numbers, those of `peer` first. `psk_file` and `ca` are for exits without their
    own. Raises ConfigError for a repeated name or id, and for too many exits."""
    by_id: dict[PeerId, list[PeerUrl]] = {}
    for url in peer:
        by_id.setdefault(url.peer_id, []).append(url)
    unnamed = [ExitTable(peer=tuple(urls), priority=number) for number, urls in enumerate(by_id.values(), 1)]
    found = []
    for number, table in enumerate((*unnamed, *tables), 1):
        endpoints = tuple(url.endpoint for url in table.peer)
        # A name is made from the first host if that is a valid one.
        host = endpoints[0].address.host
        name = table.name or (host if _NAME.fullmatch(host) else f"exit-{number}")
        psk, authorities = table.psk_file or psk_file, table.ca or ca
        peer_id = table.peer[0].peer_id
        found.append(ExitChoice(name, table.priority, peer_id, endpoints, psk, authorities))
    if len(found) > MAX_EXITS:
        raise ConfigError(f"there are {len(found)} exits; at most {MAX_EXITS} are allowed")
    seen: set[object] = set()
    for choice in found:
        if len(choice.endpoints) > MAX_ENDPOINTS:
            raise ConfigError(
                f"the exit {choice.name} has {len(choice.endpoints)} addresses; at most {MAX_ENDPOINTS} are allowed"
            )
        for mark in (choice.name, choice.peer_id):
            if mark in seen:
                raise ConfigError(
                    f"two exits are {mark}: each has a name of its own, and one peer with all its addresses"
                )
            seen.add(mark)
    return tuple(found)
