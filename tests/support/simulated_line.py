"""One direction of a network path, on a virtual clock: a bottleneck with a buffer, then a line with a delay.

    offer -> lost at random? -> no room in the buffer? -> waits its turn at `rate` -> flies `delay` -> arrives

Nothing is an event here: what is offered is told at once when it will arrive. Changes of rate and delay hold for what
is offered afterwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class LineTraits:
    """`rate`: bytes a second. `delay`: seconds. `buffer`: bytes that may wait, besides those that are being sent.
    `loss`, `reorder`, `duplicate`: shares of datagrams. `late`: seconds that a reordered one comes later. `marking`:
    bytes in the queue from which on what comes is marked as congested, instead of lost."""

    rate: float = inf
    delay: float = 0.025
    buffer: float = inf
    loss: float = 0.0
    reorder: float = 0.0
    late: float = 0.004
    duplicate: float = 0.0
    marking: float = inf


class Line:
    """A direction. Several senders may share it."""

    def __init__(self, traits: LineTraits, seed: int = 1) -> None:
        self.traits = traits
        self.dark_until = -inf
        """Until then all that is offered is lost."""
        self.offered = self.dropped = self.full = self.marked = 0
        """Datagrams: all, the lost ones, and those of them that the buffer had no room for; the marked ones."""
        self._free = -inf
        self._chance = random.Random(seed)

    def change(self, now: float, **traits: Any) -> None:
        """From now on it is another line."""
        waiting = self.queue(now)
        self.traits = replace(self.traits, **traits)
        self._free = now + waiting / self.traits.rate

    def queue(self, now: float) -> float:
        """Bytes that wait."""
        return (self._free - now) * self.traits.rate if self._free > now else 0.0

    def wait(self, now: float) -> float:
        """Seconds that a datagram would wait that came now."""
        return max(self._free - now, 0.0)

    def offer(self, size: int, now: float) -> tuple[float, bool] | None:
        """When a datagram arrives and whether it is marked; None if it is lost."""
        traits = self.traits
        self.offered += 1
        if now < self.dark_until or (traits.loss and self._chance.random() < traits.loss):
            self.dropped += 1
            return None
        waiting = self.queue(now)
        if waiting > traits.buffer:
            self.dropped += 1
            self.full += 1
            return None
        marked = waiting > traits.marking
        self.marked += marked
        self._free = (self._free if self._free > now else now) + size / traits.rate
        late = traits.late if traits.reorder and self._chance.random() < traits.reorder else 0.0
        return self._free + traits.delay + late, marked

    def twice(self) -> bool:
        """Whether what was offered last arrives once more."""
        return bool(self.traits.duplicate) and self._chance.random() < self.traits.duplicate
