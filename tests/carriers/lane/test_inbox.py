"""What a UDP socket has for a lane, in which order and how much at a time: carriers/lane/inbox.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from cryprq_proxy.base.buffers import SharedBuffers
from cryprq_proxy.carriers.lane import inbox as module
from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE, Batch, UdpPeer
from cryprq_proxy.carriers.lane.inbox import (
    BUFFERS,
    BUSY_BYTES,
    CALM_SECONDS,
    DATAGRAM_COST,
    EXPRESS_COST,
    POLL_SECONDS,
    QUIET_POLLS,
    TURN_COST,
    Inbox,
)
from cryprq_proxy.lane.layout import EXPRESS_KIND, KIND
from tests.support.read_behind import read_behind

PEER = UdpPeer(("192.0.2.1", 1))


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    def __init__(self) -> None:
        self.now = 0.0
        self.readers: dict[int, Callable[[], None]] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.later: list[Timer] = []
        self.delays: list[float] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        self.delays.append(delay)
        self.later.append(Timer(callback))
        return self.later[-1]

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int, /) -> object:
        return self.readers.pop(fd, None)

    def call_soon(self, callback: Callable[[], None], /) -> object:
        return self.soon.append(callback)  # type: ignore[func-returns-value]


class Socket:
    """Batches of (kind, number, size), in datagrams of `segment` bytes, or in one."""

    def __init__(self) -> None:
        self.segment = 0
        self.peer = PEER
        self.queue: deque[tuple[int, int, int]] = deque()

    def fileno(self) -> int:
        return 7

    def receive(self, buffer: memoryview, at: int = 0) -> Batch | None:
        if not self.queue:
            return None
        kind, number, size = self.queue.popleft()
        assert len(buffer) - at >= RECEIVE_SIZE
        buffer[at], buffer[at + 1] = kind, number
        return Batch(buffer, size, min(self.segment or size, size), self.peer)

    def receive_behind(self, batch: Batch, most: int) -> tuple[Batch, Batch | None, bool]:
        return read_behind(self.receive, batch, most)


class Stage:
    def __init__(self) -> None:
        self.loop, self.sock = Loop(), Socket()
        self.seen: list[int] = []
        self.batches: list[tuple[int, int, int]] = []
        self.turns: list[bool] = []
        self.on_batch: Callable[[], None] = lambda: None
        loop: Any = self.loop
        sock: Any = self.sock
        self.inbox = Inbox(loop, sock, self.handle, self.turns.append)

    def handle(self, batch: Batch) -> None:
        self.seen.append(batch.data[1])
        self.batches.append((batch.data[1], batch.size, batch.segment))
        self.on_batch()

    def readable(self) -> None:
        self.loop.readers[7]()

    def again(self) -> None:
        self.loop.soon.popleft()()

    def poll(self) -> None:
        """A millisecond later."""
        self.loop.now += POLL_SECONDS
        [timer] = self.loop.later
        self.loop.later.clear()
        assert not timer.cancelled
        timer.callback()

    def trickle(self, number: int, size: int = 1437, seconds: float = 0.0001) -> None:
        """Datagrams that come one by one, while the socket is watched."""
        for _ in range(number):
            self.loop.now += seconds
            self.sock.queue.append((KIND, 1, size))
            self.readable()

    @property
    def polling(self) -> bool:
        watched, timed = bool(self.loop.readers), bool(self.loop.later or self.loop.soon)
        assert watched != timed or (watched and not self.loop.later), "one or the other"
        return not watched


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(module, "SHARED", SharedBuffers())
    return Stage()


def test_a_little_at_a_time_in_the_order_of_arrival(stage: Stage) -> None:
    size = TURN_COST // 2
    stage.sock.queue.extend((KIND, number, size) for number in range(5))
    stage.readable()
    assert (stage.seen, stage.turns) == ([0, 1], [True])
    assert not stage.sock.queue
    stage.again()
    assert (stage.seen, stage.turns) == ([0, 1, 2, 3], [True, True])
    stage.again()
    assert (stage.seen, stage.turns) == ([0, 1, 2, 3, 4], [True, True, False])
    assert not stage.loop.soon


def test_what_is_urgent_overtakes(stage: Stage) -> None:
    stage.sock.queue.extend((KIND, number, TURN_COST) for number in range(3))
    stage.sock.queue.append((EXPRESS_KIND, 9, 100))
    stage.readable()
    assert stage.seen == [9, 0]
    stage.sock.queue.extend([(KIND, 3, 100), (EXPRESS_KIND, 8, 100), (EXPRESS_KIND, 7, 100)])
    stage.again()
    assert stage.seen == [9, 0, 8, 7, 1]
    stage.again()
    assert stage.seen == [9, 0, 8, 7, 1, 2]
    stage.again()
    assert stage.seen == [9, 0, 8, 7, 1, 2, 3]


FULL = 45 * 1437
"""As much as one send can be of datagrams of 1437 bytes."""


@pytest.mark.parametrize("rest", [3 * 1437, 3 * 1437 - 5, 700])
def test_the_rest_of_a_super_packet_is_put_behind_its_beginning(stage: Stage, rest: int) -> None:
    stage.sock.segment = 1437
    stage.sock.queue.extend([(KIND, 1, FULL), (KIND, 2, rest), (KIND, 3, FULL)])
    stage.readable()
    while stage.loop.soon:
        stage.again()
    assert stage.batches == [(1, FULL + rest, 1437), (3, FULL, 1437)]


@pytest.mark.parametrize(
    ("kind", "size", "segment", "seen"),
    [
        (EXPRESS_KIND, 100, 1437, [(2, 100, 100), (1, FULL, 1437)]),  # one that may overtake
        (KIND, 3000, 1000, [(1, FULL, 1437), (2, 3000, 1000)]),  # of another size
        (KIND, FULL, 1437, [(1, FULL, 1437), (2, FULL, 1437)]),  # more than a train
    ],
)
def test_what_is_no_rest_is_a_batch_of_its_own(
    stage: Stage, kind: int, size: int, segment: int, seen: list[tuple[int, int, int]]
) -> None:
    stage.sock.segment = 1437
    stage.sock.queue.append((KIND, 1, FULL))
    stage.sock.queue.append((kind, 2, size))
    received = stage.sock.receive

    def receive(buffer: memoryview, at: int = 0) -> Batch | None:
        batch = received(buffer, at)
        stage.sock.segment = segment
        return batch

    stage.sock.receive = receive  # type: ignore[method-assign]
    stage.readable()
    while stage.loop.soon:
        stage.again()
    assert stage.batches == seen


def test_the_rest_of_a_super_packet_comes_from_the_same_peer(stage: Stage) -> None:
    stage.sock.segment = 1437
    stage.sock.queue.append((KIND, 1, FULL))
    received = stage.sock.receive

    def receive(buffer: memoryview, at: int = 0) -> Batch | None:
        batch = received(buffer, at)
        stage.sock.peer = UdpPeer(("192.0.2.2", 1))
        return batch

    stage.sock.receive = receive  # type: ignore[method-assign]
    stage.sock.queue.append((KIND, 2, 3 * 1437))
    stage.readable()
    assert stage.batches == [(1, FULL, 1437), (2, 3 * 1437, 1437)]


def test_the_rest_of_a_super_packet_has_the_same_congestion_mark(stage: Stage) -> None:
    stage.sock.segment = 1437
    stage.sock.queue.extend([(KIND, 1, FULL), (KIND, 2, 3 * 1437)])
    received = stage.sock.receive

    def receive(buffer: memoryview, at: int = 0) -> Batch | None:
        batch = received(buffer, at)
        return batch and batch._replace(marked=batch.size < FULL)

    stage.sock.receive = receive  # type: ignore[method-assign]
    stage.readable()
    while stage.loop.soon:
        stage.again()
    assert stage.batches == [(1, FULL, 1437), (2, 3 * 1437, 1437)]


def test_a_readable_socket_and_the_next_turn_do_not_double_the_work(stage: Stage) -> None:
    stage.sock.queue.extend((KIND, number, TURN_COST) for number in range(4))
    stage.readable()
    stage.readable()
    assert stage.seen == [0]
    assert len(stage.loop.soon) == 1


def test_what_waits_is_bounded(stage: Stage) -> None:
    stage.sock.queue.extend((KIND, number % 256, TURN_COST) for number in range(10 * BUFFERS))
    stage.readable()
    assert len(stage.inbox._waiting) < BUFFERS
    assert len(stage.sock.queue) >= 9 * BUFFERS


def test_a_flood_of_urgent_ones_ends_the_turn(stage: Stage) -> None:
    stage.sock.queue.extend((EXPRESS_KIND, 1, 100) for _ in range(100 * BUFFERS))
    stage.readable()
    assert len(stage.seen) <= 4 * BUFFERS
    assert stage.turns == [False]


@pytest.mark.parametrize("kind", [KIND, EXPRESS_KIND])
def test_small_datagrams_count_for_more_than_their_bytes(stage: Stage, kind: int) -> None:
    """A turn took 25 ms where batches had 64 datagrams of 30 bytes each, and all were urgent."""
    stage.sock.segment = 30
    stage.sock.queue.extend((kind, number, 64 * 30) for number in range(200))
    cost = 64 * (30 + DATAGRAM_COST)
    stage.readable()
    while stage.loop.soon:
        before = len(stage.seen)
        stage.again()
        assert len(stage.seen) - before <= (TURN_COST + EXPRESS_COST) // cost + 2
    assert sorted(stage.seen) == list(range(200))


def test_what_is_too_much_to_overtake_keeps_its_order(stage: Stage) -> None:
    stage.sock.queue.append((KIND, 0, 100))
    stage.sock.queue.extend((EXPRESS_KIND, number, EXPRESS_COST // 2) for number in range(1, 6))
    stage.readable()
    while stage.loop.soon:
        stage.again()
    assert stage.seen == [1, 2, 0, 3, 4, 5]


# --- one by one -----------------------------------------------------------------------------------------------


FEW = BUSY_BYTES // 1437
"""Datagrams that are not many yet."""


def test_many_that_come_one_by_one_are_read_each_millisecond(stage: Stage) -> None:
    stage.trickle(FEW)
    assert not stage.polling
    stage.trickle(1)
    assert stage.polling
    stage.sock.queue.extend((KIND, number, 1437) for number in range(40))
    stage.batches.clear()
    stage.poll()
    assert stage.polling
    assert stage.batches == [(0, 40 * 1437, 1437)], "put behind each other"
    assert stage.turns[-1] is False


def test_where_much_comes_the_next_read_is_sooner(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    for number in (10, 40, 10):
        stage.sock.queue.extend((KIND, 1, 1437) for _ in range(number))
        stage.poll()
    assert stage.loop.delays == [POLL_SECONDS, POLL_SECONDS, POLL_SECONDS / 2, POLL_SECONDS]


@pytest.mark.parametrize(("size", "seconds"), [(100, 0.0001), (1437, 0.0005)])
def test_small_or_slow_ones_are_read_at_once(stage: Stage, size: int, seconds: float) -> None:
    stage.trickle(100, size, seconds)
    assert not stage.polling and len(stage.seen) == 100


def test_those_that_the_kernel_joins_are_read_at_once(stage: Stage) -> None:
    stage.sock.segment = 1437
    stage.trickle(100, 4 * 1437)
    assert not stage.polling


def test_polling_ends_when_little_comes_and_does_not_begin_at_once(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    for _ in range(3 * QUIET_POLLS):
        stage.sock.queue.extend((KIND, 1, 1437) for _ in range(4))
        assert stage.polling
        stage.poll()
    for _ in range(QUIET_POLLS):
        assert stage.polling
        stage.poll()
    assert not stage.polling
    stage.trickle(5 * FEW)
    assert not stage.polling
    stage.loop.now += CALM_SECONDS
    stage.trickle(FEW + 1)
    assert stage.polling


def test_what_the_socket_itself_has_left_is_read_after_polling(stage: Stage) -> None:
    """The kernel would not tell of it again."""
    stage.trickle(FEW + 1)
    stage.sock.segment = 5  # joined datagrams end it
    stage.sock.queue.extend((EXPRESS_KIND, 1, 10) for _ in range(4 * BUFFERS + 5))
    stage.poll()
    while stage.loop.soon:
        stage.again()
    assert not stage.polling and not stage.sock.queue


def test_a_pause_of_the_sender_does_not_end_polling(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    for turn in range(4 * QUIET_POLLS):
        if turn % 2:
            stage.sock.queue.extend((KIND, 1, 1437) for _ in range(20))
        stage.poll()
        assert stage.polling


def test_polling_ends_where_the_kernel_begins_to_join(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    stage.sock.segment = 1437
    stage.sock.queue.append((KIND, 7, 9 * 1437))
    stage.poll()
    assert not stage.polling
    assert stage.batches[-1] == (7, 9 * 1437, 1437)


def test_more_than_a_turn_takes_is_polled_for_at_once(stage: Stage) -> None:
    """A socket's buffer that may not be made larger holds a millisecond of 2 Gbit/s."""
    stage.trickle(FEW + 1)
    stage.sock.queue.extend((KIND, 1, 1437) for _ in range(300))
    stage.poll()
    while stage.loop.soon:
        assert stage.polling
        stage.again()
    assert stage.polling and not stage.sock.queue
    assert len(stage.loop.later) == 1
    assert sum(size for _, size, _ in stage.batches) == (300 + FEW + 1) * 1437


