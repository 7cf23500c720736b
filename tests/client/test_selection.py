"""Which exit is chosen: health, priorities, round-trip times, and no swinging. All on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.client.selection import (
    HOLD_SECONDS,
    PROBE_SECONDS,
    SILENT_SECONDS,
    START_SECONDS,
    ExitState,
    Selection,
)

FAILBACK = 30.0
A, B, C = range(3)


class Watch:
    """Exits that answer while they are `up` and not `mute`, watched every PROBE_SECONDS."""

    def __init__(self, *priorities: int, failback: float = FAILBACK) -> None:
        self.now = 1000.0
        self.selection = Selection(priorities, failback, self.now)
        self.up = [False] * len(priorities)
        self.mute = [False] * len(priorities)
        self.heard = [0.0] * len(priorities)
        self.round_trips = [0.05] * len(priorities)

    def look(self) -> int:
        for index, (up, mute) in enumerate(zip(self.up, self.mute, strict=True)):
            if up and not mute:
                self.heard[index] = self.now
        states = [
            ExitState(up, heard, trip, trip)
            for up, heard, trip in zip(self.up, self.heard, self.round_trips, strict=True)
        ]
        self.selection.observe(states, self.now)
        return self.selection.active

    def set(self, *up: bool) -> int:
        self.up = list(up)
        return self.look()

    def wait(self, seconds: float) -> int:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + PROBE_SECONDS, max(self.selection.deadline(), self.now + 0.001))
            self.look()
        return self.selection.active


def test_the_smallest_number_comes_first() -> None:
    watch = Watch(2, 1, 3)
    assert watch.selection.active == B
    assert watch.set(True, True, True) == B


def test_before_a_link_is_up_whichever_comes_first_is_taken() -> None:
    watch = Watch(1, 2)
    assert watch.set(False, True) == B


def test_at_the_start_the_preferred_one_may_come_a_little_later() -> None:
    watch = Watch(1, 2)
    watch.set(False, True)
    watch.wait(START_SECONDS - 1)
    assert watch.set(True, True) == A


def test_a_lost_link_is_left_at_once() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    assert watch.set(False, True) == B


def test_a_silent_exit_is_left_in_time() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.wait(10.0)
    failed = watch.now
    watch.mute[A] = True
    while watch.selection.active == A:
        watch.wait(0.01)
    assert watch.now - failed < 3.0
    assert watch.now - failed > SILENT_SECONDS - PROBE_SECONDS, "not for one late answer"
    assert watch.selection.healthy == [False, True]


def test_nobody_is_left_for_one_that_is_not_healthy() -> None:
    watch = Watch(1, 2)
    watch.set(True, False)
    assert watch.set(False, False) == A
    assert watch.wait(100.0) == A


def test_it_goes_back_only_after_a_time_without_a_break() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.wait(60.0)
    watch.set(False, True)
    watch.wait(5.0)
    watch.set(True, True)
    assert watch.wait(FAILBACK - 1.5) == B
    watch.set(False, True)
    watch.set(True, True)
    assert watch.wait(FAILBACK - 1.5) == B, "the break counts"
    assert watch.wait(3.0) == A


def test_a_flapping_link_moves_nothing_but_once() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.wait(60.0)
    chosen = []
    for _ in range(20):
        chosen.append(watch.set(False, True))
        watch.wait(2.0)
        chosen.append(watch.set(True, True))
        chosen.append(watch.wait(10.0))
    assert set(chosen) == {B}


def test_when_the_second_fails_too_the_first_need_not_wait() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.set(False, True)
    watch.wait(10.0)
    watch.set(True, True)
    assert watch.set(True, False) == A


def test_among_equals_the_nearest_is_taken_at_a_loss() -> None:
    watch = Watch(1, 1, 1)
    watch.round_trips = [0.01, 0.3, 0.1]
    watch.set(True, True, True)
    assert watch.set(False, True, True) == C


def test_among_equals_a_much_nearer_one_wins_in_the_end() -> None:
    watch = Watch(1, 1)
    watch.round_trips = [0.1, 0.02]
    assert watch.set(True, True) == A
    assert watch.wait(FAILBACK - 2) == A
    assert watch.wait(4.0) == B
    assert watch.wait(200.0) == B


def test_a_little_nearer_is_not_enough() -> None:
    watch = Watch(1, 1)
    watch.set(True, True)
    for trips in ([0.1, 0.08], [0.012, 0.004]):
        watch.round_trips = trips
        assert watch.wait(300.0) == A


def test_round_trips_that_swing_move_nothing() -> None:
    watch = Watch(1, 1)
    watch.set(True, True)
    for _ in range(30):
        for trips in ([0.1, 0.02], [0.02, 0.1]):
            watch.round_trips = trips
            assert watch.wait(FAILBACK / 2) == A


def test_our_own_queues_do_not_count_against_the_active_one() -> None:
    selection = Selection((1, 1), FAILBACK, 0.0)
    for second in range(1, 200):
        busy = ExitState(True, float(second), 0.5, 0.02)
        selection.observe([busy, ExitState(True, float(second), 0.03, 0.03)], float(second))
        assert selection.active == A


def test_a_person_decides() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.selection.pin(B, watch.now)
    assert watch.selection.active == B
    assert watch.set(True, False) == B, "also while it cannot be reached"
    watch.wait(100.0)
    watch.selection.pin(None, watch.now)
    assert watch.selection.active == A


def test_after_a_suspend_silence_counts_anew() -> None:
    """The process, or the whole machine, stood still: nothing could be heard."""
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.now += 3600
    watch.mute = [True, True]  # the answers are still to be read
    assert watch.look() == A
    assert watch.selection.healthy == [True, True]
    assert watch.wait(1.0) == A
    watch.mute = [False, False]
    assert watch.wait(100.0) == A


def test_a_link_that_was_cut_on_purpose_may_come_back() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.wait(50.0)
    watch.selection.begin_anew(watch.now)
    assert watch.set(False, False) == A
    assert watch.set(False, True) == A, "the other came back first"
    watch.wait(HOLD_SECONDS / 2)
    assert watch.set(True, True) == A


def test_but_not_for_long() -> None:
    watch = Watch(1, 2)
    watch.set(True, True)
    watch.wait(50.0)
    watch.selection.begin_anew(watch.now)
    watch.set(False, True)
    assert watch.wait(HOLD_SECONDS + 0.1) == B


@given(
    priorities=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    events=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["up", "down", "mute", "wait", "pin", "unpin"]))
    ),
)
def test_whatever_happens(priorities: list[int], events: list[tuple[int, str]]) -> None:
    """An exit that is not healthy is active only if none is, or a person said so, or for the short time of a hold; and
    `deadline` lies ahead."""
    watch = Watch(*priorities)
    for number, event in events:
        index = number % len(priorities)
        if event in ("up", "down"):
            watch.up[index], watch.mute[index] = event == "up", False
        elif event == "mute":
            watch.mute[index] = True
        elif event == "wait":
            watch.wait(7.0)
        else:
            watch.selection.pin(index if event == "pin" else None, watch.now)
        active = watch.look()
        selection = watch.selection
        if selection.pinned is not None:
            assert active == selection.pinned
        elif any(selection.healthy):
            assert selection.healthy[active]
        assert selection.deadline() > watch.now
