"""Windows: what they follow, what bounds them, and what they bring on lines with rate and delay."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.session.retention import ASSURED
from cryprq_proxy.session.streams import Half, Stream
from cryprq_proxy.session.windows import (
    FIRST_ROUNDS,
    GAIN,
    INITIAL_WINDOW,
    LOOKS,
    LOOP_SECONDS,
    QUIET_SECONDS,
    SHORT_PATH,
    SHORTEST_ROUND,
    WindowBudget,
    WindowPool,
    step,
    wanted,
    wanted_at_least,
)
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.line import Line, Sink
from tests.support.links import TARGET, App, Link
from tests.support.settings import session_limits

MIB = 1 << 20
FAST = 62.5e6
"""500 Mbit/s."""
LONG = 0.3
SLOT = 0.02
"""Seconds of a round in tests without a line: more than SHORTEST_ROUND."""


def new_pool(total: int, budget: WindowBudget | None = None) -> WindowPool:
    return WindowPool(total, budget or WindowBudget(1 << 40))


def receiving() -> Stream:
    """A stream of its own, at the exit, whose windows nobody sends."""
    return Stream(Link().exit.table, 1, StreamProtocol.TCP, TARGET, App(), 0.0)


def come(stream: Stream, size: int, now: float, pool: WindowPool) -> bool:
    """`size` more bytes come. Whether there is room for them."""
    return stream.take_data(stream.received + size, now, pool)


def take(stream: Stream, size: int, pause: float, pool: WindowPool, round_trip: float = 0.0) -> None:
    """`size` bytes come and are taken, and `pause` seconds after the last measurement the next window is made."""
    now = stream._round_since + 1.001 * pause
    assert come(stream, size, now, pool)
    stream.consumed(size)
    stream.next_window(now, round_trip, pool)


def extra(stream: Stream | None) -> int:
    assert stream is not None
    return stream._window - INITIAL_WINDOW


# --- the measure ---


def test_a_long_path_is_given_a_multiple_of_what_is_taken_in_a_round_trip() -> None:
    path = LONG - LOOP_SECONDS
    assert wanted(10 * MIB, LONG, LONG, 1) == int(GAIN * 10 * MIB / LONG * path)
    assert wanted(20 * MIB, 2 * LONG, LONG, 1) == int(GAIN * 10 * MIB / LONG * path), "by the rate"
    assert wanted(5 * MIB, LONG, LONG, 100) == int(GAIN * 5 * MIB / LONG * path), "whatever others take"


def test_streams_of_a_short_path_share_a_fixed_sum() -> None:
    shares = [wanted(own, 0.1, LOOP_SECONDS, 16) for own in (1 << 20, 2 << 20, 100 << 20)]
    assert shares == [SHORT_PATH // 16] * 3, "the same for each, whatever it takes"


def test_a_slow_reader_that_is_alone_needs_little() -> None:
    assert wanted(1000, 1.0, 0.0001, 1) == int(FIRST_ROUNDS * 1000 * SHORTEST_ROUND)
    assert wanted(0, 60.0, LONG, 1) == 0


def test_the_streams_that_move_are_counted_in_rounds() -> None:
    pool = new_pool(0)
    last = [0.0] * 3
    for round_ in range(1, 6):
        now = round_ * LONG * 1.01
        for number in range(3):
            moving = pool.moving(last[number], now, LONG)
            assert moving == 3 or round_ == 1, "the last round tells, while this one is young"
            last[number] = now
    assert pool.moving(last[0], now, LONG) == 3, "once in a round"
    assert [pool.moving(last[0], now + part * LONG, LONG) for part in (1.1, 2.2)] == [3, 1]


@given(st.integers(1, 64 * MIB), st.floats(0.0, 0.999), st.floats(0.0, 1.0))
def test_the_middle_of_a_round_promises_no_more_than_its_end(
    own: int, part: float, round_trip: float
) -> None:
    """Also if nothing more is taken after it."""
    whole = max(round_trip, SHORTEST_ROUND)
    assert wanted_at_least(own, round_trip) <= wanted(own, whole, round_trip, 1) + 1


@given(st.integers(INITIAL_WINDOW, 64 * MIB), st.floats(0.0, 1.0))
def test_credit_is_announced_while_most_of_the_window_is_left(window: int, round_trip: float) -> None:
    assert INITIAL_WINDOW // 2 <= step(window, round_trip) <= window // 2
    assert step(32 * MIB, LONG) == 2 * MIB and step(32 * MIB, 0.001) == 16 * MIB


# --- one stream and its pool ---


def test_a_reader_that_slows_down_gives_its_window_back_as_it_takes() -> None:
    pool = new_pool(64 * MIB)
    stream = receiving()
    for _ in range(12):
        take(stream, stream.announced - stream.consumed_bytes, LONG, pool, LONG)
    assert stream._window == INITIAL_WINDOW + 32 * MIB and pool.free == 32 * MIB
    for _ in range(600):
        take(stream, 65_536, LONG, pool, LONG)
    assert extra(stream) <= SHORT_PATH and pool.free >= 63 * MIB
    stream.release(0.0, pool)
    assert pool.free == 64 * MIB


def test_a_reader_that_stands_still_takes_no_part_in_what_others_share() -> None:
    pool = new_pool(64 * MIB)
    still, other = receiving(), receiving()
    for _ in range(3):
        take(still, still.announced - still.consumed_bytes, SLOT, pool)
    assert extra(still) == SHORT_PATH
    other._round_since = still._round_since
    for _ in range(3):
        take(other, other.announced - other.consumed_bytes, SLOT, pool)
    assert extra(other) == SHORT_PATH


def test_in_less_than_a_round_nothing_shrinks() -> None:
    pool = new_pool(64 * MIB)
    stream = receiving()
    take(stream, 65_536, LONG, pool, LONG)
    window = stream._window
    take(stream, 1000, LONG / 2, pool, LONG)
    assert stream._window == window
    take(stream, window - 1000, LONG / 2, pool, LONG)
    assert stream._window == INITIAL_WINDOW + wanted_at_least(window, LONG), "more can only be more"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from([0.0, SLOT, LONG, 20.0]),
            st.integers(0, 100),
            st.integers(0, 100),
            st.booleans(),
        ),
        max_size=60,
    ),
    st.sampled_from([0, 1, 1000, MIB, 64 * MIB]),
    st.sampled_from([0.0, 0.001, LONG]),
)
@example([(0, LONG, 100, 100, False)] * 12 + [(1, LONG, 100, 100, False)] * 12, 64 * MIB, LONG)
@example([(i, LONG, 100, 100, False) for i in [0] * 9 + [1] * 9 + [2] * 9], 64 * MIB, LONG)
def test_what_is_held_is_counted_and_no_credit_is_taken_back(
    steps: list[tuple[int, float, int, int, bool]], total: int, round_trip: float
) -> None:
    """Whatever senders and readers do: limits only rise, and what is held beyond first windows is in the pool."""
    pool, now = new_pool(total), 0.0
    streams = [receiving() for _ in range(5)]
    for index, pause, comes, leaves, ends in steps:
        stream = streams[index]
        now += pause
        room = pool.room
        size = (stream.announced - stream.received) * comes // 100
        fits = come(stream, size, now, pool)
        assert fits or stream.received - stream.consumed_bytes - stream._window > room
        if ends or not fits:
            stream.release(now, pool)
            streams[index] = receiving()
            continue
        stream.consumed((stream.received - stream.consumed_bytes) * leaves // 100)
        before, announced = extra(stream), stream.announced
        stream.next_window(now, round_trip, pool)
        assert stream.announced >= announced
        assert extra(stream) <= max(before, pool.free + 1), "it leaves as much to others"
        assert min(pool.free, *map(extra, streams)) >= 0
        assert pool.free + sum(map(extra, streams)) == total
        assert all(other.received - other.consumed_bytes <= other._window for other in streams)
    for stream in streams:
        stream.release(now, pool)
    assert pool.free == total and not pool._budget._marks


def test_what_a_moving_stream_may_still_send_is_counted() -> None:
    pool = new_pool(64 * MIB)
    stream, now = receiving(), 0.0
    for _ in range(20):
        now += LONG
        size = stream.announced - stream.received
        assert come(stream, size, now, pool)
        stream.consumed(size)
        stream.next_window(now, LONG, pool)
        assert stream.announced - stream.consumed_bytes == stream._window, "also if it is looked at"


def test_the_budget_of_the_process_leaves_each_session_its_share() -> None:
    budget = WindowBudget(8 * MIB)
    greedy, modest = new_pool(64 * MIB, budget), new_pool(64 * MIB, budget)
    for pool, most in ((greedy, 8 * MIB), (modest, ASSURED)):
        streams = [receiving() for _ in range(4)]
        for _ in range(12):
            for stream in streams:
                take(stream, stream.announced - stream.consumed_bytes, LONG, pool, LONG)
        assert 0 <= most - (64 * MIB - pool.free) < 8
        assert all(stream._window > INITIAL_WINDOW for stream in streams[:1])
    assert budget.used == 128 * MIB - greedy.free - modest.free


def test_a_session_that_has_ended_leaves_the_budget_to_others() -> None:
    on = line(FAST, LONG / 3)
    on.download()
    on.advance(1.0)
    budget = on.link.window_budgets[0]
    assert budget.used > MIB
    on.link.client.close(CloseReason.NORMAL)
    assert budget.used == 0


# --- streams that are quiet, and ends ---


def grown(pool: WindowPool, start: float = 0.0) -> Stream:
    """A stream whose window is as large as the pool allows, and that has taken everything."""
    stream = receiving()
    stream._round_since = start
    for _ in range(12):
        take(stream, stream.announced - stream.received, LONG, pool, LONG)
    return stream


def test_a_quiet_stream_leaves_what_it_was_given_to_others() -> None:
    pool = new_pool(64 * MIB)
    first = grown(pool)
    assert extra(first) == 32 * MIB
    second = grown(pool, first._round_since + QUIET_SECONDS)
    assert extra(second) == 32 * MIB and extra(first) == 0
    assert first.announced - first.consumed_bytes > 32 * MIB, "it may still be used"


def test_a_stream_that_moves_is_counted_for_all_that_it_may_send_though_its_share_has_shrunk() -> None:
    pool = new_pool(64 * MIB)
    first, second = grown(pool), receiving()
    second._round_since = first._round_since
    for _ in range(12):
        assert come(first, INITIAL_WINDOW, second._round_since, pool)
        first.consumed(INITIAL_WINDOW)
        take(second, second.announced - second.received, LONG, pool, LONG)
    assert extra(first) == 32 * MIB and extra(second) == 16 * MIB
    first.next_window(second._round_since, LONG, pool)
    assert first._window == first.announced - first.consumed_bytes > 31 * MIB


def test_old_credit_counts_as_soon_as_it_is_used() -> None:
    pool = new_pool(64 * MIB)
    first = grown(pool)
    second = grown(pool, first._round_since + QUIET_SECONDS)
    now = second._round_since
    assert come(first, INITIAL_WINDOW + MIB, now, pool)
    assert extra(first) == MIB and pool.free == 31 * MIB
    first.consumed(INITIAL_WINDOW + MIB)
    first.next_window(now, LONG, pool)
    assert extra(first) == 16 * MIB, "it moves again, and has its share"


def test_old_credit_that_finds_no_room_is_refused() -> None:
    """A peer makes many streams go quiet, and then uses all that it was given on them."""
    pool = new_pool(64 * MIB)
    now, streams = 0.0, []
    for _ in range(8):
        streams.append(grown(pool, now))
        now = streams[-1]._round_since + QUIET_SECONDS
    promised = sum(stream.announced - stream.received for stream in streams)
    assert promised > 4 * 64 * MIB
    held = 0
    for stream in streams:
        while (size := min(stream.announced - stream.received, MIB)) > 0 and come(stream, size, now, pool):
            held += size
    assert held <= 64 * MIB + len(streams) * INITIAL_WINDOW and pool.free < MIB


def test_old_credit_is_refused_beyond_the_budget_of_the_process() -> None:
    budget = WindowBudget(64 * MIB)
    ours, others = new_pool(64 * MIB, budget), new_pool(64 * MIB, budget)
    early = grown(ours)
    late = grown(others, early._round_since + QUIET_SECONDS)
    assert extra(late) == 32 * MIB and extra(early) == 0, "what is quiet leaves its part to other sessions"
    assert come(late, late.announced - late.received, late._round_since, others)
    more = grown(others, late._round_since)
    now = more._round_since
    assert (extra(late), extra(more)) == (32 * MIB, 16 * MIB), "what is held leaves nothing"
    assert come(early, INITIAL_WINDOW + 16 * MIB, now, ours)
    assert not come(early, 1, now, ours)
    early.release(now, ours)
    more.release(now, others)
    late.release(now, others)
    assert budget.used == 0


def test_few_streams_are_looked_at_at_once() -> None:
    budget = WindowBudget(1 << 40)
    pool = new_pool(1 << 30, budget)
    for _ in range(3 * LOOKS):
        take(receiving(), INITIAL_WINDOW, LONG, pool, LONG)
    for looks in (LOOKS, 2 * LOOKS, 3 * LOOKS, 3 * LOOKS):
        budget.reclaim(20.0)
        assert len(budget._marks) == 3 * LOOKS - looks


def test_a_stream_whose_old_credit_finds_no_room_is_reset_alone() -> None:
    link = Link(session_limits(window_pool=MIB))
    (one, quiet), (other, _) = link.pair(), link.pair()
    assert quiet.stream is not None
    quiet.eager = False
    quiet.stream.announced += 2 * MIB
    link.client.streams[1].send_limit += 2 * MIB
    one.say(bytes(2 * MIB))
    link.quiesce()
    assert quiet.events[-1] == one.events[-1] == ("reset", StreamReason.LIMIT)
    assert link.exit.windows.free == MIB
    other.say(b"goes on")
    link.quiesce()
    assert link.served[2].received == b"goes on"


def test_a_half_that_has_ended_leaves_its_window_to_others() -> None:
    on = line(FAST, LONG / 3)
    sink = on.download()
    on.advance(1.0)
    sink.rate = 0.0
    assert extra(sink.stream) > 8 * MIB
    on.advance(1.0)
    on.sources[0].finish()
    on.advance(LONG)
    assert sink.stream is not None and sink.stream.receive_half is Half.CLOSED
    assert sink.stream._window == sink.held > 8 * MIB, "only what is held"
    sink.take(sink.held * 3 // 4)
    on.advance(LONG)
    assert sink.stream._window == sink.held
    sink.take(sink.held)
    on.advance(LONG)
    assert on.link.client.windows.free == on.link.client.limits.window_pool
    assert sink.stream.send_half is Half.OPEN


# --- two sessions and a line ---


def line(rate: float, round_trip: float, tick: float = 0.001) -> Line:
    """A link that has been up for a while."""
    made = Line(Link(session_limits()), rate, round_trip, tick)
    made.advance(3 * round_trip + SHORTEST_ROUND)
    return made


def outstanding(on: Line) -> int:
    """Bytes that may be on their way."""
    return sum(
        sink.stream.announced - sink.stream.consumed_bytes for sink in on.sinks if sink.stream is not None
    )


def moved(on: Line, seconds: float) -> float:
    """The part of the line that is used in the next `seconds`."""
    before = sum(sink.taken for sink in on.sinks)
    on.advance(seconds)
    return (sum(sink.taken for sink in on.sinks) - before) / (seconds * on.rate)


def fairness(sinks: list[Sink]) -> float:
    """Jain's index: 1 if all have taken the same."""
    return float(sum(sink.taken for sink in sinks) ** 2 / (len(sinks) * sum(sink.taken**2 for sink in sinks)))


