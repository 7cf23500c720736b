"""Where connections wait that have not shown anything yet: many, cheap, and bounded.

Up to half of the capacity each guest has PATIENCE. Above that there is pressure, which rises from 0 to 1 while the
other half fills up. With that chance each newcomer costs one guest its place (random early drop, as MaxStartups of
sshd), and the time of all shrinks to SHORT_PATIENCE. The guest is picked at random and may be the newcomer itself: of
SAMPLES picks it is the one whose prefixes hold most places. So a crowd that fills the lobby with silence mostly drops
itself, and a client that speaks after one round trip is hardly at risk.

No clock and no I/O: `now` is a parameter, in seconds, and never goes backwards. Each call takes constant time.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final

from .prefixes import Prefixes

PATIENCE: Final = 10.0
"""Seconds that a guest has."""
SHORT_PATIENCE: Final = 2.0
"""The same in a full room. Lossy satellite and mobile links need more."""
SAMPLES: Final = 3


class Guest:
    """A connection that waits. Its room sets `since`, the time of its arrival there. `prefixes` may be empty while the
    address is not known."""

    __slots__ = ("_place", "prefixes", "since")

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.since = 0.0
        self._place = 0


class Lobby[G: Guest]:
    """Never takes a guest in beyond `capacity`. `chance` is the source of randomness."""

    def __init__(self, capacity: int, chance: random.Random) -> None:
        self.take_capacity(capacity)
        self._chance = chance
        self._guests: list[G] = []
        """In no order, for picks at random; each guest knows its place."""
        self._order: OrderedDict[G, None] = OrderedDict()
        self._crowds: Counter[bytes] = Counter()
        """How many guests each prefix has."""

    def take_capacity(self, capacity: int) -> None:
        """From now on. Guests beyond it stay; each newcomer costs one its place."""
        self._capacity = capacity
        self._calm = (capacity + 1) // 2

    def __len__(self) -> int:
        return len(self._guests)

    def __iter__(self) -> Iterator[G]:
        return iter(list(self._order))

    @property
    def pressure(self) -> float:
        """From 0 (half full or less) to 1 (one guest too many), or above it after a lower capacity."""
        return max(0.0, (len(self._guests) - self._calm) / (self._capacity + 1 - self._calm))

    @property
    def patience(self) -> float:
        return PATIENCE - min(1.0, self.pressure) * (PATIENCE - SHORT_PATIENCE)

    def holds(self, prefix: bytes) -> bool:
        """Whether a guest of `prefix` is here."""
        return prefix in self._crowds

    def enter(self, guest: G, now: float) -> G | None:
        """Take `guest` in. Returns the guest that has lost its place for it, if one has."""
        guest.since = now
        guest._place = len(self._guests)
        self._guests.append(guest)
        self._order[guest] = None
        self._crowds.update(guest.prefixes)
        if self._chance.random() >= self.pressure:
            return None
        picks = [self._guests[self._chance.randrange(len(self._guests))] for _ in range(SAMPLES)]
        victim = max(picks, key=self._crowding)
        self.leave(victim)
        return victim

    def leave(self, guest: G) -> None:
        """Remove `guest`, which is here."""
        del self._order[guest]
        last = self._guests.pop()
        if last is not guest:
            self._guests[guest._place] = last
            last._place = guest._place
        self._forget(guest.prefixes)

    def rename(self, guest: G, prefixes: Prefixes) -> None:
        """Count `guest`, which is here, for these prefixes from now on."""
        self._forget(guest.prefixes)
        guest.prefixes = prefixes
        self._crowds.update(prefixes)

    def expired(self, now: float, limit: int) -> list[G]:
        """Remove and return the guests whose time is over, `limit` at most, the oldest first."""
        gone: list[G] = []
        while self._order and len(gone) < limit:
            oldest = next(iter(self._order))
            if now - oldest.since < self.patience:
                break
            self.leave(oldest)
            gone.append(oldest)
        return gone

    def _forget(self, prefixes: Prefixes) -> None:
        for prefix in prefixes:
            self._crowds[prefix] -= 1
            if not self._crowds[prefix]:
                del self._crowds[prefix]

    def _crowding(self, guest: G) -> int:
        return sum(self._crowds[prefix] for prefix in guest.prefixes)
