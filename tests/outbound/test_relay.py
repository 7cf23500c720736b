"""The relay between a socket and a stream: a real socket pair on one side, a stream of the test on the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.backlog import Backlog
from cryprq_proxy.outbound.relay import READS, SLOTS, Relay
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.session.streams import Half
from cryprq_proxy.session.windows import INITIAL_WINDOW
from tests.support.fake_streams import FakeStream
from tests.support.settle import settle, until
from tests.support.visits import tcp_pair

BIG = bytes(range(256)) * 16_384  # 4 MiB, more than a socket pair holds


class CountingPool(SlotPool):
    """`out`: the slots that were taken and not given back."""

    out = 0

    def take(self) -> memoryview:
        self.out += 1
        return super().take()

    def give(self, slot: memoryview) -> None:
        self.out -= 1
        super().give(slot)


class CountingSocket:
    """`sends`: how often something was sent. While it is `full`, it takes nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno, self.close, self.recv_into = sock.fileno, sock.close, sock.recv_into
        self.setsockopt = sock.setsockopt
        self.full = False
        self.sends = 0

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        self.sends += 1
        return self._sock.send(data)


class Wire:
    """A relay; `application` is the other end of its socket."""

    def __init__(self, room: int = 1 << 20, *, tcp: bool = False) -> None:
        self.application, self.sock = tcp_pair() if tcp else socket.socketpair()
        self.application.setblocking(False)
        self.sock.setblocking(False)
        self.slots = CountingPool()
        self.stream = FakeStream(self.slots, room)
        self.ended: list[Relay] = []
        self.relay = Relay(asyncio.get_running_loop(), self.sock, self.stream, self.slots, self.ended.append)

    async def read(self, size: int) -> bytes:
        """What the application gets: `size` bytes, or all up to the end."""
        loop, got = asyncio.get_running_loop(), bytearray()
        while len(got) < size and (data := await loop.sock_recv(self.application, size - len(got))):
            got += data
        return bytes(got)

    def is_reset(self) -> bool:
        """Whether the relay has closed its socket."""
        return self.sock.fileno() < 0


async def held(wire: Wire) -> AsyncIterator[Wire]:
    yield wire
    if not wire.ended:
        wire.relay.abort(StreamReason.CANCELLED)
    wire.application.close()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async for wire in held(Wire()):
        yield wire


@pytest.fixture
async def tcp_wire() -> AsyncIterator[Wire]:
    """Over loopback: a socket pair knows no TCP reset."""
    async for wire in held(Wire(tcp=True)):
        yield wire


# --- socket to stream ---


async def test_what_the_application_says_is_sent(wire: Wire) -> None:
    wire.relay.start(b"early ")
    wire.application.send(b"and late")
    await until(lambda: wire.stream.sent == b"early and late")


async def test_one_wake_up_reads_a_bounded_number_of_times(wire: Wire) -> None:
    wire.stream.frame_limit = 1_000
    wire.relay.start()
    wire.application.send(bytes(50_000))
    steps = []
    while len(wire.stream.sent) < 50_000:
        before = len(wire.stream.sent)
        await asyncio.sleep(0)
        steps.append(len(wire.stream.sent) - before)
    assert max(steps) <= READS * SLOTS * 1_000, "others get their turn"


async def test_no_more_is_read_than_the_stream_takes(wire: Wire) -> None:
    wire.stream.room = 10
    wire.relay.start()
    wire.application.send(bytes(25))
    await until(lambda: len(wire.stream.sent) == 25)  # FakeStream counts what it grants


async def test_a_starved_stream_leaves_the_bytes_in_the_socket(wire: Wire) -> None:
    wire.stream.room = 0
    wire.relay.start()
    wire.application.send(b"later")
    await settle()
    assert wire.stream.asked == 2, (
        "called in vain twice, the socket is not watched while the stream takes nothing"
    )
    wire.stream.room = 100
    wire.stream.turn()
    assert wire.stream.sent == b"later"


async def test_a_relay_that_waits_for_its_turn_is_not_armed(wire: Wire) -> None:
    """Armed, it would read beside its turns, and the fairness among streams would be gone."""
    wire.stream.room = 0
    wire.relay.start()
    wire.application.send(bytes(4_000))
    await settle()
    wire.stream.room = 1_000
    wire.stream.turn()
    assert (len(wire.stream.sent), wire.stream.turns) == (1_000, 1), "there is more: wait for another turn"
    await settle()
    assert len(wire.stream.sent) == 1_000
    wire.stream.room = 0
    wire.stream.turn()
    asked = wire.stream.asked
    await settle()
    assert wire.stream.asked == asked, "starved once more, it waits for the stream and not for the socket"


