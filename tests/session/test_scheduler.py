"""The scheduler: who is next, how much may wait, and how both follow the carrier's rate."""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.carriers.pacing import SHORTEST, RateMeter
from cryprq_proxy.session.retention import Unit
from cryprq_proxy.session.scheduler import (
    FRAME_SECONDS,
    MAX_QUEUE,
    MIN_FRAME,
    MIN_QUEUE,
    SPARSE_BURST,
    SPARSE_ROOM,
    SPARSE_SPAN,
    Scheduler,
)
from cryprq_proxy.session.streams import Half, Stream
from cryprq_proxy.session.turns import BYTES_PER_UNIT, READ_WORK, TURN_WORK
from cryprq_proxy.session.wire import MAX_DATA
from tests.support.links import App, Link


class FakeStream:
    """What the scheduler sees of a stream."""

    def __init__(self) -> None:
        self.queue: deque[Unit] = deque()
        self.burst = 0
        self.burst_mark = 0
        self.waiting = False
        self.send_half = Half.OPEN
        self.handler: Any = self
        self.called = 0

    def writable(self) -> None:
        self.called += 1


def new(count: int = 0) -> tuple[Scheduler, list[Any]]:
    scheduler = Scheduler()
    scheduler.open = True
    return scheduler, [FakeStream() for _ in range(count)]


def put(scheduler: Scheduler, stream: Any, size: int = MAX_DATA) -> None:
    scheduler.enqueue(stream, Unit(bytes(size), size))


def make_bulk(scheduler: Scheduler, stream: Any) -> None:
    stream.burst_mark, stream.burst = scheduler._clock, SPARSE_BURST


def order(scheduler: Scheduler, count: int) -> list[Any]:
    taken = []
    for _ in range(count):
        turn = scheduler.next()
        assert turn is not None
        taken.append(turn[0])
    return taken


def test_nothing_to_send() -> None:
    scheduler, _ = new()
    assert scheduler.next() is None
    scheduler.call_waiting(TURN_WORK)


def test_bulk_streams_take_turns() -> None:
    scheduler, streams = new(3)
    for stream in streams:
        make_bulk(scheduler, stream)
        for _ in range(2):
            put(scheduler, stream)
    assert order(scheduler, 6) == streams * 2
    assert scheduler.next() is None and scheduler.queued == 0


def test_a_sparse_stream_goes_first() -> None:
    scheduler, (bulk, sparse) = new(2)
    make_bulk(scheduler, bulk)
    for _ in range(3):
        put(scheduler, bulk)
    put(scheduler, sparse, 100)
    assert order(scheduler, 2) == [sparse, bulk]


def test_sparse_streams_do_not_starve_bulk_ones() -> None:
    scheduler, streams = new(21)
    bulk, sparse = streams[0], streams[1:]
    make_bulk(scheduler, bulk)
    for _ in range(10):
        put(scheduler, bulk)
    for stream in sparse:
        put(scheduler, stream, 10)
    taken = order(scheduler, 25)
    assert [index for index, stream in enumerate(taken) if stream is bulk] == [4, 9, 14, 19, 24]


