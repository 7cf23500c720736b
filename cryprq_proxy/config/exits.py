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
    endpoints: dict[PeerId, list[Endpoint]] = {}
    for url in peer:
        endpoints.setdefault(url.peer_id, []).append(url.endpoint)
    found = [
        ExitChoice(_named("", ends, number), number, peer_id, tuple(ends), psk_file, ca)
        for number, (peer_id, ends) in enumerate(endpoints.items(), 1)
    ]
    for number, table in enumerate(tables, len(found) + 1):
        ends = [url.endpoint for url in table.peer]
        name = _named(table.name, ends, number)
        found.append(
            ExitChoice(
                name,
                table.priority,
                table.peer[0].peer_id,
                tuple(ends),
                table.psk_file or psk_file,
                table.ca or ca,
            )
        )
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


def _named(name: str, endpoints: Sequence[Endpoint], number: int) -> str:
    """`name`, else a valid name made from the first host."""
    host = endpoints[0].address.host if endpoints else ""
    return name or (host if _NAME.fullmatch(host) else f"exit-{number}")
