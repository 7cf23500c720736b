"""First flights piece by piece, and many sockets of which a bounded number has its turn."""

from __future__ import annotations

import asyncio
import random
import selectors
import socket
from functools import partial

import pytest

from cryprq_proxy.crypto.handshake import FIRST_SIZE, LENGTH
from cryprq_proxy.errors import CarrierError, HandshakeError
from cryprq_proxy.exit.first_flight import READS, FirstFlight, SilentSockets, read_pieces
from tests.support.settle import until

FLIGHT = random.Random(1).randbytes(FIRST_SIZE.start)
WHOLE = LENGTH.pack(len(FLIGHT)) + FLIGHT


@pytest.mark.parametrize("piece", [1, 2, 3, 1000, len(WHOLE)])
def test_a_flight_in_pieces(piece: int) -> None:
    first, rest = FirstFlight(), WHOLE
    while first.missing:
        size = min(piece, first.missing)
        first.feed(rest[:size])
        rest = rest[size:]
    assert first.flight == FLIGHT
    assert not rest


@pytest.mark.parametrize("size", [0, FIRST_SIZE.start - 1, FIRST_SIZE.stop, 0xFFFF])
def test_an_impossible_length(size: int) -> None:
    with pytest.raises(HandshakeError, match="impossible length"):
        FirstFlight().feed(LENGTH.pack(size))


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours, theirs


def test_no_byte_beyond_the_flight_is_taken() -> None:
    ours, theirs = pair()
    with ours, theirs:
        first = FirstFlight()
        ours.sendall(WHOLE[:10])
        assert read_pieces(theirs, first) is None
        assert first.missing == len(WHOLE) - 10
        ours.sendall(WHOLE[10:] + b"more")
        assert read_pieces(theirs, first) is None
        assert first.flight == FLIGHT
        assert theirs.recv(100) == b"more"


def test_an_end_and_a_reset_are_errors() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.sendall(WHOLE[:10])
        ours.close()
        assert isinstance(read_pieces(theirs, FirstFlight()), CarrierError)
        theirs.close()
        assert isinstance(read_pieces(theirs, FirstFlight()), CarrierError)
    ours, theirs = pair()
    with ours, theirs:
        ours.sendall(b"\xff\xff")
        assert isinstance(read_pieces(theirs, FirstFlight()), HandshakeError)


async def test_a_bounded_number_is_read_from_in_one_turn() -> None:
    sockets, loop = SilentSockets(asyncio.get_running_loop()), asyncio.get_running_loop()
    pairs = [pair() for _ in range(3 * READS)]
    turn = 0
    read: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(read) < len(pairs):
            loop.call_soon(count)

    def ready(sock: socket.socket) -> None:
        read.append(turn)
        sock.recv(1)

    for ours, theirs in pairs:
        sockets.watch(theirs, partial(ready, theirs))
        ours.send(b"x")
    count()
    await until(lambda: len(read) == len(pairs))
    assert [read.count(number) for number in sorted(set(read))] == [READS] * 3
    sockets.close()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_the_ready_ones_are_listed_once_for_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case that was: a list of all of them in each turn, 4 ms of it with 4,096 connections."""
    loop, listed, read = asyncio.get_running_loop(), [], 0
    select = selectors.DefaultSelector.select

    class Counting(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            listed.append(len(ready := select(self, timeout)))
            return ready

    monkeypatch.setattr(selectors, "DefaultSelector", Counting)
    sockets = SilentSockets(loop)
    pairs = [pair() for _ in range(4 * READS)]

    def ready(theirs: socket.socket) -> None:
        nonlocal read
        read += len(theirs.recv(1))

    for ours, theirs in pairs:
        sockets.watch(theirs, partial(ready, theirs))
        ours.send(b"x")
    await until(lambda: read == len(pairs))
    assert sum(listed) == len(pairs)
    sockets.close()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_a_newcomer_with_the_number_of_one_that_was_closed_is_not_read_from() -> None:
    """In a later turn than that in which the ready ones were listed."""
    sockets, read = SilentSockets(asyncio.get_running_loop()), 0
    pairs = [pair() for _ in range(2 * READS)]
    newcomers: list[tuple[socket.socket, socket.socket]] = []
    reused: list[int] = []

    def ready() -> None:
        nonlocal read
        read += 1
        if read < READS:
            return
        numbers = {theirs.fileno() for _, theirs in pairs}
        for ours, theirs in pairs:
            sockets.forget(theirs)
            theirs.close()
            ours.close()
        newcomers.extend(pair() for _ in pairs)
        for _, theirs in newcomers:
            sockets.watch(theirs, partial(reused.append, theirs.fileno()))
        newcomers[0][0].send(b"x")
        assert numbers & {theirs.fileno() for _, theirs in newcomers}

    for ours, theirs in pairs:
        sockets.watch(theirs, ready)
        ours.send(b"x")
    await until(lambda: reused)
    assert (read, set(reused)) == (READS, {newcomers[0][1].fileno()})
    sockets.close()
    for ours, theirs in newcomers:
        ours.close()
        theirs.close()


async def test_what_one_closes_has_no_turn_any_more() -> None:
    sockets = SilentSockets(asyncio.get_running_loop())
    pairs = [pair() for _ in range(3)]
    read: list[int] = []

    def ready(number: int) -> None:
        read.append(number)
        for _, theirs in pairs:
            sockets.forget(theirs)
            theirs.close()

    for number, (ours, theirs) in enumerate(pairs):
        sockets.watch(theirs, partial(ready, number))
        ours.send(b"x")
    await until(lambda: read)
    await asyncio.sleep(0)
    assert len(read) == 1
    sockets.close()
    sockets.close()
    for ours, _ in pairs:
        ours.close()
