"""Reassembly: every byte comes out once and in order, the first copy of it, whatever came."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import reassembly
from cryprq_proxy.session.reassembly import (
    MAX_PIECES,
    MAX_SESSION_PIECES,
    PIECE_SIZE,
    PieceBudget,
    Reassembly,
)

END = 48

PIECES = st.lists(st.tuples(st.integers(0, END - 1), st.integers(1, END)), max_size=40)


class Receiver:
    """What a stream does with its Reassembly, beside the model: each byte with the number of the frame it came in."""

    def __init__(self) -> None:
        self.budget = PieceBudget()
        self.waiting = Reassembly(self.budget)
        self.model: dict[int, int] = {}
        self.out = bytearray()

    def frame(self, offset: int, payload: bytes) -> None:
        for position, value in enumerate(payload, offset):
            self.model.setdefault(position, value)
        position = len(self.out)
        if offset < position:
            payload, offset = payload[position - offset :], position
        if payload:
            self.waiting.insert(offset, memoryview(payload))
        self.check()

    def take(self) -> None:
        while (piece := self.waiting.pop(len(self.out))) is not None:
            self.out += piece
            self.check()

    def check(self) -> None:
        waiting, begin = self.waiting, len(self.out)
        assert waiting.bytes == sum(position >= begin for position in self.model)
        assert waiting.pieces == self.budget.used <= waiting.bytes
        assert (waiting.pieces == 0) is (waiting.bytes == 0)
        runs = list(zip(waiting._begins, waiting._ends, strict=True))
        assert all(end < begin for (_, end), (begin, _) in pairwise(runs))
        assert sum(end - begin for begin, end in runs) == waiting.bytes
        assert waiting._tails == [
            max(each for each in waiting._pieces if begin <= each < end) for begin, end in runs
        ]


@pytest.mark.parametrize("largest", [1, 5, PIECE_SIZE])
@given(pieces=PIECES, takes=st.lists(st.booleans(), min_size=40, max_size=40))
def test_every_byte_once_and_its_first_copy(
    largest: int, pieces: list[tuple[int, int]], takes: list[bool]
) -> None:
    receiver = Receiver()
    with mock.patch.object(reassembly, "PIECE_SIZE", largest):
        for number, ((offset, size), take) in enumerate(zip(pieces, takes, strict=False)):
            receiver.frame(offset, bytes([number]) * min(size, END - offset))
            if take:
                receiver.take()
        receiver.frame(0, b"\xff" * END)
        receiver.take()
    assert receiver.out == bytes(receiver.model[position] for position in range(END))
    assert receiver.waiting.pieces == receiver.waiting.bytes == receiver.budget.used == 0


def test_nothing_comes_out_before_its_turn() -> None:
    waiting = Reassembly(PieceBudget())
    waiting.insert(5, memoryview(b"later"))
    assert waiting.pop(0) is None
    assert waiting.pop(4) is None
    assert waiting.pop(5) == b"later"
    assert waiting.pop(10) is None


def test_pieces_are_copies() -> None:
    waiting = Reassembly(PieceBudget())
    buffer = bytearray(b"abcdef")
    waiting.insert(1, memoryview(buffer)[:3])
    waiting.insert(4, memoryview(buffer)[3:])
    buffer[:] = b"xxxxxx"
    assert waiting.pop(1) == b"abcdef"


def test_small_frames_behind_a_hole_are_one_piece_until_it_is_full() -> None:
    waiting = Reassembly(PieceBudget())
    for offset in range(100, 100 + 2 * PIECE_SIZE, 64):
        waiting.insert(offset, memoryview(bytes(64)))
    assert waiting.pieces == 2
    assert [len(waiting.pop(at) or b"") for at in (100, 100 + PIECE_SIZE)] == [PIECE_SIZE, PIECE_SIZE]


def test_large_frames_are_not_copied_again() -> None:
    waiting = Reassembly(PieceBudget())
    for offset in range(1, 4 * PIECE_SIZE, PIECE_SIZE):
        waiting.insert(offset, memoryview(bytes(PIECE_SIZE)))
    assert waiting.pieces == 4
    kept = dict(waiting._pieces)
    for offset, piece in kept.items():
        assert waiting.pop(offset) is piece


def test_what_comes_again_is_not_looked_at_again() -> None:
    """Else a small frame over many small runs would cost a walk over all of them each time."""
    waiting = Reassembly(PieceBudget())
    for offset in range(1, 2 * MAX_PIECES, 2):
        waiting.insert(offset, memoryview(b"a"))
    assert len(waiting._begins) == MAX_PIECES
    for _ in range(3):
        waiting.insert(1, memoryview(b"b" * (2 * MAX_PIECES - 1)))
        assert len(waiting._begins) == len(waiting._ends) == len(waiting._tails) == 1
    assert waiting.bytes == 2 * MAX_PIECES - 1
    assert waiting.pop(1) == b"ab" * (MAX_PIECES - 1) + b"a"


def test_pieces_from_behind_are_not_moved_for_each() -> None:
    budget = PieceBudget()
    waiting = Reassembly(budget)
    for offset in range(MAX_PIECES, 0, -1):
        waiting.insert(offset, memoryview(bytes([offset % 251])))
    assert (waiting.pieces, len(waiting._begins)) == (MAX_PIECES, 1)
    assert waiting.pop(1) == bytes(offset % 251 for offset in range(1, MAX_PIECES + 1))
    assert budget.used == 0


def crowded(budget: PieceBudget, pieces: int) -> Reassembly:
    waiting = Reassembly(budget)
    for number in range(pieces):
        waiting.insert(1 + 2 * number, memoryview(b"a"))
    return waiting


def test_the_pieces_of_a_stream_are_bounded() -> None:
    budget = PieceBudget()
    waiting = crowded(budget, MAX_PIECES)
    waiting.insert(2, memoryview(b"b"))
    with pytest.raises(PeerError, match="of a stream") as caught:
        waiting.insert(10 * MAX_PIECES, memoryview(b"b"))
    assert caught.value.reason is CloseReason.LIMIT
    assert waiting.pieces == budget.used == MAX_PIECES


def test_the_pieces_of_a_session_are_bounded() -> None:
    budget = PieceBudget()
    streams = [crowded(budget, MAX_PIECES) for _ in range(MAX_SESSION_PIECES // MAX_PIECES)]
    assert budget.used == MAX_SESSION_PIECES
    with pytest.raises(PeerError) as caught:
        crowded(budget, 1)
    assert caught.value.reason is CloseReason.LIMIT
    streams[0].pop(1)
    crowded(budget, 1)


def test_a_stream_that_ends_gives_its_pieces_back() -> None:
    budget = PieceBudget()
    other, waiting = crowded(budget, 3), crowded(budget, 5)
    waiting.clear()
    assert (waiting.pieces, waiting.bytes, budget.used) == (0, 0, 3)
    assert waiting.pop(1) is None
    waiting.insert(7, memoryview(b"again"))
    assert (waiting.pieces, other.pieces, budget.used) == (1, 3, 4)