async def test_a_socket_that_is_read_empty_is_watched_again(wire: Wire) -> None:
    wire.stream.room = 0
    wire.relay.start()
    wire.application.send(b"one")
    await settle()
    wire.stream.room = 1_000
    wire.stream.turn()
    assert wire.stream.sent == b"one" and not wire.stream.turns
    wire.application.send(b" two")
    await until(lambda: wire.stream.sent == b"one two")


async def test_slots_come_back_to_the_pool(wire: Wire) -> None:
    wire.relay.start()
    for size in (1, 5_000, 100):
        before = len(wire.stream.sent)
        wire.application.send(bytes(size))
        await until(lambda before=before, size=size: len(wire.stream.sent) == before + size)  # type: ignore[misc]
    await settle()
    assert wire.slots.out == 0


async def test_slots_come_back_when_the_socket_breaks(tcp_wire: Wire) -> None:
    """Each application that breaks its connection would otherwise cost the process a slot for good."""
    tcp_wire.relay.start()
    set_reset_on_close(tcp_wire.application)
    tcp_wire.application.close()
    await until(lambda: tcp_wire.ended)
    assert tcp_wire.stream.resets == [StreamReason.CONNECTION_RESET]
    assert tcp_wire.slots.out == 0


# --- half-close ---


async def test_the_end_of_the_socket_is_the_end_of_one_direction_only(wire: Wire) -> None:
    wire.relay.start()
    wire.application.send(b"question")
    wire.application.shutdown(socket.SHUT_WR)
    await until(lambda: wire.stream.send_half is Half.CLOSED)
    assert wire.stream.sent == b"question" and not wire.ended and not wire.stream.resets
    wire.relay.data_received(b"answer")
    wire.stream.end()
    assert await wire.read(100) == b"answer"
    assert wire.ended == [wire.relay] and wire.is_reset()


async def test_the_end_of_the_stream_is_the_end_of_one_direction_only(wire: Wire) -> None:
    wire.relay.start()
    wire.stream.end()
    assert await wire.read(1) == b""
    wire.application.send(b"still here")
    await until(lambda: wire.stream.sent == b"still here")
    assert not wire.ended
    wire.application.shutdown(socket.SHUT_WR)
    await until(lambda: wire.ended)


async def test_the_end_waits_behind_what_the_socket_has_not_taken(wire: Wire) -> None:
    wire.relay.start()
    wire.relay.data_received(BIG)
    wire.stream.end()
    assert await wire.read(len(BIG) + 1) == BIG
    assert wire.stream.taken == len(BIG)


# --- stream to socket ---


async def test_only_what_the_socket_took_is_consumed(wire: Wire) -> None:
    """The stream's window is what bounds the bytes that wait here."""
    wire.relay.start()
    wire.relay.data_received(BIG)
    wire.relay.data_received(b"end")
    held = wire.stream.taken
    assert 0 < held < len(BIG)
    await settle()
    assert wire.stream.taken == held, "the application reads nothing"
    assert await wire.read(len(BIG) + 3) == BIG + b"end"
    await until(lambda: wire.stream.taken == len(BIG) + 3)


async def test_a_relay_says_how_many_bytes_it_has_moved(wire: Wire) -> None:
    """They are work of the peer: see socket_group.py."""
    wire.relay.start()
    wire.application.send(bytes(1_000))
    assert wire.relay._on_readable() == 1_000
    assert wire.relay._on_readable() == 0
    wire.relay.data_received(BIG)
    held = wire.stream.taken
    await wire.read(held)
    moved = wire.relay._on_writable()
    assert 0 < moved == wire.stream.taken - held
    wire.application.close()
    assert wire.relay._on_writable() == 0


async def test_what_the_stream_brought_before_the_relay_comes_first(wire: Wire) -> None:
    wire.stream.receive_half = Half.CLOSED
    received = Backlog()
    received.append(b"one ")
    received.append(b"two")
    wire.relay.start(received=received, ended=True)
    assert await wire.read(100) == b"one two"
    assert wire.stream.taken == 7


