"""Bytes that wait for somebody who is slow, in pieces of a useful size.

The sender of a stream chooses the size of its frames. Kept one by one, 64 KiB in frames of one byte would cost
megabytes of memory, and a call of the kernel for each byte. So small ones are joined.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

PIECE: Final = 65_536
"""Bytes up to which pieces are joined; a larger one stays as it came."""
WRITES: Final = 16
"""Pieces written in one turn of the loop."""


class Backlog:
    """A queue of bytes. Its length is their number."""

    __slots__ = ("_pieces", "_size", "_taken")

    def __init__(self) -> None:
        self._pieces: deque[bytearray] = deque()
        self._size = 0
        self._taken = 0
        """Bytes of the first piece that have gone already."""

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes | bytearray | memoryview) -> None:
        pieces = self._pieces
        self._size += len(data)
        if not data:
            return
        if pieces and len(pieces[-1]) + len(data) <= PIECE:
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))

    def pop(self) -> bytearray:
        """The bytes at the front, up to a piece. IndexError if there are none."""
        piece = self._pieces.popleft()
        if self._taken:
            del piece[: self._taken]
            self._taken = 0
        self._size -= len(piece)
        return piece

    def write(self, sock: socket.socket) -> int:
        """Write to a non-blocking socket until it takes no more, WRITES pieces at most. Returns the number of bytes
        that it took. Raises OSError."""
        pieces, written = self._pieces, 0
        for _ in range(min(WRITES, len(pieces))):
            with memoryview(pieces[0]) as view:
                rest = view[self._taken :]
                try:
                    taken = sock.send(rest)
                except (BlockingIOError, InterruptedError):
                    break
                finally:
                    rest.release()
                short = self._taken + taken < len(view)
            written += taken
            if short:
                self._taken += taken
                break
            self._taken = 0
            pieces.popleft()
        self._size -= written
        return written

    def clear(self) -> None:
        self._pieces.clear()
        self._size = self._taken = 0