@pytest.mark.parametrize("round_trip", [LONG / 2, LONG])
@pytest.mark.parametrize("streams", [1, 4])
def test_a_long_fast_path_is_full_after_some_round_trips(round_trip: float, streams: int) -> None:
    on = line(FAST, round_trip)
    for _ in range(streams):
        on.download()
    on.advance(9 * round_trip)
    assert moved(on, 2 * round_trip) > 0.9
    assert outstanding(on) <= streams * INITIAL_WINDOW + 64 * MIB
    assert on.link.exit.retention.kept <= on.link.exit.limits.retained + 131_072


def test_a_window_doubles_in_each_round_trip() -> None:
    on = line(FAST, LONG)
    on.download()
    on.advance(LONG)
    parts = [moved(on, LONG) for _ in range(3)]
    assert parts[-1] < 0.5, "the line itself is no bound yet"
    assert all(later > 1.7 * earlier for earlier, later in itertools.pairwise(parts))


def test_windows_hold_what_bbr_puts_under_way_at_its_start() -> None:
    """Its gain is 2 / ln 2; with less it never learns that the line is full."""
    on = Line(Link(session_limits()), FAST, LONG / 3, kernel=2 * LONG)
    on.advance(LONG)
    on.download()
    on.advance(4.0)
    assert on.downwards > 2 / math.log(2) * FAST * LONG / 3


