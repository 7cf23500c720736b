"""What of the exit's file descriptors each peer may hold for its streams.

A peer may take one more while it holds at most ABUNDANCE times as many as are free. So one peer gets three quarters of
all, two get three sevenths each, and with any number of peers some are left for one that comes later. No peer has to be
known before, and what one gives back is for all.
"""

from __future__ import annotations

from typing import Final

from ..crypto.identity import PeerId

ABUNDANCE: Final = 3


class DescriptorShares:
    """`free` descriptors to begin with."""

    def __init__(self, free: int) -> None:
        self.free = free
        self._held: dict[PeerId, int] = {}

    def claim(self, peer: PeerId, count: int) -> Claim | None:
        """Take `count` descriptors for `peer`; None if its share is used up."""
        return Claim(self, peer, count) if self.take(peer, count) else None

    def take(self, peer: PeerId, count: int) -> bool:
        """Whether `peer` has them now."""
        held = self._held.get(peer, 0) + count
        free = self.free - count
        if held > ABUNDANCE * free:
            return False
        self._held[peer], self.free = held, free
        return True

    def give_back(self, peer: PeerId, count: int) -> None:
        self.free += count
        held = self._held[peer] - count
        if held:
            self._held[peer] = held
        else:
            del self._held[peer]


class Claim:
    """The descriptors of one stream, until `release`. While its name is dialled, a SocketRoom
    (outbound/address_race.py)."""

    __slots__ = ("_count", "_peer", "_shares")

    def __init__(self, shares: DescriptorShares, peer: PeerId, count: int) -> None:
        self._shares = shares
        self._peer = peer
        self._count = count

    def more(self) -> bool:
        """Take one more, if the share allows it."""
        taken = bool(self._count) and self._shares.take(self._peer, 1)
        self._count += taken
        return taken

    def less(self) -> None:
        """Give one back; does nothing after `release`."""
        if self._count:
            self._count -= 1
            self._shares.give_back(self._peer, 1)

    def release(self) -> None:
        """Give them back; a second call does nothing."""
        if self._count:
            count, self._count = self._count, 0
            self._shares.give_back(self._peer, count)
