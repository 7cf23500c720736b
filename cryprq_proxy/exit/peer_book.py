"""What an exit knows of its peers: who is on the list, under which name, and what it has seen of them since its start.

    let in -> came: the address that the peer came from
    a session is over -> left: its bytes, and when the peer was last heard of
    status -> those with sessions first, then those that were seen last, then the rest of the list
    all of them are asked for -> page after page, in the order of the list

Only peers of the list are remembered, and of more than MAX_SEEN the latest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import nlargest
from itertools import chain, islice
from typing import Final

from ..base.text import named
from ..crypto.identity import PeerId
from ..session.session import Session
from ..status import PeerStatus, Traffic
from .peer_session import PeerSession

MAX_SEEN: Final = 10_000
"""Peers of which it is remembered what was seen of them, about 400 bytes each."""
MAX_PEERS_TOLD: Final = 1000
"""In the status, and in one page of all of them."""


class Seen:
    """What was seen of a peer: where it came from last, when it was heard of, and the bytes of its sessions that are
    over."""

    __slots__ = ("address", "heard", "received", "sent")

    def __init__(self) -> None:
        self.address = ""
        self.heard = 0.0
        self.sent = 0
        self.received = 0


class PeerBook:
    """`listed`: the names of all peers that may come in; some have none. All times are the loop's."""

    def __init__(self, listed: Mapping[PeerId, str]) -> None:
        self.listed = listed
        self._seen: OrderedDict[PeerId, Seen] = OrderedDict()

    def __len__(self) -> int:
        """Of how many peers something was seen."""
        return len(self._seen)

    def shown(self, peer: PeerId) -> str:
        """The peer for a person."""
        return named(self.listed.get(peer, ""), str(peer))

    def replace(self, listed: Mapping[PeerId, str]) -> None:
        """The list is this one from now on. Who is no longer on it is forgotten."""
        self.listed = listed
        for peer in self._seen.keys() - listed.keys():
            del self._seen[peer]

    def came(self, peer: PeerId, address: str, now: float) -> None:
        """`peer`, which is on the list, was let in from `address`."""
        seen = self._latest(peer)
        seen.address, seen.heard = address, now

    def left(self, peer: PeerId, session: Session) -> None:
        """A session of `peer` is over."""
        if peer not in self.listed:
            return
        seen = self._latest(peer)
        seen.heard = max(seen.heard, session.heard)
        seen.sent += session.bytes_sent
        seen.received += session.bytes_received

    def _latest(self, peer: PeerId) -> Seen:
        seen = self._seen.setdefault(peer, Seen())
        self._seen.move_to_end(peer)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return seen

    def first(self, sessions: Mapping[PeerId, int]) -> list[PeerId]:
        """The peers that the status tells of, at most MAX_PEERS_TOLD. `sessions`: how many those have who have some."""
        linked = nlargest(MAX_PEERS_TOLD, sessions, key=sessions.__getitem__)
        return list(_first(MAX_PEERS_TOLD, chain(linked, reversed(self._seen), self.listed)))

    def page(self, start: int) -> list[PeerId]:
        """The peers of the list from place `start` on, counted from 0, at most MAX_PEERS_TOLD."""
        return list(islice(self.listed, start, start + MAX_PEERS_TOLD))

    def status(self, peer: PeerId, sessions: Collection[PeerSession], epoch: float) -> PeerStatus:
        """What is known of `peer`, whose sessions are `sessions`. `epoch`: when the loop's time was 0, in seconds since
        1970. What a session has moved is counted in it, or here once it is over: both are looked at in one turn."""
        seen = self._seen.get(peer, Seen())
        heard = max((entry.session.heard for entry in sessions), default=0.0)
        heard = max(heard, seen.heard)
        since = min((entry.began for entry in sessions if entry.up), default=None)
        return PeerStatus(
            peer_id=str(peer),
            name=self.listed.get(peer, ""),
            sessions=len(sessions),
            since=None if since is None else round(epoch + since, 3),
            address=seen.address,
            last_seen=round(epoch + heard, 3) if heard else None,
            bytes=Traffic(
                sent=seen.sent + sum(entry.session.bytes_sent for entry in sessions),
                received=seen.received + sum(entry.session.bytes_received for entry in sessions),
            ),
        )


def _first(most: int, peers: Iterable[PeerId]) -> Iterator[PeerId]:
    """The first ones, each once. The list may be long: not more of it is looked at than is told."""
    told: set[PeerId] = set()
    for peer in peers:
        if len(told) >= most:
            return
        if peer not in told:
            told.add(peer)
            yield peer
