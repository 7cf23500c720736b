"""Two gigabytes in each direction, and the memory of both processes while they pass."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.applications import through
from tests.support.background import PATIENCE
from tests.support.programs import World
from tests.support.targets import BLOCK, MIB

SIZE = 2 << 30
GROWTH = 48 * MIB
"""That memory may grow by, after the first quarter."""


class Memory:
    """The largest growth of any process's resident memory since the first sample."""

    def __init__(self, world: World) -> None:
        self._programs = world.programs
        self._first: list[int] = []
        self.growth = 0

    def sample(self) -> None:
        now = [program.memory() for program in self._programs]
        self._first = self._first or now
        self.growth = max(self.growth, *(b - a for a, b in zip(self._first, now, strict=True)))


@contextmanager
def target(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server on a thread, for one connection: asyncio would be what is measured. Gives its port."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with listener.accept()[0] as sock:
                sock.settimeout(PATIENCE)
                serve(sock)
        except BaseException as error:
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(PATIENCE)
    if failures:
        raise failures[0]


def send(sock: socket.socket) -> None:
    """SIZE bytes: blocks that begin with their number, so that none can be lost, doubled or moved unseen."""
    block = bytearray(BLOCK)
    for number in range(SIZE // len(BLOCK)):
        block[:8] = number.to_bytes(8)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket, memory: Memory | None = None) -> None:
    """The same bytes; samples the memory from the second quarter on."""
    expected, buffer = bytearray(BLOCK), bytearray(len(BLOCK))
    view = memoryview(buffer)
    blocks = SIZE // len(BLOCK)
    for number in range(blocks):
        filled = 0
        while filled < len(buffer):
            size = sock.recv_into(view[filled:])
            assert size, f"the stream ended in block {number}"
            filled += size
        expected[:8] = number.to_bytes(8)
        assert buffer == expected, f"block {number} is damaged"
        if memory is not None and number >= blocks // 4 and number % 64 == 0:
            memory.sample()
    assert sock.recv(1) == b""


@pytest.mark.timeout(300)
def test_two_gigabytes_down(world: World) -> None:
    _, client = world.pair()
    memory = Memory(world)
    with target(send) as port, through(client.port, port) as sock:
        receive(sock, memory)
    assert memory.growth < GROWTH


@pytest.mark.timeout(300)
def test_two_gigabytes_up(world: World) -> None:
    _, client = world.pair()
    memory = Memory(world)
    with target(lambda sock: receive(sock, memory)) as port, through(client.port, port) as sock:
        send(sock)
        assert sock.recv(1) == b""
    assert memory.growth < GROWTH


def test_slow_reader(world: World) -> None:
    """Who does not read holds up nobody else, and costs no more memory than the windows."""
    exit, client = world.pair()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        through(client.port, listener.getsockname()[1]),
        listener.accept()[0] as stuck,
    ):
        stuck.setblocking(False)
        before = exit.memory(), client.memory()
        fill(stuck)
        with target(send_little) as port, through(client.port, port) as sock:
            while sock.recv(1 << 16):
                fill(stuck)
        after = exit.memory(), client.memory()
    assert all(b - a < 64 * MIB for a, b in zip(before, after, strict=True))


def fill(sock: socket.socket) -> None:
    """As much as the socket takes."""
    try:
        while sock.send(BLOCK):
            pass
    except BlockingIOError:
        pass


def send_little(sock: socket.socket) -> None:
    for _ in range(64):
        sock.sendall(BLOCK)
    sock.shutdown(socket.SHUT_WR)
