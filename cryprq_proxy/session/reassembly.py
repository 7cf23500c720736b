"""Reassembly: data of one direction of a stream that have come before those in front of them.

Data in order never come here: they go from the opened record to the stream's handler. A stream has a Reassembly from
the first piece that leaves a hole until no piece is left.

Two things are kept apart, so that a peer who chooses the sizes and the order of pieces causes little work:

    runs     the ranges of bytes that are here: sorted, and no two touch. What of a new piece is new lies between them.
             A piece joins all runs that it touches, so a look at a run that is more than a bisection removes it
    pieces   the bytes: each run is made of pieces, without a gap. A new piece is copied to the end of the one in front
             of it while that has PIECE_SIZE bytes at most, and never in front of another, which would have to move

So small frames behind a hole, as an interactive stream sends them, are few pieces. Whatever the order, the work is in
proportion to the frames and the bytes that come.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from ..errors import CloseReason, PeerError
from .wire import MAX_DATA

MAX_PIECES: Final = 1_024
"""Pieces of one stream that wait."""
MAX_SESSION_PIECES: Final = 8_192
"""Pieces that wait in all streams of a session."""
PIECE_SIZE: Final = MAX_DATA
"""Up to so many bytes, what touches becomes one piece."""


class PieceBudget:
    """The pieces of all streams of a session. `used`: how many wait."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0

    def take(self) -> None:
        """One more. Raises PeerError (LIMIT)."""
        if self.used >= MAX_SESSION_PIECES:
            raise PeerError(
                CloseReason.LIMIT, f"the peer sends more than {MAX_SESSION_PIECES:,} pieces out of order"
            )
        self.used += 1

    def give(self, pieces: int) -> None:
        self.used -= pieces


class Reassembly:
    """The pieces of one direction of a stream. `bytes`: how many wait in them."""

    __slots__ = ("_begins", "_budget", "_ends", "_pieces", "_tails", "bytes")

    def __init__(self, budget: PieceBudget) -> None:
        self._budget = budget
        self.bytes = 0
        # The runs, in their order: first byte, the one behind the last, and where the last piece begins.
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._tails: list[int] = []
        self._pieces: dict[int, bytearray] = {}

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    def insert(self, offset: int, payload: memoryview) -> None:
        """Copy what of `payload`, which is not empty and begins at `offset`, is not here yet.

        Nothing of it may lie below what was popped. Raises PeerError (LIMIT) for a piece too many.
        """
        begins, ends, tails = self._begins, self._ends, self._tails
        begin, end = offset, offset + len(payload)
        first, last = bisect_left(ends, begin), bisect_right(begins, end)
        position, tail = begin, -1
        for at in range(first, last):
            if position < begins[at]:
                self._add(position, payload[position - offset : begins[at] - offset], tail)
            position, tail = ends[at], tails[at]
        if position < end:
            tail = self._add(position, payload[position - offset :], tail)
            position = end
        if first < last:
            begin = min(begin, begins[first])
        begins[first:last] = (begin,)
        ends[first:last] = (position,)
        tails[first:last] = (tail,)

    def _add(self, position: int, payload: memoryview, tail: int) -> int:
        """Keep new bytes; `tail` is where the piece begins that ends at `position`, if there is one. Returns where the
        piece begins that they are in."""
        piece = self._pieces.get(tail)
        if piece is not None and len(piece) + len(payload) <= PIECE_SIZE:
            piece += payload
        else:
            if len(self._pieces) >= MAX_PIECES:
                text = f"the peer sends more than {MAX_PIECES:,} pieces of a stream out of order"
                raise PeerError(CloseReason.LIMIT, text)
            self._budget.take()
            self._pieces[position] = bytearray(payload)
            tail = position
        self.bytes += len(payload)
        return tail

    def pop(self, position: int) -> bytearray | None:
        """The bytes from `position` on: one piece, or several small ones together. Ask again until it is None.

        `position` is where the stream has got to: nothing that is here may lie below it.
        """
        begins, ends = self._begins, self._ends
        if not begins or begins[0] != position:
            return None
        pieces = self._pieces
        before = len(pieces)
        piece = pieces.pop(position)
        end = position + len(piece)
        while end < ends[0] and len(piece) + len(pieces[end]) <= PIECE_SIZE:
            piece += pieces.pop(end)
            end = position + len(piece)
        self._budget.give(before - len(pieces))
        self.bytes -= len(piece)
        if end < ends[0]:
            begins[0] = end
        else:
            del begins[0], ends[0], self._tails[0]
        return piece

    def clear(self) -> None:
        """The stream has ended: forget all of it."""
        self._budget.give(len(self._pieces))
        self.bytes = 0
        self._begins.clear()
        self._ends.clear()
        self._tails.clear()
        self._pieces.clear()
