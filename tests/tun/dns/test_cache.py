"""Answers over time, and the bounds of what is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tun.dns.answer import Answer
from tun.dns.cache import ENTRY_BYTES, MAX_FAILURES, Cache
from tun.dns.codes import Key

DAY = 86_400.0


def key(number: int = 0) -> Key:
    return b"\x05" + b"%05d" % number + b"\0", 1, 0


def answer(lifetime: int = 60, size: int = 100) -> Answer:
    return Answer(bytes(size), (), size, lifetime)


def test_an_answer_is_fresh_then_stale_then_gone() -> None:
    cache = Cache(10, 1 << 20, DAY)
    cache.put(key(), answer(), 1000.0)
    assert cache.get(key(), 1000.0) == (answer(), 0, True)
    assert cache.get(key(), 1059.9) == (answer(), 59, True)
    assert cache.get(key(), 1060.0) == (answer(), 60, False)
    assert cache.get(key(), 1059.9 + DAY) == (answer(), 59 + 86_400, False)
    assert cache.get(key(), 1060.0 + DAY) is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_nothing_is_stale_where_nobody_wants_that() -> None:
    cache = Cache(10, 1 << 20, 0)
    cache.put(key(), answer(), 0.0)
    assert cache.get(key(), 60.0) is None


def test_what_has_no_lifetime_is_not_kept_and_ends_what_was() -> None:
    cache = Cache(10, 1 << 20, DAY)
    cache.put(key(), answer(), 0.0)
    cache.put(key(), answer(0), 1.0)
    assert cache.get(key(), 1.0) is None
    assert cache.bytes == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = Cache(2, 1 << 20, DAY)
    cache.put(key(1), answer(), 0.0)
    cache.put(key(2), answer(), 0.0)
    cache.get(key(1), 1.0)
    cache.put(key(3), answer(), 2.0)
    assert cache.get(key(2), 3.0) is None
    assert cache.get(key(1), 3.0)
    assert cache.get(key(3), 3.0)


def test_bytes_are_bounded_too() -> None:
    cache = Cache(1000, 4 * (ENTRY_BYTES + 1000), DAY)
    for number in range(10):
        cache.put(key(number), answer(size=900), 0.0)
    assert len(cache) == 4
    cache.put(key(99), answer(size=10_000), 0.0)
    assert cache.get(key(99), 0.0) is None
    assert len(cache) == 4


def test_failures_are_remembered_for_seconds_and_in_bounds() -> None:
    cache = Cache(10, 1 << 20, DAY)
    cache.fail(key(), 10.0, 5.0)
    assert cache.failed(key(), 14.9)
    assert cache.said(key()) is None
    assert not cache.failed(key(), 15.0)
    for number in range(MAX_FAILURES + 1):
        cache.fail(key(number), 20.0, 5.0)
    assert not cache.failed(key(0), 20.0)
    assert cache.failed(key(MAX_FAILURES), 20.0)
    cache.put(key(5), answer(), 20.0)
    assert not cache.failed(key(5), 20.0)
    cache.forget_failures()
    assert not cache.failed(key(MAX_FAILURES), 20.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2000), st.integers(0, 100)), max_size=60))
def test_the_count_of_bytes_is_that_of_the_entries(steps: list[tuple[int, int, int]]) -> None:
    cache = Cache(4, 8000, 10.0)
    kept = {}
    for now, (number, size, lifetime) in enumerate(steps):
        cache.put(key(number), answer(lifetime, size), float(now))
        kept[number] = size
        assert len(cache) <= 4
        assert cache.bytes <= 8000
    present = [number for number in kept if cache.get(key(number), float(len(steps)))]
    assert cache.bytes == sum(ENTRY_BYTES + 7 + kept[number] for number in present)
    cache.clear()
    assert cache.bytes == len(cache) == 0
