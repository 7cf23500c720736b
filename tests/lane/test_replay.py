"""The replay window, against a set that remembers everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import LocalError
from cryprq_proxy.lane.replay import WINDOW, ReplayWindow


@given(
    st.sampled_from([1, 8, 64]),
    st.lists(st.tuples(st.integers(-140, 140), st.integers(1, 130)), max_size=60),
)
def test_against_a_set(size: int, steps: list[tuple[int, int]]) -> None:
    """Runs that start near the highest counter so far, forwards and backwards."""
    window, seen = ReplayWindow(size), set[int]()
    for offset, count in steps:
        first = max(0, window.highest + offset)
        highest = max(seen, default=-1)
        for counter in range(max(0, first - 3), first + count + 3):
            expected = counter > highest or (counter > highest - size and counter not in seen)
            assert window.fresh(counter) is expected
        run = range(first, first + count)
        if all(window.fresh(counter) for counter in run):
            window.mark_range(first, run[-1])
            seen.update(run)
        elif window.fresh(first):
            window.mark(first)
            seen.add(first)
        assert window.highest == max(seen, default=-1)


def test_the_size_of_the_lane() -> None:
    window = ReplayWindow()
    window.mark_range(0, 99)
    window.mark(WINDOW + 99)
    assert not window.fresh(99)
    assert window.fresh(100)
    assert not window.fresh(WINDOW + 99)
    window.mark((1 << 64) - 1)
    assert not window.fresh((1 << 64) - 1)
    assert window.fresh((1 << 64) - WINDOW)
    assert not window.fresh((1 << 64) - 1 - WINDOW)


@pytest.mark.parametrize("size", [0, -8, 12])
def test_sizes_that_no_ring_can_have(size: int) -> None:
    with pytest.raises(LocalError, match="power of two"):
        ReplayWindow(size)
