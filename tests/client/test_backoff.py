"""The times between two attempts to dial."""

from __future__ import annotations

import pytest

from cryprq_proxy.client.backoff import BACKOFF_FIRST, BACKOFF_LAST, JITTER, Backoff


def test_each_time_is_twice_as_long_up_to_a_bound() -> None:
    backoff = Backoff(lambda low, high: 1.0)
    times = [backoff.next() for _ in range(7)]
    assert times == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert (times[0], times[-1]) == (BACKOFF_FIRST, BACKOFF_LAST)


def test_it_begins_anew() -> None:
    backoff = Backoff(lambda low, high: 1.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == BACKOFF_FIRST


def test_clients_do_not_come_at_the_same_moment() -> None:
    ends = [Backoff(min).next(), Backoff(max).next()]
    assert ends == pytest.approx([BACKOFF_FIRST * (1 - JITTER), BACKOFF_FIRST * (1 + JITTER)])
    assert len({Backoff().next() for _ in range(10)}) > 1
