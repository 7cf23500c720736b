"""Farewell: the last bytes arrive whatever lies unread, and nobody is waited for without end. With real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cryprq_proxy.base import linger as farewell
from cryprq_proxy.base.linger import SECONDS, Farewell, farewells_ended

LAST = b"the last words"
MUCH = (bytes(range(251)) * 33_500)[: 8 << 20]
"""More than the kernel takes."""


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours and the peer's, connected, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    for sock in (ours, peer):
        sock.setblocking(False)
    yield ours, peer
    assert not farewell._pending
    assert ours.fileno() == -1, "a farewell closes its socket"
    peer.close()


class Loop:
    """The running loop, whose timers go off when they are told to."""

    def __init__(self) -> None:
        self.real = asyncio.get_running_loop()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Loop:
        self.timers.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class Ended:
    """Counts the calls at the end."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


async def read_all(sock: socket.socket) -> bytes:
    """Until the other side ends; a reset is an error."""
    loop, data = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(sock, 65_536):
        data += piece
    return bytes(data)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def pause() -> None:
    """Let the loop look at its sockets a few times."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_last_bytes_arrive_although_others_lie_unread(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, peer = sockets
    loop, ended = Loop(), Ended()
    await loop.sock_sendall(peer, b"never read" * 1000)
    words = Farewell(loop, ours, LAST, ended)  # type: ignore[arg-type]
    assert await read_all(peer) == LAST, "and then an end, not a reset"
    await loop.sock_sendall(peer, b"still talking" * 10_000)
    assert not words.done.done() and ended.calls == 0
    peer.close()
    await words.done
    assert ended.calls == 1 and loop.cancelled == 1


async def test_closing_at_once_would_have_been_a_reset(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """What this module is for."""
    ours, peer = sockets
    await asyncio.get_running_loop().sock_sendall(peer, b"never read")
    ours.close()
    with pytest.raises(ConnectionResetError):
        await read_all(peer)


@pytest.mark.parametrize("half_closed", [False, True])
async def test_more_than_the_kernel_takes(
    sockets: tuple[socket.socket, socket.socket], half_closed: bool
) -> None:
    """Also to a peer that has ended its own direction before, and only listens."""
    ours, peer = sockets
    loop, ended = Loop(), Ended()
    peer.send(b"never read")
    if half_closed:
        peer.shutdown(socket.SHUT_WR)
    words = Farewell(loop, ours, MUCH, ended)  # type: ignore[arg-type]
    await pause()
    assert ended.calls == 0
    assert await read_all(peer) == MUCH
    peer.close()
    await words.done
    assert ended.calls == 1


async def test_nothing_to_say(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = sockets
    words = Farewell(asyncio.get_running_loop(), ours)
    assert await read_all(peer) == b""
    peer.close()
    await words.done


async def test_no_more_is_dropped_than_the_bound(sockets: tuple[socket.socket, socket.socket]) -> None:
    """One that sends on and on has the last bytes too, and the rest of its time to read them."""
    ours, peer = sockets
    loop, dropped = Loop(), []
    words = Farewell(loop, ours, LAST, most=100_000)  # type: ignore[arg-type]
    sending = asyncio.ensure_future(loop.sock_sendall(peer, bytes(32 << 20)))
    assert await read_all(peer) == LAST
    for _ in range(50):
        await pause()
        dropped.append(words._dropped)
    assert 100_000 <= dropped[-1] < 100_000 + 65_536 and not words.done.done()
    [(seconds, cut)] = loop.timers
    assert seconds == SECONDS
    cut()
    with pytest.raises(ConnectionError):
        await sending
    await words.done


@pytest.mark.parametrize("last", [LAST, MUCH], ids=["it has taken", "it does not take"])
@pytest.mark.parametrize("talks", [False, True])
async def test_a_peer_that_never_ends(
    sockets: tuple[socket.socket, socket.socket], last: bytes, talks: bool
) -> None:
    ours, peer = sockets
    loop, ended = Loop(), Ended()
    words = Farewell(loop, ours, last, ended)  # type: ignore[arg-type]
    for _ in range(10):
        if talks:
            await loop.sock_sendall(peer, b"on and on" * 1000)
        await pause()
    assert not words.done.done() and ended.calls == 0
    [(delay, give_up)] = loop.timers
    assert delay == SECONDS
    give_up()
    assert words.done.done() and ended.calls == 1 and ours.fileno() == -1
    give_up()
    assert ended.calls == 1, "once"


@pytest.mark.parametrize("before", [True, False])
async def test_a_peer_that_is_gone(sockets: tuple[socket.socket, socket.socket], before: bool) -> None:
    ours, peer = sockets
    loop, ended = Loop(), Ended()
    if before:
        reset(peer)
    words = Farewell(loop, ours, MUCH, ended)  # type: ignore[arg-type]
    if not before:
        reset(peer)
    await words.done
    assert ended.calls == 1 and loop.cancelled == 1


async def test_waiting_until_all_is_said() -> None:
    await farewells_ended()
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        ours.setblocking(False)
        Farewell(loop, ours, LAST)
    waiting = asyncio.create_task(farewells_ended())
    for _, peer in pairs:
        await pause()
        assert not waiting.done()
        assert peer.recv(100) == LAST
        peer.close()
    await waiting
    assert not farewell._pending
    assert all(ours.fileno() == -1 for ours, _ in pairs)


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell, "SECONDS", 0.0)
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with peer:
        Farewell(asyncio.get_running_loop(), ours, LAST)
        await farewells_ended()
        assert ours.fileno() == -1 and peer.recv(100) == LAST and peer.recv(100) == b""