def test_on_a_short_path_little_is_on_its_way_and_the_streams_are_equal() -> None:
    on = line(1e9, 0.0002, tick=0.0002)
    sinks = [on.download() for _ in range(16)]
    on.advance(0.2)
    assert moved(on, 0.1) > 0.9
    assert outstanding(on) <= 4 * MIB
    assert fairness(sinks) > 0.97


def test_a_late_stream_gets_its_part() -> None:
    on = line(FAST, LONG / 3)
    early = on.download()
    on.advance(3.0)
    late = on.download()
    on.advance(2.0)
    before = early.taken, late.taken
    on.advance(1.0)
    assert 0.8 < (late.taken - before[1]) / (early.taken - before[0]) < 1.25


def test_readers_that_stand_still_leave_the_line_to_others() -> None:
    on = line(FAST, LONG / 3)
    still = [on.download() for _ in range(3)]
    on.advance(2.0)
    for sink in still:
        sink.rate = 0.0
    on.advance(1.0)
    on.download()
    on.advance(2.0)
    assert moved(on, 1.0) > 0.9


def test_downloads_one_after_the_other_are_equally_fast() -> None:
    """Their streams stay open, as those of a browser do."""
    on = Line(Link(session_limits(window_pool=16 * MIB)), FAST, LONG / 3)
    on.advance(LONG)
    parts = []
    for _ in range(6):
        on.download()
        on.advance(1.2)
        parts.append(moved(on, 0.3))
        on.sources[-1].idle = True
        on.advance(2.5)
    assert min(parts) > 0.9 * parts[0] > 0.8


