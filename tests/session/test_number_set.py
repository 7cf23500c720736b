"""NumberSet: the same answers as a set of numbers, however they come, and a bound on what it keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.number_set import MAX_GAPS, NumberSet


def full() -> NumberSet:
    """One with as many gaps as there may be: the odd numbers are missing."""
    numbers = NumberSet()
    for number in range(1, MAX_GAPS + 1):
        assert numbers.add(2 * number)
    assert numbers.gaps == MAX_GAPS
    return numbers


@given(st.lists(st.integers(1, 40), max_size=60))
def test_it_is_a_set(added: list[int]) -> None:
    numbers, model = NumberSet(), set[int]()
    for number in added:
        assert numbers.add(number) is (number not in model)
        model.add(number)
        assert [each for each in range(42) if each in numbers] == sorted(model)
        assert numbers.highest == max(model)
        missing = set(range(1, numbers.highest)) - model
        assert numbers.gaps == len([each for each in missing if each + 1 in model])


def test_numbers_in_order_leave_nothing_to_keep() -> None:
    numbers = NumberSet()
    assert all(numbers.add(number) for number in range(1, 10_000))
    assert not any(numbers.add(number) for number in range(1, 10_000))
    assert numbers.gaps == 0


def test_a_first_number_far_up_leaves_one_gap() -> None:
    numbers = NumberSet()
    assert numbers.add(wire.MAX_STREAM)
    assert numbers.gaps == 1
    assert 1 not in numbers and wire.MAX_STREAM - 1 not in numbers
    assert numbers.add(1) and numbers.add(wire.MAX_STREAM - 1)
    assert numbers.gaps == 1


def test_no_number_is_in_an_empty_set() -> None:
    numbers = NumberSet()
    assert numbers.highest == 0
    assert 0 not in numbers and 1 not in numbers


def test_gaps_are_bounded_at_the_end() -> None:
    numbers = full()
    with pytest.raises(PeerError) as caught:
        numbers.add(numbers.highest + 2)
    assert caught.value.reason is CloseReason.LIMIT
    assert numbers.add(numbers.highest + 1)


def test_gaps_are_bounded_in_the_middle() -> None:
    numbers = NumberSet()
    numbers.add(4)
    for number in range(3, MAX_GAPS + 2):
        numbers.add(2 * number)
    assert numbers.gaps == MAX_GAPS
    with pytest.raises(PeerError) as caught:
        numbers.add(2)
    assert caught.value.reason is CloseReason.LIMIT
    assert 2 not in numbers


def test_what_fills_a_gap_makes_room() -> None:
    numbers = full()
    for number in (1, 4_001, 2 * MAX_GAPS - 1):
        assert numbers.add(number)
        assert numbers.add(numbers.highest + 2)
    assert numbers.gaps == MAX_GAPS
