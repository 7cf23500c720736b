"""Hand-made traces: trains leave, acknowledgements come, and what is in flight, acknowledged and lost after each.

Trains carry letters; a part is written as the letter and its datagrams: `b2-5` are the third to fifth of train b.
"""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from cryprq_proxy.recovery.flight import (
    FACTOR,
    MAX_FACTOR,
    MAX_THRESHOLD,
    REMEMBERED,
    THRESHOLD,
    Flight,
    Part,
    Train,
)

RTT = 0.1
SEGMENT = 100


class Trace:
    """A flight of trains of ten datagrams, one each 10 ms, with the counters 0 to 9, 10 to 19, and so on."""

    def __init__(self, letters: str, count: int = 10, short: int = 0) -> None:
        self.flight = Flight[str]()
        for at, letter in enumerate(letters):
            size = count * SEGMENT - short
            train = Train(at * count, count, SEGMENT, size, at / 100, letter.islower())
            self.flight.add(train, size, letter)

    def acked(self, *bounds: int, now: float = 1.0) -> str:
        self.flight.spurious(list(bounds), now, RTT)
        return written(self.flight.acked(list(bounds), now).parts)

    def lost(self, now: float = 0.0) -> str:
        return written(self.flight.lost(now, RTT).parts)

    @property
    def runs(self) -> str:
        """What is in flight."""
        flight = self.flight
        runs = list(zip(flight._firsts, flight._behinds, strict=True))
        assert len(flight._trains) == len(runs)
        assert sum(behind - first for first, behind in runs) == flight.datagrams
        return " ".join(f"{first}-{behind}" for first, behind in runs)


def written(parts: list[Part[str]]) -> str:
    return " ".join(f"{cargo}{first}-{behind}" for cargo, first, behind in parts)


# --- acknowledged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "acked", "runs"),
    [
        ((0, 10), "a0-10", "10-20 20-30"),
        ((0, 30), "a0-10 b0-10 c0-10", ""),
        ((10, 20), "b0-10", "0-10 20-30"),
        ((0, 4), "a0-4", "4-10 10-20 20-30"),
        ((6, 10), "a6-10", "0-6 10-20 20-30"),
        ((3, 6), "a3-6", "0-3 6-10 10-20 20-30"),
        ((5, 25), "a5-10 b0-10 c0-5", "0-5 25-30"),
        ((0, 4, 6, 30), "a6-10 b0-10 c0-10 a0-4", "4-6"),
        ((2, 3, 5, 6, 7, 8), "a7-8 a5-6 a2-3", "0-2 3-5 6-7 8-10 10-20 20-30"),
        ((30, 35), "", "0-10 10-20 20-30"),
        ((29, 99), "c9-10", "0-10 10-20 20-29"),
    ],
    ids=str,
)
def test_an_acknowledgement_cuts_out_what_it_names(bounds: tuple[int, ...], acked: str, runs: str) -> None:
    trace = Trace("abc")
    assert trace.acked(*bounds) == acked
    assert trace.runs == runs
    assert trace.flight.highest_acked == bounds[-1] - 1


def test_what_was_acknowledged_is_not_acknowledged_again() -> None:
    trace = Trace("abc")
    assert trace.acked(5, 25) == "a5-10 b0-10 c0-5"
    assert trace.acked(5, 25) == ""
    assert trace.acked(0, 26) == "a0-5 c5-6"
    assert trace.flight.delivered == 26 * SEGMENT


def test_an_old_acknowledgement_takes_nothing_back() -> None:
    trace = Trace("abc")
    trace.acked(0, 25)
    assert trace.acked(0, 12) == ""
    assert trace.flight.highest_acked == 24


def test_bytes_are_those_of_the_datagrams() -> None:
    """The last one of each train is 30 bytes smaller."""
    trace = Trace("abc", short=30)
    flight = trace.flight
    assert (flight.size, flight.datagrams) == (2_910, 30)
    trace.acked(0, 9)
    assert (flight.size, flight.datagrams) == (2_010, 21)
    trace.acked(0, 11)
    assert (flight.size, flight.datagrams) == (2_010 - 70 - 100, 19)
    trace.acked(0, 30)
    assert (flight.size, flight.datagrams, flight.delivered) == (0, 0, 2_910)


def test_sixty_four_ranges() -> None:
    trace = Trace("abcdefghijklm")
    bounds = [bound for low in range(0, 128, 2) for bound in (low, low + 1)]
    assert len(trace.acked(*bounds).split()) == 64
    assert trace.flight.datagrams == 130 - 64
    assert trace.acked(*bounds) == ""
    assert len(trace.lost().split()) == 126 // 2 - 1
    assert trace.runs == "125-126 127-130"


