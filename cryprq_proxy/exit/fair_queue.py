"""A queue in which each network has its turn: the first flights that opened wait here for a signature.

Prefixes have their turns one after the other, on each level: first the widest (/16 of IPv4, /32 of IPv6), inside of
each its parts (/24, /48), inside of those single customers (/32, /64). Guests of one customer go in their order of
arrival. So a crowd from one network delays itself, and others by one turn.

No clock and no I/O: `now` is a parameter, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from .lobby import PATIENCE, Guest
from .prefixes import Prefixes


class _Network[G: Guest]:
    """The guests of one prefix. `parts` are its narrower prefixes, that with the next turn first."""

    __slots__ = ("guests", "parts", "size")

    def __init__(self) -> None:
        self.parts: OrderedDict[bytes, _Network[G]] = OrderedDict()
        self.guests: OrderedDict[G, None] = OrderedDict()
        """Only in the narrowest prefix."""
        self.size = 0
        """Guests in all parts."""

    def next(self) -> G:
        """The guest that has its turn; there is one."""
        if self.guests:
            return next(iter(self.guests))
        prefix, part = next(iter(self.parts.items()))
        self.parts.move_to_end(prefix)
        return part.next()

    def newest_of_largest(self) -> G:
        if self.guests:
            return next(reversed(self.guests))
        return max(self.parts.values(), key=lambda part: part.size).newest_of_largest()


class FairQueue[G: Guest]:
    """Never holds more than `capacity` guests."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._all: _Network[G] = _Network()
        self._order: OrderedDict[G, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[G]:
        return iter(list(self._order))

    def enter(self, guest: G, now: float) -> G | None:
        """Take `guest` in. Returns the guest that has lost its place for it: the newest of the largest network."""
        guest.since = now
        self._order[guest] = None
        network = self._all
        network.size += 1
        for prefix in reversed(guest.prefixes):
            network = network.parts.setdefault(prefix, _Network())
            network.size += 1
        network.guests[guest] = None
        if len(self._order) <= self._capacity:
            return None
        victim = self._all.newest_of_largest()
        self.leave(victim)
        return victim

    def leave(self, guest: G) -> None:
        """Remove `guest`, which is here."""
        del self._order[guest]
        self._remove(self._all, guest, guest.prefixes)

    def holds(self, prefixes: Prefixes) -> bool:
        """Whether a guest with the same narrowest prefix is here."""
        network: _Network[G] | None = self._all
        for prefix in reversed(prefixes):
            network = network.parts.get(prefix) if network is not None else None
        return network is not None

    def next(self) -> G | None:
        """Remove and return the guest that has its turn."""
        if not self._order:
            return None
        guest = self._all.next()
        self.leave(guest)
        return guest

    def expired(self, now: float, limit: int) -> list[G]:
        """Remove and return the guests that have waited for PATIENCE, `limit` at most, the oldest first."""
        gone: list[G] = []
        while self._order and len(gone) < limit:
            oldest = next(iter(self._order))
            if now - oldest.since < PATIENCE:
                break
            self.leave(oldest)
            gone.append(oldest)
        return gone

    def _remove(self, network: _Network[G], guest: G, below: Prefixes) -> None:
        network.size -= 1
        if not below:
            del network.guests[guest]
            return
        part = network.parts[below[-1]]
        self._remove(part, guest, below[:-1])
        if not part.size:
            del network.parts[below[-1]]
