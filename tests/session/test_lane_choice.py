"""Whether a side sends by the lane or by a record path: hand-made sequences, and that it never goes to and fro."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.session.lane_choice import (
    BAD_ROUNDS,
    BAD_SECONDS,
    FIRST_REST,
    HOLD_SECONDS,
    LONG_ROUND_TRIP,
    LONGEST_REST,
    MEMORY_SECONDS,
    SHORT_ROUND_TRIP,
    STEADY_SECONDS,
    LaneChoice,
)
from cryprq_proxy.session.rotation import NEVER
from cryprq_proxy.session.wire import LaneUse

BLOCKED = "UDP is blocked on the path"
MBIT = 125_000.0
ROUND = 0.05
"""Seconds of a round trip."""


def carrying(use: LaneUse = LaneUse.AUTO, round_trip: float = ROUND, now: float = 0.0) -> LaneChoice:
    """One whose lane has come up beside a TCP connection."""
    choice = LaneChoice(use)
    choice.tcp(True, now)
    choice.up(round_trip, now)
    return choice


def bulk(choice: LaneChoice, now: float, *, rate: float, loss: float = 0.0, seconds: float = 2.0) -> float:
    """Rounds of bulk over the lane, until the choice changes. Returns the time after them."""
    for _ in range(int(seconds / ROUND)):
        now += ROUND
        if choice.round_over(rate, loss, False, now):
            break
    return now


def wait(choice: LaneChoice, until: float) -> list[float]:
    """Let time pass. Returns when the choice changed."""
    changes = []
    while (now := choice.deadline()) <= until:
        if choice.tick(now):
            changes.append(now)
        assert choice.deadline() > now
    return changes


# --- what there is ---


def test_without_a_lane_tcp_carries() -> None:
    choice = LaneChoice()
    choice.tcp(True, 0.0)
    choice.down(BLOCKED, 1.0)
    assert (choice.lane, choice.why) == (False, BLOCKED)


def test_a_lane_that_comes_up_carries_at_once() -> None:
    choice = LaneChoice()
    assert not choice.tcp(True, 0.0)
    assert choice.up(ROUND, 0.1)
    assert (choice.lane, choice.why) == (True, "UDP passes")


def test_a_lane_that_falls_gives_way_at_once() -> None:
    choice = carrying()
    assert choice.down(BLOCKED, 0.1)
    assert (choice.lane, choice.why) == (False, BLOCKED)


def test_what_has_no_tcp_connection_leaves_by_the_lane_however_short_the_round_trip_is() -> None:
    choice = carrying(round_trip=0.0001)
    assert not choice.lane
    assert choice.tcp(False, 0.1)
    assert (choice.lane, choice.why) == (True, "no TCP connection works")
    assert not choice.tcp(True, 0.2), "a moment ago there was none"
    assert wait(choice, 60.0) == [0.1 + HOLD_SECONDS]
    assert not choice.lane


def test_with_neither_the_lane_is_no_choice() -> None:
    choice = carrying()
    choice.tcp(False, 1.0)
    choice.down(BLOCKED, 2.0)
    assert (choice.lane, choice.why) == (False, BLOCKED)
    assert choice.up(ROUND, 2.1), "there is nothing else"


# --- the setting ---


def test_a_client_that_is_set_to_tcp_uses_no_lane_even_where_nothing_else_is() -> None:
    choice = carrying(LaneUse.TCP)
    choice.tcp(False, 1.0)
    assert (choice.lane, choice.why) == (False, "the client is set to TCP")


def test_a_client_that_is_set_to_udp_uses_the_lane_while_it_is_up() -> None:
    choice = carrying(LaneUse.UDP, round_trip=0.0001)
    assert (choice.lane, choice.why) == (True, "the client is set to UDP")
    bulk(choice, 10.0, rate=MBIT, loss=0.5)
    assert choice.lane
    for now in (20.0, 20.2, 20.4):
        assert choice.down(BLOCKED, now)
        assert choice.up(0.0001, now + 0.1), "always, so at once"


def test_the_exit_learns_the_setting_later() -> None:
    choice = carrying(round_trip=0.0003)
    assert choice.set_use(LaneUse.UDP, 0.1)
    assert choice.lane


# --- a short round trip ---


def test_a_short_round_trip_is_left_to_tcp() -> None:
    choice = carrying(round_trip=0.0003)
    assert (choice.lane, choice.why) == (False, "the round trip of 0.3 ms is so short that TCP costs less")
    assert not carrying(round_trip=LONG_ROUND_TRIP - 0.0001).lane
    assert carrying(round_trip=LONG_ROUND_TRIP).lane


def test_between_short_and_long_the_choice_stays() -> None:
    middle = (SHORT_ROUND_TRIP + LONG_ROUND_TRIP) / 2
    choice = carrying()
    assert not choice.measured(middle, 10.0)
    assert choice.measured(SHORT_ROUND_TRIP - 0.0001, 20.0)
    assert not choice.measured(middle, 30.0)
    assert choice.measured(LONG_ROUND_TRIP, 40.0)
    assert choice.lane


def test_a_round_trip_that_turns_out_to_be_short_moves_all_to_tcp_at_once() -> None:
    """A busy host measured too long ones first."""
    choice = carrying(round_trip=0.02)
    assert choice.measured(0.0003, 0.1)
    assert not choice.lane
    assert not choice.measured(0.02, 0.2), "back to the lane it is not that easy"


def test_a_round_trip_on_the_border_changes_nothing_for_a_time() -> None:
    choice = carrying()
    changes = [now for now in range(600) if choice.measured(0.001 if now % 2 else 0.003, float(now))]
    assert len(changes) <= 2 * 600 / HOLD_SECONDS + 1


# --- throttled ---


def test_bulk_that_loses_much_is_tried_on_tcp_and_stays_there_if_that_is_faster() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=2.1 * MBIT, loss=0.34)
    assert (choice.lane, choice.why) == (False, "UDP loses 34%, so TCP is tried")
    assert now == pytest.approx(10.0 + ROUND + BAD_SECONDS, abs=2 * ROUND)
    assert not choice.tcp_rate(30 * MBIT, now + 0.1), "the first burst fills buffers"
    choice.tcp_rate(20 * MBIT, now + HOLD_SECONDS)
    assert (choice.lane, choice.why) == (False, "UDP is throttled: 2.1 of 20 Mbit/s")
    assert wait(choice, now + 300) == [now + FIRST_REST]
    assert (choice.lane, choice.why) == (True, "UDP passes")


def test_if_tcp_is_no_faster_the_lane_carries_again() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=2.1 * MBIT, loss=0.34)
    assert choice.tcp_rate(2.5 * MBIT, now + HOLD_SECONDS)
    assert (choice.lane, choice.why) == (True, "TCP was tried and brought 2.5 of 2.1 Mbit/s")
    again = bulk(choice, now + HOLD_SECONDS, rate=2.1 * MBIT, loss=0.34, seconds=600)
    assert again == pytest.approx(now + FIRST_REST, abs=2 * ROUND), "not sooner"


def test_if_nothing_is_learnt_about_tcp_the_lane_carries_again_after_the_rest() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=2.1 * MBIT, loss=0.34)
    assert wait(choice, now + 3600) == [now + FIRST_REST]


def test_a_rate_below_what_tcp_had_is_tried_too() -> None:
    choice = LaneChoice()
    choice.tcp(True, 0.0)
    choice.tcp_rate(20 * MBIT, 5.0)
    choice.up(ROUND, 6.0)
    bulk(choice, 20.0, rate=17 * MBIT)
    assert choice.lane, "it is not clearly less"
    bulk(choice, 30.0, rate=4.5 * MBIT)
    assert (choice.lane, choice.why) == (False, "UDP brought only 4.5 Mbit/s, so TCP is tried")


def test_what_tcp_had_long_ago_is_forgotten() -> None:
    choice = LaneChoice()
    choice.tcp(True, 0.0)
    choice.tcp_rate(20 * MBIT, 5.0)
    choice.up(ROUND, 6.0)
    bulk(choice, 5.0 + MEMORY_SECONDS, rate=MBIT)
    assert choice.lane


def test_a_rate_that_still_grows_is_not_held_against_the_lane() -> None:
    choice = LaneChoice()
    choice.tcp(True, 0.0)
    choice.tcp_rate(500 * MBIT, 5.0)
    choice.up(ROUND, 6.0)
    rate, now = 0.1 * MBIT, 20.0
    while rate < 500 * MBIT:
        now += ROUND
        rate *= 1.2
        choice.round_over(rate, 0.0, False, now)
    assert choice.lane


def policed(choice: LaneChoice, now: float, rate: float, seconds: float = 2.0) -> float:
    """As `bulk`, where losses come in one round of forty."""
    for turn in range(int(seconds / ROUND)):
        now += ROUND
        if choice.round_over(rate, 0.15 * (turn % 40 == 0), False, now):
            break
    return now


def test_a_slow_lane_that_loses_now_and_then_may_be_policed() -> None:
    """What a policer lets pass comes without a queue and with little loss, and a fresh session knows nothing of TCP."""
    choice = carrying()
    now = policed(choice, HOLD_SECONDS, 2 * MBIT)
    assert not choice.lane and choice.why == "UDP brought only 2 Mbit/s, so TCP is tried"
    assert choice.tcp_rate(40 * MBIT, now + HOLD_SECONDS) is False
    assert choice.why == "UDP is throttled: 2 of 40 Mbit/s"
    assert wait(choice, now + FIRST_REST) and choice.lane


def test_a_slow_line_that_loses_stays_with_the_lane_when_tcp_is_no_faster() -> None:
    choice = carrying()
    now = policed(choice, HOLD_SECONDS, 2 * MBIT)
    assert choice.tcp_rate(1 * MBIT, now + HOLD_SECONDS) and choice.lane
    assert policed(choice, now + HOLD_SECONDS, 2 * MBIT, FIRST_REST - HOLD_SECONDS) and choice.lane


def test_a_fast_lane_that_loses_now_and_then_is_left_alone() -> None:
    choice = carrying()
    policed(choice, HOLD_SECONDS, 100 * MBIT, 60.0)
    assert choice.lane


def test_a_slow_lane_that_loses_nothing_is_left_alone() -> None:
    choice = carrying()
    bulk(choice, HOLD_SECONDS, rate=2 * MBIT, loss=0.01, seconds=60.0)
    assert choice.lane


def test_rounds_in_which_applications_had_little_to_send_say_nothing() -> None:
    choice = LaneChoice()
    choice.tcp(True, 0.0)
    choice.tcp_rate(20 * MBIT, 5.0)
    choice.up(ROUND, 6.0)
    for number in range(1000):
        choice.round_over(0.1 * MBIT, 0.5, True, 20.0 + number * ROUND)
    assert choice.lane


def test_a_burst_of_loss_is_no_throttle() -> None:
    choice = carrying(round_trip=0.003)
    now = 10.0
    for _ in range(1000):
        for number in range(4 * BAD_ROUNDS):
            choice.round_over(20 * MBIT, 0.9, False, now + number * 0.003)
        now += 0.5
        choice.round_over(20 * MBIT, 0.0, False, now)
    assert choice.lane


def test_bad_rounds_far_apart_are_no_throttle() -> None:
    choice = carrying()
    for number in range(100):
        choice.round_over(MBIT, 0.9, False, 60.0 * number)
    assert choice.lane


@pytest.mark.parametrize("tcp_is_faster", [True, False])
def test_attempts_become_rarer(tcp_is_faster: bool) -> None:
    choice = carrying()
    now, tries = 10.0, []
    while now < 3 * 3600:
        now = bulk(choice, now, rate=MBIT, loss=0.5, seconds=3600)
        assert not choice.lane
        tries.append(now)
        choice.tcp_rate((10 if tcp_is_faster else 1) * MBIT, now + HOLD_SECONDS)
        if tcp_is_faster:
            [now] = wait(choice, now + LONGEST_REST)
        else:
            now += HOLD_SECONDS
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    for gap, expected in zip(gaps, [60, 120, 240, 480, 900, 900, 900], strict=False):
        assert expected <= gap <= expected + HOLD_SECONDS + 2


def test_after_a_good_time_rests_are_short_again() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=MBIT, loss=0.5)
    choice.tcp_rate(10 * MBIT, now + HOLD_SECONDS)
    [now] = wait(choice, now + 60)
    choice.tcp_rate(0.1 * MBIT, now)
    now = bulk(choice, now, rate=10 * MBIT, seconds=STEADY_SECONDS + 1)
    now = bulk(choice, now, rate=MBIT, loss=0.5)
    assert wait(choice, now + 1000) == [now + FIRST_REST]


def test_a_good_time_is_longer_than_the_last_rest() -> None:
    choice, now, rests = carrying(), 0.0, []
    for good in (100.0, 50.0, 100.0):
        began = bulk(choice, now + good, rate=MBIT, loss=0.5)
        [now] = wait(choice, began + LONGEST_REST)
        rests.append(now - began)
    assert rests == pytest.approx([60, 120, 240])


def test_bulk_that_went_badly_ends_a_good_time_though_tcp_is_not_tried_again() -> None:
    choice = carrying()
    first = bulk(choice, 10.0, rate=MBIT, loss=0.5)
    choice.tcp_rate(MBIT, first + HOLD_SECONDS)
    bulk(choice, first + 30, rate=MBIT, loss=0.5)
    assert choice.lane
    second = bulk(choice, first + 80, rate=MBIT, loss=0.5)
    assert wait(choice, second + 1000) == [second + 2 * FIRST_REST]


def test_without_tcp_nothing_else_is_tried() -> None:
    choice = carrying()
    choice.tcp(False, 1.0)
    now = bulk(choice, 10.0, rate=MBIT, loss=0.5)
    assert choice.lane
    choice.tcp(True, now)
    assert choice.lane, "the next bad round is early enough"
    assert choice.round_over(MBIT, 0.5, False, now + ROUND)


def test_a_trial_that_lost_its_tcp_connection_goes_on_with_the_next_one() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=MBIT, loss=0.5)
    assert choice.tcp(False, now + 1)
    assert choice.lane
    choice.tcp(True, now + 2)
    assert wait(choice, now + 10) == [now + 1 + HOLD_SECONDS]
    assert not choice.tcp_rate(10 * MBIT, now + 2 + HOLD_SECONDS)
    assert choice.why == "UDP loses 50%, so TCP is tried", "it has carried for a second"
    choice.tcp_rate(10 * MBIT, now + 1 + 2 * HOLD_SECONDS)
    assert choice.why == "UDP is throttled: 1 of 10 Mbit/s"


def test_another_network_is_another_start() -> None:
    choice = carrying()
    now = bulk(choice, 10.0, rate=MBIT, loss=0.5)
    choice.tcp_rate(10 * MBIT, now + HOLD_SECONDS)
    assert choice.moved(now + 10)
    assert (choice.lane, choice.why) == (True, "UDP passes")
    bulk(choice, now + 20, rate=MBIT)
    assert choice.lane, "what TCP had there says nothing"


# --- a lane that falls again and again ---


def test_a_lane_that_falls_again_and_again_rests_longer_each_time() -> None:
    choice = carrying()
    now, rests = 100.0, []
    for _ in range(10):
        choice.down(BLOCKED, now)
        choice.alone(now)
        choice.up(ROUND, now + 0.1)
        assert not choice.lane
        [back] = wait(choice, now + LONGEST_REST)
        rests.append(back - now)
        now = back + 1.0
    assert rests == pytest.approx([5, 10, 20, 40, 80, 160, 320, 640, 900, 900])


def test_while_it_rests_it_is_said_why() -> None:
    choice = carrying()
    for now in (100.0, 106.0):
        choice.down(BLOCKED, now)
        choice.alone(now)
        choice.up(ROUND, now + 0.1)
        wait(choice, now + HOLD_SECONDS)
    assert (choice.lane, choice.why) == (False, f"the lane fell a short time ago: {BLOCKED}")


def test_a_fall_of_all_of_the_network_is_not_held_against_the_lane() -> None:
    choice = carrying()
    for now in (100.0, 110.0, 120.0, 130.0):
        choice.down(BLOCKED, now)
        assert choice.up(ROUND, now + HOLD_SECONDS), "it does not rest"
        assert (choice.lane, choice.why) == (True, "UDP passes")


def test_tcp_that_answers_when_the_lane_is_up_again_says_nothing_about_it() -> None:
    choice = carrying()
    choice.down(BLOCKED, 100.0)
    choice.up(ROUND, 104.0)
    choice.alone(104.1)
    assert wait(choice, 200.0) == [100.0 + HOLD_SECONDS]


def test_one_fall_is_one_rest() -> None:
    choice = carrying()
    for now, rest in ((100.0, HOLD_SECONDS), (110.0, 2 * HOLD_SECONDS)):
        choice.down(BLOCKED, now)
        for _ in range(5):
            choice.alone(now)
        choice.up(ROUND, now + 0.1)
        assert wait(choice, now + 100.0) == [now + rest]


def test_a_fall_while_tcp_carries_is_not_held_against_the_lane() -> None:
    choice = carrying(round_trip=0.0003)
    choice.down(BLOCKED, 10.0)
    choice.alone(10.0)
    assert choice.up(ROUND, 10.1)


def test_a_lane_that_is_down_rests_without_a_timer() -> None:
    choice = carrying()
    choice.down(BLOCKED, 100.0)
    assert choice.deadline() == NEVER


def test_a_lane_that_stood_for_long_comes_back_soon() -> None:
    choice = carrying()
    for now in (1000.0, 2000.0, 3000.0):
        assert choice.down(BLOCKED, now)
        choice.alone(now)
        choice.up(ROUND, now + 3.0)
        assert wait(choice, now + 900) == [now + HOLD_SECONDS]


# --- whatever comes ---

INPUTS = st.one_of(
    st.tuples(st.just("up"), st.sampled_from([0.0001, 0.0017, 0.003, 0.1])),
    st.tuples(st.just("down"), st.just(BLOCKED)),
    st.tuples(st.just("tcp"), st.booleans()),
    st.tuples(st.just("measured"), st.sampled_from([0.0001, 0.0017, 0.003, 0.1])),
    st.tuples(st.just("tcp_rate"), st.sampled_from([0.0, MBIT, 100 * MBIT])),
    st.tuples(st.just("moved")),
    st.tuples(st.just("alone")),
    st.tuples(
        st.just("round_over"),
        st.sampled_from([0.0, MBIT, 100 * MBIT]),
        st.sampled_from([0.0, 0.9]),
        st.booleans(),
    ),
)
type Steps = list[tuple[float, tuple[Any, ...], int]]
STEPS: st.SearchStrategy[Steps] = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 1.1, 7.0, 100.0]), INPUTS, st.integers(1, 8)), max_size=60
)


def method(choice: LaneChoice, name: str) -> Callable[..., bool]:
    found: Callable[..., bool] = getattr(choice, name)
    return found


def played(choice: LaneChoice, steps: Steps) -> Iterator[tuple[float, bool, bool]]:
    """After each step: the time, whether the choice changed, and whether what carried before could do so no more."""
    now, up, tcp = 0.0, False, False
    for delay, (name, *values), times in steps:
        for _ in range(times):
            now += delay
            while (due := choice.deadline()) <= now:
                yield due, choice.tick(due), False
            before = choice.lane
            up = name == "up" or (up and name != "down")
            tcp = bool(values[0]) if name == "tcp" else tcp
            changed = bool(method(choice, name)(*values, now))
            assert changed == (choice.lane is not before)
            assert not choice.lane or up
            assert choice.lane or tcp or not up
            assert choice.why
            yield now, changed, not (up if before else tcp)


@given(STEPS)
def test_a_change_to_the_lane_that_need_not_be_comes_some_time_after_the_last_one(
    steps: Steps,
) -> None:
    choice, last = LaneChoice(), -HOLD_SECONDS
    for now, changed, forced in played(choice, steps):
        if changed:
            short = not choice.lane and choice.why.endswith("so short that TCP costs less")
            assert forced or short or now >= last + HOLD_SECONDS
            last = now


@given(STEPS)
def test_it_asks_for_time_only_while_there_is_something_to_wait_for(
    steps: Steps,
) -> None:
    choice = LaneChoice()
    for now, _, _ in played(choice, steps):
        assert choice.deadline() > now
    ends = wait(choice, now + 10 * LONGEST_REST) if steps else []
    assert len(ends) <= 2
    assert choice.deadline() == NEVER


@given(STEPS, st.sampled_from([LaneUse.TCP, LaneUse.UDP]))
def test_a_setting_is_obeyed_whatever_comes(steps: Steps, use: LaneUse) -> None:
    choice, up = LaneChoice(use), False
    for delay, (name, *values), _ in steps:
        up = name == "up" or (up and name != "down")
        method(choice, name)(*values, delay)
        assert choice.lane is (up and use is LaneUse.UDP)


@pytest.mark.parametrize("period", [0.2, 1.0, 4.0, 20.0])
def test_a_lane_that_comes_and_goes_is_left_alone(period: float) -> None:
    choice, changes, now = carrying(), [], 0.0
    while now < 3600:
        fell = choice.down(BLOCKED, now)
        choice.alone(now)
        steps = fell, choice.up(ROUND, now + period / 2)
        changes += [now for changed in steps if changed]
        changes += wait(choice, now + period)
        now += period
    assert len(changes) <= 2 * 12
