"""Bytes that wait: in order, none twice, in few pieces."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.outbound.backlog import PIECE, WRITES, Backlog


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        yield here, there


class Slow:
    """A socket that takes at each call as many bytes as it is told, and with none left says that it would block."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.sent = bytearray()
        self.calls = 0

    def send(self, data: memoryview) -> int:
        self.calls += 1
        if not self.sizes:
            raise BlockingIOError
        taken = min(self.sizes.pop(0), len(data))
        self.sent += data[:taken]
        return taken


@given(st.lists(st.one_of(st.binary(max_size=40), st.lists(st.integers(0, 60), max_size=4), st.none())))
def test_bytes_leave_once_and_in_order(steps: list[bytes | list[int] | None]) -> None:
    """Bytes are appended, a list is how much a socket takes, None takes the piece at the front."""
    backlog, put, got = Backlog(), bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            put += step
            backlog.append(step)
        elif step is None:
            if backlog:
                got += backlog.pop()
        else:
            slow = Slow(step)
            before = len(backlog)
            assert backlog.write(slow) == len(slow.sent) == before - len(backlog)  # type: ignore[arg-type]
            got += slow.sent
        assert len(backlog) == len(put) - len(got)
        assert put.startswith(got)
    while backlog:
        got += backlog.pop()
    assert got == put


def test_small_pieces_are_joined_in_memory_and_in_calls(pair: tuple[socket.socket, socket.socket]) -> None:
    backlog = Backlog()
    for _ in range(PIECE):
        backlog.append(b"x")
    [piece] = backlog._pieces
    assert sys.getsizeof(piece) < 2 * PIECE
    slow = Slow([PIECE])
    assert backlog.write(slow) == PIECE and slow.calls == 1  # type: ignore[arg-type]
    backlog.append(b"real")
    assert backlog.write(pair[0]) == 4 and pair[1].recv(10) == b"real"


def test_one_turn_writes_a_bounded_number_of_pieces() -> None:
    backlog = Backlog()
    for _ in range(WRITES + 1):
        backlog.append(bytes(PIECE))
    slow = Slow([PIECE] * 100)
    assert backlog.write(slow) == WRITES * PIECE  # type: ignore[arg-type]
    assert len(backlog) == PIECE


def test_a_broken_socket_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    backlog = Backlog()
    backlog.append(b"x")
    pair[1].close()
    with pytest.raises(OSError, match="Broken pipe"):
        backlog.write(pair[0])


def test_clearing_forgets_everything() -> None:
    backlog = Backlog()
    backlog.append(b"abc")
    backlog.write(Slow([1]))  # type: ignore[arg-type]
    backlog.clear()
    backlog.append(b"new")
    assert (len(backlog), bytes(backlog.pop())) == (3, b"new")