@pytest.mark.parametrize("early", [True, False])
async def test_small_frames_that_waited_leave_together(wire: Wire, early: bool) -> None:
    """A call of the kernel for each would be a turn of a quarter of a second for 65,536 of them."""
    counting = CountingSocket(wire.sock)
    wire.relay._sock = counting  # type: ignore[assignment]
    received = Backlog()
    if not early:
        wire.relay.start()
        counting.full = True
    for _ in range(INITIAL_WINDOW):
        (received.append if early else wire.relay.data_received)(b"x")
    counting.full, counting.sends = False, 0
    if early:
        wire.relay.start(received=received)
    assert await wire.read(INITIAL_WINDOW) == b"x" * INITIAL_WINDOW
    assert wire.stream.taken == INITIAL_WINDOW
    assert counting.sends < 10, "some, since the socket pair takes less at once"


# --- the end ---


async def test_a_reset_of_the_application_resets_the_stream(wire: Wire) -> None:
    wire.relay.start()
    wire.relay.data_received(BIG)
    wire.application.close()
    await until(lambda: wire.ended)
    assert wire.stream.resets == [StreamReason.CONNECTION_RESET]


async def test_a_reset_of_the_stream_closes_the_socket(wire: Wire) -> None:
    wire.relay.start()
    wire.relay.reset(StreamReason.CONNECTION_RESET)
    assert wire.ended == [wire.relay] and wire.is_reset()
    wire.relay.abort(StreamReason.CANCELLED)
    assert wire.ended == [wire.relay], "it ends once"


@pytest.mark.parametrize("end", ["abort", "reset", "refused"])
async def test_the_application_sees_an_error_and_not_an_early_end(tcp_wire: Wire, end: str) -> None:
    """With an ordinary end, half a file would pass for a whole one."""
    tcp_wire.relay.start()
    getattr(tcp_wire.relay, end)(StreamReason.SESSION_LOST)
    with pytest.raises(ConnectionResetError):
        await tcp_wire.read(1)


# --- faults of this program ---


def raise_fault(*_: object) -> int:
    raise ZeroDivisionError


async def test_a_fault_while_reading_ends_both_sides_and_is_logged_once(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop called again and again, with a log line for each call."""
    wire.relay.start()
    wire.stream.request_room = raise_fault  # type: ignore[method-assign]
    wire.application.send(b"data")
    await until(lambda: bool(wire.ended))
    await settle()
    assert wire.is_reset() and wire.stream.send_half is Half.CLOSED
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_fault_while_writing_ends_both_sides_and_is_logged_once(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.relay.start()
    wire.relay.data_received(BIG)
    wire.stream.consumed = raise_fault  # type: ignore[method-assign,assignment]
    await wire.read(len(BIG))
    await until(lambda: bool(wire.ended))
    await settle()
    assert wire.is_reset()
    assert [record.exc_info is not None for record in caplog.records] == [True]


# --- a stream that is not opened yet ---


async def test_a_refusal_is_a_reset_of_the_application(tcp_wire: Wire) -> None:
    """It was told that its target is connected."""
    wire = tcp_wire
    wire.relay.start()
    wire.application.send(b"question")
    await until(lambda: wire.stream.sent == b"question")
    wire.relay.refused(StreamReason.CONNECTION_REFUSED)
    assert wire.ended == [wire.relay]
    with pytest.raises(ConnectionResetError):
        await wire.read(1)


async def test_another_stream_may_take_the_place_of_one_that_was_given_up(wire: Wire) -> None:
    """What the application says meanwhile waits in its socket, its end too."""
    wire.relay.start()
    before, after = wire.stream, FakeStream(wire.slots)
    before.reset(StreamReason.CANCELLED)
    before.room = 0
    wire.application.send(b"question")
    wire.application.shutdown(socket.SHUT_WR)
    await until(lambda: before.asked)
    assert not before.sent and wire.relay.unwatched
    after.handler = wire.relay
    wire.relay.moved(after)
    await until(lambda: after.sent == b"question" and after.send_half is Half.CLOSED)
    wire.relay.data_received(b"answer")
    after.end()
    assert await wire.read(100) == b"answer"
    assert wire.ended == [wire.relay]


async def test_a_stream_that_comes_too_late_is_given_up(wire: Wire) -> None:
    wire.relay.start()
    wire.relay.abort(StreamReason.CANCELLED)
    late = FakeStream()
    wire.relay.moved(late)
    assert late.resets == [StreamReason.CANCELLED]
