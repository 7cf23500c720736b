"""What came, when an acknowledgement is due, and its bytes."""

from __future__ import annotations

from math import inf
from random import Random
from struct import pack

import pytest

from cryprq_proxy.recovery.received import (
    MAX_BODY,
    MAX_RANGES,
    SENT_RANGES,
    SPAN,
    TOLD,
    AckFrame,
    Received,
    decode,
    encode,
)
from cryprq_proxy.recovery.round_trip import ACK_DELAY


def with_counters(*counters: int) -> Received:
    came = Received()
    for counter in counters:
        came.add(counter, counter, 0.0, eliciting=True)
    return came


def bounds_of(came: Received) -> list[int]:
    frame = came.take(0.0)
    assert frame is not None
    return frame.bounds


# --- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counters", "bounds"),
    [
        ([0], [0, 1]),
        ([7], [7, 8]),
        ([0, 1, 2], [0, 3]),
        ([0, 2], [0, 1, 2, 3]),
        ([2, 0], [0, 1, 2, 3]),
        ([0, 2, 1], [0, 3]),
        ([5, 6, 1, 2, 4], [1, 3, 4, 7]),
        ([3, 3], [3, 4]),
        ([0, 1, 2, 1], [0, 3]),
    ],
    ids=str,
)
def test_counters_become_ranges(counters: list[int], bounds: list[int]) -> None:
    assert bounds_of(with_counters(*counters)) == bounds


@pytest.mark.parametrize("seed", range(20))
def test_ranges_are_those_of_a_set(seed: int) -> None:
    chance = Random(seed)
    came, model = Received(), set[int]()
    for _ in range(60):
        first = chance.randrange(200)
        last = first + chance.randrange(8)
        came.add(first, last, 0.0, eliciting=False)
        model |= set(range(first, last + 1))
    bounds = bounds_of(came)
    assert bounds == sorted(set(bounds))
    ranges = zip(bounds[::2], bounds[1::2], strict=True)
    assert {counter for low, high in ranges for counter in range(low, high)} == model


def test_nothing_came() -> None:
    assert Received().take(0.0) is None


def test_no_more_ranges_are_kept_than_there_may_be() -> None:
    came = with_counters(*range(0, 4 * MAX_RANGES, 2))
    assert len(came._bounds) == 2 * MAX_RANGES
    came.add(1, 1, 0.0, eliciting=True)  # below all that is kept: it is forgotten at once
    assert len(came._bounds) == 2 * MAX_RANGES
    assert came._bounds[0] == 2 * MAX_RANGES


def test_the_highest_ranges_are_told() -> None:
    bounds = bounds_of(with_counters(*range(0, 4 * SENT_RANGES, 2)))
    assert len(bounds) == 2 * SENT_RANGES
    assert bounds[-1] == 4 * SENT_RANGES - 1


def test_a_range_is_told_so_many_times_and_then_no_more() -> None:
    came = with_counters(0, 2)
    told = []
    for at in range(TOLD + 2):
        told.append(0 in bounds_of(came))
        came.add(4 + at, 4 + at, 0.0, eliciting=True)
    assert told == [True] * TOLD + [False] * 2


def test_what_is_told_again_with_nothing_new_stays() -> None:
    came = with_counters(0, 2)
    assert [bounds_of(came) for _ in range(3 * TOLD)] == [[0, 1, 2, 3]] * (3 * TOLD)


def test_a_late_counter_is_told_even_far_below() -> None:
    came = with_counters(0, 2, 10_000)
    for _ in range(2 * TOLD):
        came.add(came._bounds[-1], came._bounds[-1], 0.0, eliciting=True)
        came.take(0.0)
    came.add(1, 1, 0.0, eliciting=True)
    assert bounds_of(came)[:2] == [1, 3]


def test_what_is_beyond_the_span_is_not_told() -> None:
    came = with_counters(0)
    came.add(1, 3 * SPAN, 0.0, eliciting=True)
    assert bounds_of(came) == [2 * SPAN + 1, 3 * SPAN + 1]


# --- when ----------------------------------------------------------------------------------------------------------


def test_what_does_not_elicit_owes_nothing() -> None:
    came = Received()
    came.add(0, 3, 1.0, eliciting=False)
    came.add(9, 9, 1.0, eliciting=False)
    assert came.due == inf
    assert bounds_of(came) == [0, 4, 9, 10]


def test_what_elicits_is_acknowledged_within_the_delay_of_the_first() -> None:
    came = Received()
    came.add(0, 0, 1.0, eliciting=True)
    came.add(1, 1, 1.01, eliciting=True)
    assert came.due == 1.0 + ACK_DELAY


def test_who_asks_gets_it_at_once() -> None:
    came = Received()
    came.add(0, 0, 1.0, eliciting=True)
    came.add(1, 44, 1.01, eliciting=True, ask=True)
    assert came.due == 1.01