def test_a_stream_that_sends_much_becomes_bulk_and_recovers() -> None:
    scheduler, (one, other) = new(2)
    make_bulk(scheduler, other)
    for _ in range(3):
        put(scheduler, one, SPARSE_BURST // 2)
        put(scheduler, other)
    assert order(scheduler, 6) == [one, one, other, one, other, other], "it fell behind after its burst"
    put(scheduler, one, 1)
    assert one in scheduler._bulk
    scheduler.next()
    scheduler._clock += SPARSE_SPAN
    put(scheduler, one, 1)
    assert one in scheduler._sparse


def test_a_stream_that_was_reset_is_skipped() -> None:
    scheduler, (one, two) = new(2)
    put(scheduler, one, 10)
    put(scheduler, two, 20)
    scheduler.forget(one)
    assert scheduler.queued == 20
    assert order(scheduler, 1) == [two]
    assert scheduler.next() is None and scheduler.queued == 0


def test_room_is_what_the_carrier_takes() -> None:
    scheduler, (one, two) = new(2)
    make_bulk(scheduler, one)
    make_bulk(scheduler, two)
    for queued in range(0, MAX_QUEUE, MAX_DATA):
        assert scheduler.room_for(one) == MAX_QUEUE - queued
        put(scheduler, one)
    assert scheduler.queued == MAX_QUEUE and not one.waiting
    assert scheduler.room_for(one) == 0 and one.waiting
    assert scheduler.room_for(two) == 0 and two.waiting
    order(scheduler, 1)
    assert scheduler.room_for(two) == 0, "it is not its turn"
    scheduler.call_waiting(TURN_WORK)
    assert (one.called, two.called) == (1, 1) and not one.waiting and not two.waiting
    assert scheduler.room_for(two) == MAX_DATA


def test_the_last_room_is_a_whole_frame() -> None:
    """So that a full record is sent, and the queue is not exceeded by more than that."""
    scheduler, (one,) = new(1)
    make_bulk(scheduler, one)
    put(scheduler, one, MAX_QUEUE - 1)
    assert scheduler.room_for(one) == MAX_DATA
    put(scheduler, one)
    assert scheduler.room_for(one) == 0


def test_the_room_is_for_whoever_s_turn_it_is() -> None:
    scheduler, (one, two) = new(2)
    make_bulk(scheduler, one)
    make_bulk(scheduler, two)
    put(scheduler, one, MAX_QUEUE)
    assert scheduler.room_for(one) == scheduler.room_for(two) == 0
    scheduler.next()
    rooms = []
    one.writable = lambda: rooms.append((scheduler.room_for(two), scheduler.room_for(one)))
    two.writable = lambda: rooms.append((scheduler.room_for(one), scheduler.room_for(two)))
    scheduler.call_waiting(TURN_WORK)
    assert rooms == [(0, MAX_QUEUE), (MAX_QUEUE, MAX_QUEUE)], "the second time nobody else waits"


def test_a_sparse_stream_may_overtake_a_full_queue_once() -> None:
    scheduler, (bulk, sparse) = new(2)
    make_bulk(scheduler, bulk)
    while scheduler.room_for(bulk):
        put(scheduler, bulk)
    assert scheduler.room_for(sparse) == SPARSE_ROOM
    put(scheduler, sparse, SPARSE_ROOM)
    assert scheduler.room_for(sparse) == 0


def test_many_sparse_streams_cannot_queue_without_bound() -> None:
    scheduler, streams = new(2000)
    for stream in streams:
        while room := scheduler.room_for(stream):
            put(scheduler, stream, room)
    assert scheduler.queued <= 8 * MAX_QUEUE


def test_nobody_may_queue_while_it_is_closed() -> None:
    scheduler, (one,) = new(1)
    scheduler.open = False
    assert scheduler.room_for(one) == 0 and one.waiting
    scheduler.call_waiting(TURN_WORK)
    assert one.called == 0
    scheduler.open = True
    scheduler.call_waiting(TURN_WORK)
    assert one.called == 1


def test_waiting_streams_are_called_in_turn_and_once() -> None:
    scheduler, streams = new(3)
    for stream in (*streams, *streams):
        scheduler.wait(stream)
    streams[1].send_half = Half.CLOSED
    scheduler.call_waiting(TURN_WORK)
    assert [stream.called for stream in streams] == [1, 0, 1]
    scheduler.call_waiting(TURN_WORK)
    assert [stream.called for stream in streams] == [1, 0, 1]


def test_the_bytes_that_a_stream_reads_in_its_turn_are_work() -> None:
    scheduler, streams = new(5)
    for stream in streams:
        stream.writable = partial(put, scheduler, stream)
        scheduler.wait(stream)
    one = READ_WORK + MAX_DATA // BYTES_PER_UNIT
    assert scheduler.call_waiting(2 * one) == 2 * one
    assert [bool(stream.queue) for stream in streams] == [True, True, False, False, False]
    scheduler.next()
    streams[2].writable = partial(scheduler.forget, streams[1])
    assert scheduler.call_waiting(1) == READ_WORK, "an end gives no work back"


@pytest.mark.parametrize(
    ("rate", "frame", "queue"),
    [
        (0.0, MIN_FRAME, MIN_QUEUE),
        (1e5, MIN_FRAME, MIN_QUEUE),
        (1e7, 20_000, 40_000),
        (1e12, MAX_DATA, MAX_QUEUE),
    ],
)
def test_frames_and_queue_follow_the_rate(rate: float, frame: int, queue: int) -> None:
    scheduler, (one,) = new(1)
    scheduler.pace(rate)
    assert (scheduler.frame_limit, scheduler.queue_target) == (frame, queue)
    assert scheduler.room_for(one) == queue >= frame
    assert frame in (MIN_FRAME, MAX_DATA) or frame == rate * FRAME_SECONDS


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["put", "next", "forget", "pace", "ask"]),
            st.integers(1, 30_000),
        ),
        max_size=80,
    )
)
def test_nothing_is_lost_or_counted_twice(calls: list[tuple[int, str, int]]) -> None:
    """Units of a stream come out in order, all of them; `queued` is the sum of what is inside."""
    scheduler, streams = new(6)
    inside: dict[Any, list[Unit]] = {stream: [] for stream in streams}
    for index, call, size in calls:
        stream = streams[index]
        if call == "put" and stream.send_half is Half.OPEN:
            put(scheduler, stream, size)
            inside[stream].append(stream.queue[-1])
        elif call == "next":
            turn = scheduler.next()
            assert (turn is None) is not any(inside.values())
            if turn is not None:
                assert inside[turn[0]].pop(0) is turn[1]
        elif call == "forget":
            scheduler.forget(stream)
            stream.send_half = Half.CLOSED
            inside[stream].clear()
        elif call == "pace":
            scheduler.pace(size * 1000.0)
        elif stream.send_half is Half.OPEN:
            limit, free = scheduler.frame_limit, scheduler.queue_target - scheduler.queued
            rooms = {0, min(SPARSE_ROOM, limit)} | ({max(free, limit)} if free > 0 else set())
            assert scheduler.room_for(stream) in rooms
        assert scheduler.queued == sum(unit.size for units in inside.values() for unit in units)