def test_trains_without_cargo_count_and_tell_nobody() -> None:
    flight = Flight[str]()
    flight.add(Train(0, 5, SEGMENT, 500, 0.0, False), 500, None)
    acked = flight.acked([0, 5], 1.0)
    assert (acked.parts, acked.size, acked.datagrams, acked.eliciting) == ([], 500, 5, False)


@pytest.mark.parametrize(
    ("bounds", "highest", "newest"),
    [
        ((0, 30), True, 2),
        ((0, 25), True, 2),
        ((0, 20), True, 1),
        ((0, 10, 40, 50), False, 0),
        ((0, 31), False, 2),
        ((40, 50), False, None),
    ],
    ids=str,
)
def test_the_newest_train_measures_if_the_highest_counter_is_its_own(
    bounds: tuple[int, ...], highest: bool, newest: int | None
) -> None:
    trace = Trace("abc")
    acked = trace.flight.acked(list(bounds), 1.0)
    assert acked.highest is highest
    assert (None if acked.newest is None else acked.newest.first // 10) == newest


# --- lost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "lost", "runs"),
    [
        ((3, 10), "a0-3", "10-20 20-30"),  # the head of a train
        ((0, 3, 6, 10), "a3-6", "10-20 20-30"),  # its middle
        ((0, 8, 12, 20), "a8-10 b0-2", "20-30"),  # its tail, and the next one's head
        ((0, 10, 20, 30), "b0-10", ""),  # a whole one
        ((2, 3), "", "0-2 3-10 10-20 20-30"),  # two behind are within the threshold,
        ((3, 4), "a0-1", "1-3 4-10 10-20 20-30"),  # three are not
        ((0, 7, 10, 11), "a7-8", "8-10 11-20 20-30"),
        ((0, 10), "", "10-20 20-30"),  # what lies above waits
        ((50, 51), "a0-10 b0-10 c0-10", ""),
    ],
    ids=str,
)
def test_three_counters_behind_is_lost(bounds: tuple[int, ...], lost: str, runs: str) -> None:
    trace = Trace("abc")
    trace.acked(*bounds)
    assert trace.lost() == lost
    assert trace.runs == runs
    assert trace.lost() == ""


def test_an_old_train_is_lost_if_a_later_one_was_acknowledged() -> None:
    trace = Trace("abc")
    trace.acked(0, 18, 19, 20)
    assert trace.runs == "18-19 20-30"
    when = trace.flight.next_loss(RTT)
    assert when == pytest.approx(0.01 + FACTOR * RTT)
    assert trace.lost(when - 0.001) == ""
    assert trace.lost(when) == "b8-9"
    assert (trace.runs, trace.flight.next_loss(RTT)) == ("20-30", inf)


def test_age_alone_loses_nothing() -> None:
    trace = Trace("abc")
    assert (trace.lost(100.0), trace.flight.next_loss(RTT)) == ("", inf)
    trace.acked(0, 5)
    assert trace.lost(100.0) == ""
    assert trace.flight.next_loss(RTT) == inf


def test_of_an_old_train_only_what_is_below_the_highest_is_lost() -> None:
    trace = Trace("a")
    trace.acked(4, 5)
    assert trace.lost(100.0) == "a0-4"
    assert trace.runs == "5-10"


def test_bytes_of_what_is_lost() -> None:
    trace = Trace("ab", short=30)
    trace.acked(0, 8, 10, 20)
    lost = trace.flight.lost(0.0, RTT)
    assert (lost.size, lost.datagrams) == (170, 2)
    assert (trace.flight.size, trace.flight.datagrams, trace.flight.delivered) == (0, 0, 800 + 970)


# --- spurious ------------------------------------------------------------------------------------------------------


def test_a_late_acknowledgement_raises_the_threshold() -> None:
    trace = Trace("abc")
    trace.acked(0, 2, 8, 10)
    assert trace.lost() == "a2-7"
    assert trace.flight.spurious([0, 3, 8, 10], 1.0, RTT) == 1
    assert trace.flight.threshold == 9 - 2 + 1
    assert trace.flight.delivered == 5 * SEGMENT
    assert trace.acked(0, 3, 8, 15) == "b0-5"
    assert trace.lost() == ""
    assert trace.runs == "7-8 15-20 20-30"


