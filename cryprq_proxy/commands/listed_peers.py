"""The peers of an exit for `peers`: its list, and what a running exit has seen of those on it since its start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Self

from msgspec import to_builtins

from ..base.log import one_line
from ..base.program import to_run
from ..base.text import named
from ..config.authorized import PeersFile
from ..crypto.identity import PeerId
from ..errors import CryprqError
from ..pairing.invitation import ExitHere
from ..pairing.invite_store import Invite, InviteStore, beside
from ..process.peers_pages import query_peers
from ..status import PeerStatus
from .status.tables import crowd_lines, peers_table
from .status.view import draw

_FOR_IDS: Final = 160
"""Columns beyond which there is room for whole ids."""
_CROWD: Final = 200
"""Peers beyond which their table is not fitted to the width: that took 18 s for 5,000."""


class PeersListing(NamedTuple):
    """`listed` and `revoked`: names by id, some of them ""; `allow`: who is in that key of the configuration. `seen`:
    what the running exit has told, by the text of the id; None where none runs."""

    listed: dict[PeerId, str]
    allow: Sequence[PeerId]
    revoked: dict[PeerId, str]
    invites: Sequence[Invite]
    seen: dict[str, PeerStatus] | None

    @classmethod
    def of(cls, here: ExitHere) -> Self:
        """Raises ConfigError."""
        file = PeersFile(here.authorized)
        names = {peer.peer_id: peer.name for peer in file.read()}
        return cls(
            names,
            [peer for peer in here.config.allow if peer not in names],
            {peer.peer_id: peer.name for peer in file.revoked()},
            InviteStore(beside(here.authorized)).open(time.time()),
            _seen(here),
        )

    def told(self) -> dict[str, Any]:
        """As plain values for JSON; the figures of a peer are left out where no exit has told them."""
        return {
            "running": self.seen is not None,
            "peers": [
                to_builtins(peer) if self._is_told(peer) else {"name": peer.name, "peer_id": peer.peer_id}
                for peer in self._allowed()
            ],
            "revoked": [{"name": name, "peer_id": str(peer)} for peer, name in self.revoked.items()],
            "invites": [
                {"name": invite.name, "created": invite.created, "expires": invite.expires}
                for invite in self.invites
            ],
        }

    def lines(self, width: int) -> Iterator[str]:
        """For a terminal of `width` columns, or for a pipe."""
        if not self.listed and not self.allow:
            yield f"no peers; invite one with: {to_run('invite NAME')}"
        elif self.seen is None:
            yield from self._names()
        else:
            yield from self._figures(width)
        if self.invites:
            yield "\nopen invites:"
            yield from map(invite_line, self.invites)

    def _names(self) -> Iterator[str]:
        rows = [(one_line(name) or "-", peer) for peer, name in self.listed.items()]
        rows += [("(allow)", peer) for peer in self.allow]
        width = max(len(name) for name, _ in rows)
        for name, peer in rows:
            yield f"{name:{width}}  {peer}{'  revoked: not let in' if peer in self.revoked else ''}"

    def _figures(self, width: int) -> Iterator[str]:
        told = [peer for peer in self._allowed() if self._is_told(peer)]
        if told:
            ids = width > _FOR_IDS
            if len(told) > _CROWD:
                yield from crowd_lines(told, width, ids=ids)
            else:
                yield draw(peers_table("", told, width, len(told), ids=ids), width)
        for peer in self._allowed():
            if not self._is_told(peer):
                yield f"{named(peer.name, peer.peer_id)}  not told: ask again, or restart the exit"
        for peer_id, name in self.listed.items():
            if peer_id in self.revoked:
                yield f"{named(name, str(peer_id))}  revoked: not let in"

    def _allowed(self) -> list[PeerStatus]:
        """Those who are let in, in the order of the list."""
        seen = self.seen or {}
        return [
            seen.get(str(peer)) or PeerStatus(peer_id=str(peer), name=name)
            for peer, name in (self.listed | dict.fromkeys(self.allow, "")).items()
            if peer not in self.revoked
        ]

    def _is_told(self, peer: PeerStatus) -> bool:
        return self.seen is not None and peer.peer_id in self.seen


def _seen(here: ExitHere) -> dict[str, PeerStatus] | None:
    """What the running exit tells of its peers: in the status, and of a crowd page by page."""
    if here.socket is None:
        return None
    seen = {peer.peer_id: peer for peer in here.peers}
    if len(seen) < here.listed:
        # An exit that has just ended, or one of an older version, has told what it can.
        with contextlib.suppress(CryprqError):
            seen |= {peer.peer_id: peer for peer in query_peers(here.socket)}
    return seen


def invite_line(invite: Invite) -> str:
    return f"{one_line(invite.name)}, until {when(invite.expires)}"


def when(moment: float) -> str:
    """Seconds since 1970 as local date and time."""
    return f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M %Z}"
