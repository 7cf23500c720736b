"""The replay window of one epoch and direction of the datagram lane (the idea is RFC 6479's).

Each of the last `size` counters has a byte in a ring; only skipped counters need to be cleared. It is a byte, not a
bit, because then a run of counters is one slice assignment. Nearly all trains are newer than everything before; such a
train costs one comparison and one assignment.
"""

from __future__ import annotations

from typing import Final

from ..errors import LocalError

WINDOW: Final = 8192


class ReplayWindow:
    """Which counters were seen. Ask `fresh` before a datagram is opened; call `mark` once it proved authentic.

    `highest` is the highest marked counter; -1 at first.
    """

    __slots__ = ("_mask", "_seen", "_size", "highest")

    def __init__(self, size: int = WINDOW) -> None:
        """`size` is a power of two."""
        if size < 1 or size & (size - 1):
            raise LocalError(f"the size of a replay window is a power of two, not {size}")
        self._size = size
        self._mask = size - 1
        self._seen = bytearray(size)
        self.highest = -1

    def fresh(self, counter: int) -> bool:
        """Whether `counter` is inside or above the window and not marked yet."""
        behind = self.highest - counter
        return behind < 0 or (behind < self._size and not self._seen[counter & self._mask])

    def mark(self, counter: int) -> None:
        """Mark the fresh `counter` as seen."""
        self.mark_range(counter, counter)

    def mark_range(self, first: int, last: int) -> None:
        """Mark the fresh counters `first` to `last` as seen."""
        highest = self.highest
        if last > highest:
            if first > highest + 1:
                self._fill(highest + 1, first - 1, 0)
            self.highest = last
        self._fill(first, last, 1)

    def _fill(self, first: int, last: int, value: int) -> None:
        seen, count, at = self._seen, last - first + 1, first & self._mask
        if count == 1:
            seen[at] = value
        elif count >= self._size:
            seen[:] = bytes((value,)) * self._size
        else:
            head = min(count, self._size - at)
            seen[at : at + head] = bytes((value,)) * head
            if head < count:
                seen[: count - head] = bytes((value,)) * (count - head)
