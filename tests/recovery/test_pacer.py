"""When bytes may leave."""

from __future__ import annotations

from math import inf

import pytest

from cryprq_proxy.recovery.pacer import AHEAD, CATCH_UP, ENDLESS, LATE, LATE_DATAGRAMS, QUANTUM, Pacer

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


@pytest.mark.parametrize("rate", [100_000.0, 1_000_000.0, 2_000_000.0])
def test_a_busy_loop_does_not_take_the_rate_from_who_waits(pacer: Pacer, rate: float) -> None:
    """Each timer comes late by more than the quantum."""
    now, sent = 100.0, 0
    while now < 105.0:
        while allowed := pacer.allowance(now, rate, DATAGRAM):
            train = min(allowed, 40 * DATAGRAM)
            pacer.sent(train, now, rate)
            sent += train
        now = max(now, pacer.next_at(now, rate, DATAGRAM)) + 0.015
    assert sent == pytest.approx(5 * rate, rel=0.02)


@pytest.mark.parametrize(
    ("rate", "late"), [(1_000_000.0, LATE), (RATE, LATE_DATAGRAMS * DATAGRAM / RATE), (10 * RATE, CATCH_UP)]
)
def test_how_late_a_loop_may_be_has_a_bound(pacer: Pacer, rate: float, late: float) -> None:
    pacer.sent(10_000, 100.0, rate)
    pacer.next_at(100.0, rate, DATAGRAM)
    allowed = pacer.allowance(101.0, rate, DATAGRAM)
    assert allowed == pytest.approx((QUANTUM + late) * rate, abs=1)
    pacer.sent(allowed + 1, 101.0, rate)
    assert pacer.allowance(101.0, rate, DATAGRAM) == 0


def test_who_had_nothing_to_send_is_not_late(pacer: Pacer) -> None:
    pacer.sent(10_000, 100.0, RATE)
    pacer.next_at(100.0, RATE, DATAGRAM)
    pacer.rest()
    assert pacer.allowance(101.0, RATE, DATAGRAM) == pytest.approx((QUANTUM + CATCH_UP) * RATE)


def test_who_has_come_on_time_is_late_by_himself_the_next_time(pacer: Pacer) -> None:
    pacer.sent(10_000, 100.0, RATE)
    pacer.next_at(100.0, RATE, DATAGRAM)
    pacer.sent(pacer.allowance(100.003, RATE, DATAGRAM), 100.003, RATE)
    assert pacer.allowance(101.0, RATE, DATAGRAM) == pytest.approx((QUANTUM + CATCH_UP) * RATE)


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
