"""Packets and datagrams that wait for room in the lane's window, while streams wait for it too.

They are worth little when they are late: the queue is bounded in bytes and in time, and the oldest are dropped first.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ...lane.slices import HEADROOM, Shape

MAX_HELD: Final = 262_144
"""Bytes."""
HELD_SECONDS: Final = 0.02
ITEM_COST: Final = 256
"""Bytes that each counts for besides its own."""

type Held = tuple[memoryview, Shape | None]
"""HEADROOM bytes and a packet, or a message of the lane, which has no shape."""


class HeldPackets:
    """Those of one lane. `dropped`: how many waited in vain."""

    __slots__ = ("_bytes", "_items", "dropped")

    def __init__(self) -> None:
        self._items: deque[tuple[float, Held]] = deque()
        self._bytes = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, data: memoryview | bytes, shape: Shape | None, now: float) -> None:
        """Keep a copy."""
        copy = bytearray(HEADROOM if shape is not None else 0)
        copy += data
        self._items.append((now, (memoryview(copy), shape)))
        self._bytes += len(copy) + ITEM_COST
        while self._bytes > MAX_HELD:
            self._pop()
            self.dropped += 1

    def take(self, now: float) -> Held | None:
        """The oldest that is not too late."""
        while self._items:
            since, item = self._pop()
            if now - since <= HELD_SECONDS:
                return item
            self.dropped += 1
        return None

    def clear(self) -> None:
        """The lane is down."""
        self.dropped += len(self._items)
        self._items.clear()
        self._bytes = 0

    def _pop(self) -> tuple[float, Held]:
        entry = self._items.popleft()
        self._bytes -= len(entry[1][0]) + ITEM_COST
        return entry
