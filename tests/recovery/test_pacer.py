"""When bytes may leave."""

from __future__ import annotations

from math import inf

import pytest

from cryprq_proxy.recovery.pacer import AHEAD, CATCH_UP, ENDLESS, QUANTUM, Pacer

RATE = 5_000_000.0
"""Bytes a second: 10,000 in a quantum."""
DATAGRAM = 1_000


@pytest.fixture
def pacer() -> Pacer:
    return Pacer(100.0)


def test_it_begins_with_a_quantum(pacer: Pacer) -> None:
    assert pacer.allowance(100.0, RATE, DATAGRAM) == 10_000


def test_what_left_is_paid_for_with_time(pacer: Pacer) -> None:
    pacer.sent(10_000, 100.0, RATE)
    # The beginning counts as a moment at which it had waited for nothing yet.
    assert pacer.next_at(100.0, RATE, DATAGRAM) == pytest.approx(100.002)
    assert pacer.allowance(100.0018, RATE, DATAGRAM) == 0
    assert pacer.allowance(100.0022, RATE, DATAGRAM) == pytest.approx(11_000, abs=1)


def test_more_than_the_allowance_is_paid_back(pacer: Pacer) -> None:
    pacer.sent(50_000, 100.0, RATE)
    assert pacer.next_at(100.0, RATE, DATAGRAM) == pytest.approx(100.010)
    assert pacer.allowance(100.009, RATE, DATAGRAM) == 0
    assert pacer.allowance(100.0101, RATE, DATAGRAM) > 0


def test_over_a_second_it_lets_the_rate_through(pacer: Pacer) -> None:
    now, sent = 100.0, 0
    while now < 101.0:
        allowed = pacer.allowance(now, RATE, DATAGRAM)
        if allowed:
            pacer.sent(allowed, now, RATE)
            sent += allowed
        # A timer that is late by half a millisecond: what it misses, it catches up.
        now = max(now, pacer.next_at(now, RATE, DATAGRAM)) + 0.0005
    assert sent == pytest.approx(RATE, rel=0.01)


def test_a_long_pause_is_no_credit(pacer: Pacer) -> None:
    pacer.sent(10_000, 100.0, RATE)
    assert pacer.allowance(160.0, RATE, DATAGRAM) == pytest.approx((QUANTUM + CATCH_UP) * RATE)
    pacer.sent(25_000, 160.0, RATE)
    assert pacer.allowance(160.0, RATE, DATAGRAM) == 0


def test_two_datagrams_are_a_quantum_however_slow(pacer: Pacer) -> None:
    assert pacer.allowance(100.0, 100.0, DATAGRAM) == 2 * DATAGRAM


def test_an_infinite_rate_is_not_paced(pacer: Pacer) -> None:
    pacer.sent(1 << 40, 100.0, inf)
    assert pacer.allowance(100.0, inf, DATAGRAM) == ENDLESS
    assert pacer.next_at(100.0, inf, DATAGRAM) == 100.0


def test_a_debt_is_over_in_a_second(pacer: Pacer) -> None:
    pacer.sent(1 << 40, 100.0, RATE)
    assert pacer.next_at(100.0, RATE, DATAGRAM) == 100.0 + AHEAD


def test_a_clock_that_is_put_back_holds_nothing_up(pacer: Pacer) -> None:
    pacer.sent(10_000, 100.0, RATE)
    assert pacer.allowance(50.0, RATE, DATAGRAM) > 0
    pacer.sent(10_000, 50.0, RATE)
    assert pacer.next_at(50.0, RATE, DATAGRAM) == pytest.approx(50.002)