def test_much_at_once_is_no_reason_to_poll(stage: Stage) -> None:
    stage.sock.queue.extend((KIND, 1, 1437) for _ in range(300))
    stage.readable()
    while stage.loop.soon:
        stage.again()
    assert not stage.polling


def test_load_that_fills_a_turn_begins_one_kind_of_reading(stage: Stage) -> None:
    stage.trickle(FEW)
    stage.sock.queue.extend((KIND, 1, TURN_COST) for _ in range(4))
    stage.readable()
    while stage.loop.soon:
        assert stage.polling
        stage.again()
    assert stage.polling and len(stage.loop.later) == 1


def test_what_is_urgent_overtakes_in_a_poll_too(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    stage.sock.queue.extend([(KIND, 1, 1437), (KIND, 2, 1437), (EXPRESS_KIND, 9, 100), (KIND, 3, 1437)])
    stage.seen.clear()
    stage.batches.clear()
    stage.poll()
    assert stage.batches == [(9, 100, 100), (1, 3 * 1437, 1437)]


def test_a_peer_s_datagrams_are_not_put_behind_another_s(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    received = stage.sock.receive
    peers = [PEER, UdpPeer(("192.0.2.2", 1))]

    def receive(buffer: memoryview, at: int = 0) -> Batch | None:
        stage.sock.peer = peers[len(stage.sock.queue) % 2]
        return received(buffer, at)

    stage.sock.receive = receive  # type: ignore[method-assign]
    stage.sock.queue.extend((KIND, number, 1437) for number in range(4))
    stage.batches.clear()
    stage.poll()
    assert stage.batches == [(number, 1437, 1437) for number in range(4)]


def test_a_close_ends_the_polling(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    stage.inbox.close()
    [timer] = stage.loop.later
    assert timer.cancelled and not stage.loop.readers


def test_a_close_in_a_poll_ends_it(stage: Stage) -> None:
    stage.trickle(FEW + 1)
    stage.sock.queue.append((KIND, 1, 1437))
    stage.on_batch = stage.inbox.close
    stage.poll()
    assert not stage.loop.later and not stage.loop.soon and not stage.loop.readers


@pytest.mark.parametrize("kind", [KIND, EXPRESS_KIND])
def test_a_fault_drops_a_batch_and_is_logged_once(
    stage: Stage, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What waited behind it stayed where it was until the next datagram, and its buffer was lost."""

    def fault() -> None:
        if stage.seen[-1] < 2:
            raise ZeroDivisionError

    stage.on_batch = fault
    stage.sock.queue.extend((kind, number, 100) for number in range(4))
    stage.readable()
    assert (stage.seen, stage.turns) == ([0, 1, 2, 3], [False])
    [record] = caplog.records
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
    assert len(stage.inbox._spare) <= 5


def test_buffers_are_used_again(stage: Stage) -> None:
    for _ in range(3):
        stage.sock.queue.extend((KIND, number, 100) for number in range(4))
        stage.readable()
    assert len(stage.inbox._spare) <= 5
    used = sorted(id(buffer) for buffer in stage.inbox._spare)
    stage.inbox.close()
    stage.inbox.close()
    pool = stage.inbox._buffers
    kept = [pool.take() for _ in range(len(used) + 1)]
    assert sorted(id(buffer) for buffer in kept[:-1]) == used
    assert id(kept[-1]) not in used, "none is given twice"


@pytest.mark.parametrize("kind", [KIND, EXPRESS_KIND])
def test_nothing_comes_after_a_close_in_mid_turn(stage: Stage, kind: int) -> None:
    stage.on_batch = stage.inbox.close
    stage.sock.queue.extend((kind, number, 100) for number in range(4))
    stage.readable()
    assert (stage.seen, stage.turns) == ([0], [])
    assert not stage.loop.readers and not stage.loop.soon


def test_a_turn_that_was_asked_for_before_a_close_does_nothing(stage: Stage) -> None:
    stage.sock.queue.extend((KIND, number, TURN_COST) for number in range(4))
    stage.readable()
    stage.inbox.close()
    stage.again()
    assert stage.seen == [0]