def test_what_is_late_by_age_raises_the_factor() -> None:
    trace = Trace("abc")
    trace.acked(0, 8, 9, 10)
    assert trace.lost(1.0) == "a8-9"
    assert trace.flight.spurious([0, 10], 1.0, RTT) == 1
    assert (trace.flight.threshold, trace.flight.factor) == (THRESHOLD, FACTOR + 1 / 8)


def test_each_late_one_counts_once() -> None:
    trace = Trace("abc")
    trace.acked(8, 10)
    assert trace.lost() == "a0-7"
    assert trace.flight.spurious([2, 4, 8, 10], 1.0, RTT) == 2
    assert trace.flight.spurious([2, 4, 8, 10], 1.0, RTT) == 0


def test_thresholds_have_a_bound() -> None:
    trace = Trace("abcdefghijkl")
    trace.acked(110, 111)
    trace.lost(1.0)
    trace.flight.spurious([0, 111], 1.0, RTT)
    assert trace.flight.threshold == MAX_THRESHOLD
    for at in range(20):
        again = Trace("ab")
        again.flight.factor = FACTOR + at / 8
        again.acked(0, 8, 9, 10)
        again.lost(10.0)
        again.flight.spurious([0, 10], 10.0, RTT)
        assert again.flight.factor <= MAX_FACTOR


def test_after_a_calm_time_thresholds_come_back() -> None:
    trace = Trace("abc")
    flight = trace.flight
    flight.threshold, flight.factor = 64, MAX_FACTOR
    seen = []
    for at in range(1, 12):
        flight.spurious([0, 1], at * 17 * RTT, RTT)
        seen.append((flight.threshold, flight.factor))
    assert seen[0][0] == 33
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == (THRESHOLD, FACTOR)


def test_thresholds_come_back_where_something_is_always_lost() -> None:
    trace = Trace("a" * 400, count=1)
    trace.flight.threshold = 64
    for at in range(1, 12):
        now = at * 17 * RTT
        trace.flight.spurious([30 * at, 30 * at + 1], now, RTT)
        trace.flight.acked([30 * at, 30 * at + 1], now)
        trace.lost(now)
        assert trace.flight._lost_runs
    assert trace.flight.threshold == THRESHOLD


def test_what_was_lost_long_ago_is_forgotten() -> None:
    trace = Trace("abc")
    trace.acked(8, 10)
    trace.lost(now=1.0)
    trace.flight.spurious([8, 10], 1.0 + 3 * RTT, RTT)
    assert trace.flight.spurious([0, 10], 1.0 + 3 * RTT, RTT) == 0


def test_few_lost_runs_are_remembered() -> None:
    trace = Trace("a" * 400, count=1)
    trace.acked(*range(400))
    trace.lost()
    assert len(trace.flight._lost_runs) == REMEMBERED
    trace.flight.spurious([0, 1], 0.0, RTT)
    assert len(trace.flight._lost_runs) == REMEMBERED


# --- cargo ---------------------------------------------------------------------------------------------------------


def test_the_cargo_of_the_two_oldest_datagrams_comes_back() -> None:
    trace = Trace("abc")
    assert written(trace.flight.take_cargo(2)) == "a0-2"
    assert trace.runs == "0-2 2-10 10-20 20-30"
    assert written(trace.flight.take_cargo(2)) == "a2-4"
    assert trace.acked(0, 20) == "a4-10 b0-10"
    assert trace.flight.delivered == 2_000
    assert written(trace.flight.take_cargo(20)) == "c0-10"
    assert written(trace.flight.take_cargo(2)) == ""
    assert trace.lost(10.0) == trace.acked(20, 30) == ""


def test_single_datagrams_come_back_two_at_a_time() -> None:
    trace = Trace("abcd", count=1)
    assert written(trace.flight.take_cargo(2)) == "a0-1 b0-1"
    assert trace.runs == "0-1 1-2 2-3 3-4"
    assert trace.acked(0, 4) == "c0-1 d0-1"


def test_only_what_is_in_flight_of_it_comes_back() -> None:
    trace = Trace("abc")
    trace.acked(0, 2, 3, 5, 9, 10)
    assert written(trace.flight.take_cargo(2)) == "a2-3 a5-6"
    assert trace.runs == "2-3 5-6 6-9 10-20 20-30"
    assert trace.lost(10.0) == "a6-9"
    assert written(trace.flight.take_cargo(1)) == "b0-1"