@pytest.mark.parametrize("idle", [False, True])
def test_windows_follow_a_path_that_becomes_longer(idle: bool) -> None:
    on = line(FAST / 5, 0.001)
    if not idle:
        on.download()
    on.advance(3.0)
    on.lengthen(LONG)
    if idle:
        on.advance(15.0)
        on.download()
    on.advance(10.0)
    assert moved(on, 1.0) > 0.9
    assert on.link.client.round_trip == pytest.approx(LONG, rel=0.2)
    on.lengthen(0.001)
    on.advance(3.0)
    assert on.link.client.round_trip < LONG / 2 and outstanding(on) < 16 * MIB


def test_a_queue_that_windows_make_does_not_make_them_larger() -> None:
    """The queue of the path holds what comes; BBR is not there to bound it."""
    rate, trip = FAST / 5, 0.05
    on = Line(Link(session_limits()), rate, trip, kernel=100.0)
    on.advance(3 * trip)
    on.download()
    on.advance(20.0)
    assert outstanding(on) < INITIAL_WINDOW + SHORT_PATH + 1.2 * GAIN * rate * trip


def test_a_slow_reader_ends_with_a_small_window() -> None:
    on = line(FAST, LONG / 3)
    sink = on.download()
    on.advance(2.0)
    assert extra(sink.stream) > 8 * MIB
    sink.rate = FAST
    on.advance(0.1)
    sink.rate = FAST / 20
    on.advance(10.0)
    assert extra(sink.stream) <= 2 * MIB
    assert moved(on, 1.0) == pytest.approx(0.05, rel=0.1)


def test_the_pool_bounds_all_windows_together() -> None:
    pool = 4 * MIB
    on = Line(Link(session_limits(window_pool=pool)), FAST, LONG)
    on.advance(1.0)
    for _ in range(8):
        on.download()
    on.advance(3.0)
    windows = on.link.client.windows
    assert 0 <= windows.free < pool // 4
    assert sum(extra(sink.stream) for sink in on.sinks) == pool - windows.free
    assert outstanding(on) <= 8 * INITIAL_WINDOW + pool
    for sink in on.sinks:
        assert sink.stream is not None
        sink.stream.reset(StreamReason.GENERAL)
    assert windows.free == pool
