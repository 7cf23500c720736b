"""Token buckets, alone and by key, on a clock of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.exit.limits import TokenBucket, TokenBuckets


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, now=100.0)
    assert [bucket.allow(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.allow(100.25)
    assert bucket.allow(100.5)
    assert not bucket.allow(100.5)
    assert [bucket.allow(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_takes_amounts_and_charges_nothing_for_a_refusal() -> None:
    bucket = TokenBucket(rate=1.0, burst=10.0, now=0.0)
    assert not bucket.allow(0.0, 11.0)
    assert bucket.allow(0.0, 10.0)
    assert not bucket.allow(4.0, 5.0)
    assert bucket.allow(5.0, 5.0)


def test_a_bucket_gains_nothing_from_a_clock_that_goes_back() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0, now=10.0)
    assert bucket.allow(10.0)
    assert not bucket.allow(0.0)
    assert not bucket.allow(10.5)
    assert bucket.allow(11.0)


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_a_bucket_never_gives_more_than_burst_plus_rate(steps: list[float], rate: int, burst: int) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    given_out = 0
    for step in steps:
        now += step
        given_out += bucket.allow(now)
        assert given_out <= burst + now * rate + 1e-6


def test_a_token_comes_back_and_the_bucket_never_overflows() -> None:
    bucket = TokenBucket(rate=0.0, burst=2.0, now=0.0)
    bucket.give_back()
    assert [bucket.allow(0.0) for _ in range(3)] == [True, True, False]
    assert not bucket.would_allow(0.0)
    bucket.give_back()
    assert bucket.would_allow(0.0) and bucket.would_allow(0.0), "to ask costs nothing"
    assert [bucket.allow(0.0) for _ in range(2)] == [True, False]


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = TokenBuckets(rate=1.0, burst=2.0)
    assert [buckets.allow(b"a", 0.0) for _ in range(3)] == [True, True, False]
    assert not buckets.would_allow(b"a", 0.0)
    assert buckets.would_allow(b"b", 0.0)
    assert len(buckets) == 1, "to ask is not remembered"
    assert buckets.allow(b"b", 0.0)
    assert buckets.allow(b"a", 1.0)
    buckets.give_back(b"a")
    assert buckets.allow(b"a", 1.0)
    buckets.give_back(b"never seen")
    assert len(buckets) == 2


def test_the_prefix_not_heard_of_for_longest_is_forgotten() -> None:
    buckets = TokenBuckets(rate=0.0, burst=1.0, max_keys=2)
    assert buckets.allow(b"a", 0.0)
    assert buckets.allow(b"b", 0.0)
    assert not buckets.allow(b"a", 0.0)
    assert buckets.allow(b"c", 0.0)
    assert len(buckets) == 2
    assert not buckets.allow(b"a", 0.0)
    assert buckets.allow(b"b", 0.0)


def test_another_rate_keeps_what_the_bucket_holds() -> None:
    bucket = TokenBucket(rate=1.0, burst=4.0, now=0.0)
    assert bucket.allow(0.0)
    bucket.take_rate(0.5, 2.0)
    assert [bucket.allow(0.0) for _ in range(3)] == [True, True, False]
    assert not bucket.allow(1.0)
    assert bucket.allow(2.0)
    bucket.take_rate(2.0, 3.0)
    assert not bucket.allow(2.0), "no token comes with it"
    assert [bucket.allow(10.0) for _ in range(4)] == [True, True, True, False]


def test_another_rate_is_that_of_old_keys_too() -> None:
    buckets = TokenBuckets(rate=1.0, burst=3.0)
    assert buckets.allow(b"old", 0.0)
    buckets.take_rate(0.0, 1.0)
    assert buckets.would_allow(b"old", 0.0)
    for key in (b"old", b"new"):
        assert [buckets.allow(key, 0.0) for _ in range(2)] == [True, False]
        assert not buckets.would_allow(key, 100.0)
    for _ in range(2):
        buckets.give_back(b"old")
    assert [buckets.allow(b"old", 100.0) for _ in range(2)] == [True, False]
