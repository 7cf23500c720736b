"""All peers of a running exit, of which its status tells of the first 1000 only: they are asked for page by page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..errors import CryprqError
from ..status import PeersPage, PeerStatus
from .control import query

PEERS: Final = "peers"
"""The command of the control socket. Its argument: at which place of the list the page begins."""
MAX_PAGES: Final = 400
"""More than the largest list of peers fills (base/paths.py, MAX_LIST): an id alone has 52 bytes."""


def query_peers(path: Path) -> Iterator[PeerStatus]:
    """What the exit at the control socket `path` tells of its peers. Raises as `query`, and CryprqError for pages that
    lead nowhere."""
    start = 0
    for _ in range(MAX_PAGES):
        page = _page(path, start)
        yield from page.peers
        if page.next is None:
            return
        start = page.next
    raise CryprqError(f"the cryprq-proxy at {path} tells of more peers than a list holds")


def _page(path: Path, start: int) -> PeersPage:
    try:
        return msgspec.convert(query(path, PEERS, argument=str(start)), PeersPage)
    except msgspec.ValidationError:
        raise CryprqError(f"the cryprq-proxy at {path} has another version, restart it") from None