# --- in a session ---


def record_order(link: Link) -> list[int]:
    """Stream numbers in the order in which their data leaves, while `link` settles."""
    taken: list[int] = []
    real = link.client.scheduler.next

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(spied, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(spied, name, value)

        def next(self) -> tuple[Stream, Unit] | None:
            turn = real()
            if turn is not None:
                taken.append(turn[0].id)
            return turn

    spied = link.client.scheduler
    link.client.scheduler = Spy()  # type: ignore[assignment]
    return taken


def test_a_small_request_is_in_the_next_record_behind_bulk_uploads() -> None:
    link = Link()
    bulk = [link.pair()[0] for _ in range(8)]
    small, _ = link.pair()
    path = link.carrier.to_right
    path.budget = 65_536
    for app in bulk:
        app.say(bytes(2 << 20))
    for _ in range(20):
        path.pull(link.carrier.now)
    taken = record_order(link)
    small.say(b"GET /")
    path.pull(link.carrier.now)
    assert small.stream is not None and taken[0] == small.stream.id


@pytest.mark.parametrize(("slots", "turn"), [(True, MAX_DATA), (False, MAX_QUEUE)])
def test_bulk_streams_share_the_path_evenly(slots: bool, turn: int) -> None:
    """They are never further apart than what one of them may send when it is its turn, and at first."""
    link = Link()
    apps = [link.pair(slots=link.slots if slots else None)[0] for _ in range(7)]
    taken = record_order(link)
    for app in apps:
        app.say(bytes(8 << 20))
    link.carrier.to_right.budget = 65_536
    for _ in range(300):
        link.carrier.step()
    assert len(Counter(taken)) == 7
    sizes = [len(app.received) for app in link.served.values()]
    assert min(sizes) > 2 << 20 and all(app.outgoing for app in apps)
    assert max(sizes) - min(sizes) <= 2 * turn + SPARSE_BURST


def test_a_carrier_that_takes_nothing_bounds_what_is_read() -> None:
    link = Link()
    apps = [link.pair()[0] for _ in range(100)]
    link.carrier.to_right.capacity = 0
    for app in apps:
        app.say(bytes(1 << 20))
    link.carrier.settle()
    assert link.client.scheduler.queued <= 8 * MAX_QUEUE
    link.carrier.to_right.capacity = 1 << 20
    link.carrier.settle()
    link.quiesce()
    assert all(len(app.received) == 1 << 20 for app in link.served.values())


# --- the meter ---


def test_the_rate_is_known_only_between_full_moments() -> None:
    meter = RateMeter()
    assert not meter.full(0, 0.0) and meter.rate is None
    assert not meter.full(10, SHORTEST / 2)
    assert meter.full(1000, 1.0) and meter.rate == 1000.0
    assert meter.full(1000 + 3000, 2.0) and meter.rate == 2000.0
    meter.idle()
    assert not meter.full(1 << 30, 50.0), "what came in between says nothing"
    assert meter.rate == 2000.0


def test_an_app_without_room_waits() -> None:
    link = Link(connected=False)
    app = link.open(App())
    app.say(b"early")
    assert app.outgoing == b"early"
    link.connect()
    link.carrier.settle()
    assert link.served[1].received == b"early"