@pytest.mark.parametrize("counter", [2, 6])
def test_what_is_not_the_next_is_told_at_once(counter: int) -> None:
    """A gap, and what fills one."""
    came = Received()
    came.add(0, 0, 1.0, eliciting=False)
    came.add(4, 4, 1.0, eliciting=False)
    came.add(counter, counter, 1.0, eliciting=True)
    assert came.due == 1.0


def test_gaps_soon_behind_each_other_are_told_together() -> None:
    came = with_counters(0)
    came.apart = 0.006
    came.take(1.0)
    came.add(2, 2, 1.001, eliciting=True)
    came.add(4, 4, 1.002, eliciting=True)
    assert came.due == 1.006
    came.take(1.006)
    came.add(6, 6, 1.02, eliciting=True)
    assert came.due == 1.02


def test_who_asks_does_not_wait_for_that() -> None:
    came = with_counters(0)
    came.apart = 0.006
    came.take(1.0)
    came.add(2, 2, 1.001, eliciting=True)
    came.add(3, 3, 1.002, eliciting=True, ask=True)
    assert came.due == 1.002


def test_taking_it_settles_what_is_owed() -> None:
    came = with_counters(0)
    came.take(0.01)
    assert came.due == inf
    came.add(1, 1, 0.02, eliciting=True)
    assert came.due == 0.02 + ACK_DELAY


@pytest.mark.parametrize(
    ("late", "delay"),
    [
        ((5, 5), 0.03),
        ((2, 2), 0.04),
        ((3, 8), 0.03),
    ],
    ids=["the highest", "a late one", "a run across the highest"],
)
def test_the_delay_is_that_of_the_highest(late: tuple[int, int], delay: float) -> None:
    came = Received()
    came.add(0, 0, 0.0, eliciting=True)
    came.add(4, 4, 0.01, eliciting=True)
    came.add(*late, 0.02, eliciting=True)
    frame = came.take(0.05)
    assert frame is not None
    assert frame.delay == pytest.approx(delay)


def test_marks_are_counted() -> None:
    came = Received()
    came.add(0, 9, 0.0, eliciting=True, ce=3)
    came.add(10, 10, 0.0, eliciting=True, ce=1)
    frame = came.take(0.0)
    assert frame is not None
    assert frame.ce == 4


# --- bytes ---------------------------------------------------------------------------------------------------------


def test_the_bytes_of_one_range() -> None:
    frame = AckFrame([3, 8], 0.000_5, 2)
    assert encode(frame) == pack(">QIIBI", 7, 500, 2, 1, 5)
    assert decode(encode(frame)) == frame


def test_the_bytes_of_three_ranges() -> None:
    frame = AckFrame([0, 1, 4, 6, 13, 20], 0.0, 0)
    assert encode(frame) == pack(">QIIBIIIII", 19, 0, 0, 3, 7, 7, 2, 3, 1)
    assert decode(memoryview(encode(frame))) == frame


def test_the_bytes_of_most_ranges() -> None:
    frame = AckFrame(list(range(1 << 40, (1 << 40) + 2 * SENT_RANGES)), 1.0, 0)
    assert len(encode(frame)) == MAX_BODY
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize(("delay", "told"), [(-1.0, 0.0), (1e9, ((1 << 32) - 1) / 1e6)])
def test_a_delay_that_is_none_fits(delay: float, told: float) -> None:
    frame = decode(encode(AckFrame([0, 1], delay, 1 << 40)))
    assert frame == AckFrame([0, 1], told, (1 << 32) - 1)


WHOLE = encode(AckFrame([0, 1, 4, 6], 0.0, 0))


@pytest.mark.parametrize(
    "body",
    [
        *[WHOLE[:length] for length in range(len(WHOLE))],
        WHOLE + b"\0",
        WHOLE + bytes(8),
        pack(">QIIB", 7, 0, 0, 0),
        pack(">QIIBI", 7, 0, 0, 0, 5),
        pack(">QIIBI", 7, 0, 0, 2, 5),
        pack(">QIIBI", 7, 0, 0, 1, 0),
        pack(">QIIBI", 7, 0, 0, 1, 9),
        pack(">QIIBIII", 7, 0, 0, 2, 1, 0, 1),
        pack(">QIIBIII", 7, 0, 0, 2, 1, 1, 0),
        pack(">QIIBIII", 7, 0, 0, 2, 1, 7, 1),
        pack(">QIIB131I", 1 << 20, 0, 0, 66, *[1] * 131),
    ],
)
def test_what_is_malformed_is_nothing(body: bytes) -> None:
    assert decode(body) is None


def test_the_lowest_counter_may_be_nought() -> None:
    assert decode(pack(">QIIBI", 7, 0, 0, 1, 8)) == AckFrame([0, 8], 0.0, 0)


def test_what_is_told_always_fits() -> None:
    """A session lives long: its first range has more counters than 32 bits count."""
    came = Received()
    came.add(0, 1 << 33, 0.0, eliciting=True)
    came.add((1 << 34), (1 << 34), 0.0, eliciting=True)
    frame = came.take(0.0)
    assert frame is not None
    assert decode(encode(frame)) == frame
    assert frame.bounds == [1 << 34, (1 << 34) + 1]
