"""Invariant: of pieces in any order each byte comes out once, in order, as it came first; nothing else is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import CloseReason, PeerError
    from cryprq_proxy.session import reassembly

reassembly.PIECE_SIZE = 12  # type: ignore[misc]
reassembly.MAX_PIECES = 6  # type: ignore[misc]
reassembly.MAX_SESSION_PIECES = 8  # type: ignore[misc]


class Stream:
    def __init__(self, budget: reassembly.PieceBudget) -> None:
        self.waiting = reassembly.Reassembly(budget)
        self.came: dict[int, int] = {}
        self.out = bytearray()

    def insert(self, offset: int, payload: bytes) -> None:
        for position, value in enumerate(payload, offset):
            self.came.setdefault(position, value)
        self.waiting.insert(offset, memoryview(payload))

    def pop(self) -> None:
        while (piece := self.waiting.pop(len(self.out))) is not None:
            self.out += piece
        if self.out != bytes(self.came[position] for position in range(len(self.out))):
            raise RuntimeError(f"{bytes(self.out)!r} is not what came: {self.came}")
        if len(self.out) in self.came:
            raise RuntimeError(f"byte {len(self.out)} was kept back")
        if self.waiting.bytes != sum(position >= len(self.out) for position in self.came):
            raise RuntimeError("the count of bytes is wrong")


def fuzz(data: bytes) -> None:
    """Each frame of two streams is three bytes: stream and whether to pop, offset from there, length."""
    budget = reassembly.PieceBudget()
    streams = [Stream(budget), Stream(budget)]
    try:
        for number in range(0, len(data) - 2, 3):
            choice, offset, size = data[number : number + 3]
            stream = streams[choice & 1]
            stream.insert(len(stream.out) + offset, bytes([number & 0xFF]) * (1 + size % 32))
            if choice & 2:
                stream.pop()
            if budget.used != sum(each.waiting.pieces for each in streams):
                raise RuntimeError("the count of pieces is wrong")
    except PeerError as error:
        full = stream.waiting.pieces == reassembly.MAX_PIECES or budget.used == reassembly.MAX_SESSION_PIECES
        if error.reason is not CloseReason.LIMIT or not full:
            raise RuntimeError("there was room") from error
    for stream in streams:
        stream.waiting.clear()
    if budget.used:
        raise RuntimeError("pieces were not given back")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
