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
        held = self._held.get(peer, 0) + count
        free = self.free - count
        if held > ABUNDANCE * free:
            return None
        self._held[peer], self.free = held, free
        return Claim(self, peer, count)

    def give_back(self, peer: PeerId, count: int) -> None:
        self.free += count
        held = self._held[peer] - count
        if held:
            self._held[peer] = held
        else:
            del self._held[peer]


class Claim:
    """The descriptors of one stream, until `release`."""

    __slots__ = ("_count", "_peer", "_shares")

    def __init__(self, shares: DescriptorShares, peer: PeerId, count: int) -> None:
        self._shares = shares
        self._peer = peer
        self._count = count

    def release(self) -> None:
        """Give them back; a second call does nothing."""
        if self._count:
            count, self._count = self._count, 0
            self._shares.give_back(self._peer, count)