def test_the_oldest_that_elicits() -> None:
    trace = Trace("Abc")
    flight = trace.flight
    oldest = flight.oldest_eliciting()
    assert oldest is not None and oldest.first == 10
    trace.acked(10, 20)
    oldest = flight.oldest_eliciting()
    assert oldest is not None and oldest.first == 20
    trace.acked(20, 30)
    assert flight.oldest_eliciting() is None


# --- delivery ------------------------------------------------------------------------------------------------------


def test_a_train_knows_what_was_delivered_when_it_left() -> None:
    flight = Flight[str]()
    first = Train(0, 10, SEGMENT, 1_000, 1.0, True)
    flight.add(first, 1_000, "a")
    assert (first.delivered, first.delivered_at, first.first_sent_at, first.app_limited) == (
        0,
        1.0,
        1.0,
        True,
    )
    second = Train(10, 10, SEGMENT, 1_000, 1.05, True)
    flight.add(second, 1_000, "b")
    assert (second.delivered, second.delivered_at, second.first_sent_at) == (0, 1.0, 1.0)
    flight.acked([0, 10], 1.1)
    third = Train(20, 10, SEGMENT, 1_000, 1.12, True)
    flight.add(third, 1_000, "c")
    assert (third.delivered, third.delivered_at, third.first_sent_at) == (1_000, 1.1, 1.0)
    assert not third.app_limited


def test_after_a_pause_time_begins_anew() -> None:
    flight = Flight[str]()
    flight.add(Train(0, 10, SEGMENT, 1_000, 1.0, True), 1_000, "a")
    flight.acked([0, 10], 1.1)
    train = Train(10, 10, SEGMENT, 1_000, 9.0, True)
    flight.add(train, 1_000, "d")
    assert (train.delivered_at, train.first_sent_at) == (9.0, 9.0)


def test_application_limited_until_more_is_delivered_than_was_in_flight() -> None:
    flight = Flight[str]()

    def add(first: int) -> Train:
        train = Train(first, 10, SEGMENT, 1_000, 1.0, True)
        flight.add(train, 1_000, "d")
        return train

    assert add(0).app_limited
    flight.acked([0, 5], 1.1)
    assert not add(10).app_limited
    flight.app_limited()
    flight.acked([0, 20], 1.2)
    assert add(20).app_limited
    assert add(30).app_limited
    flight.acked([0, 21], 1.3)
    assert not add(40).app_limited


def test_a_clock_put_back_leaves_nothing_in_the_future() -> None:
    trace = Trace("abc")
    trace.flight.not_after(-5.0)
    train = Train(30, 1, SEGMENT, SEGMENT, -4.0, True)
    trace.flight.add(train, SEGMENT, "d")
    assert (train.delivered_at, train.first_sent_at) == (-5.0, -5.0)
    assert trace.flight._trains[0].sent_at == -5.0


# --- against a model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_a_flight_answers_as_sets_of_counters_do(seed: int) -> None:
    chance = Random(seed)
    flight = Flight[int]()
    model: dict[int, int] = {}  # counter -> train
    counter, highest = 0, -1
    for step in range(150):
        if chance.random() < 0.5:
            counter += chance.randrange(3)
            count = chance.randrange(1, 9)
            flight.add(Train(counter, count, 10, 10 * count, float(step), True), 10 * count, step)
            model |= dict.fromkeys(range(counter, counter + count), step)
            counter += count
        elif counter > 2:
            bounds = sorted(
                chance.sample(range(counter + 1), 2 * chance.randrange(1, min(6, counter // 2) + 1))
            )
            named = {c for low, high in zip(bounds[::2], bounds[1::2], strict=True) for c in range(low, high)}
            found = counted(flight.acked(bounds, float(step)).parts)
            assert found == tally(model, named)
            model = {c: train for c, train in model.items() if c not in named}
            highest = max(highest, bounds[-1] - 1)
            gone = {c for c in model if c <= highest - THRESHOLD}
            assert counted(flight.lost(-1e9, RTT).parts) == tally(model, gone)
            model = {c: train for c, train in model.items() if c not in gone}
        assert (flight.datagrams, flight.size) == (len(model), 10 * len(model))


def counted(parts: list[Part[int]]) -> dict[int, int]:
    """Datagrams of each train."""
    found: dict[int, int] = {}
    for cargo, first, behind in parts:
        found[cargo] = found.get(cargo, 0) + behind - first
    return found


def tally(model: dict[int, int], counters: set[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for counter, train in model.items():
        if counter in counters:
            found[train] = found.get(train, 0) + 1
    return found
