"""The times between two attempts to dial."""

from __future__ import annotations

import pytest

from cryprq_proxy.client.backoff import (
    BACKOFF_FIRST,
    BACKOFF_LAST,
    BACKOFF_RESTART,
    JITTER,
    RESTART_ATTEMPTS,
    Backoff,
)


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


def test_a_restart_is_waited_for_with_short_times_and_not_for_ever() -> None:
    """The case that was: they doubled, so a successor that listened after 0.8 s was dialled after 1.6 s."""
    backoff = Backoff(lambda low, high: 1.0)
    backoff.next()
    backoff.hasten()
    assert [backoff.next() for _ in range(RESTART_ATTEMPTS)] == [BACKOFF_RESTART] * RESTART_ATTEMPTS
    assert [backoff.next() for _ in range(2)] == [BACKOFF_FIRST, 2 * BACKOFF_FIRST]
    backoff.hasten()
    backoff.reset()
    assert backoff.next() == BACKOFF_FIRST
