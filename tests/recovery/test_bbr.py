"""BBR by hand-made traces: what it does after each acknowledgement."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from cryprq_proxy.recovery.bbr import (
    CLAIM_GAIN,
    CRUISE_GAIN,
    DOWN_GAIN,
    FIRST_WINDOW,
    HOLD_GAIN,
    LEAST_FLOOR,
    WINDOW_DATAGRAMS,
    WINDOW_SECONDS,
    YIELD,
    Bbr,
    Phase,
)
from cryprq_proxy.recovery.congestion import Sample

DATAGRAM = 1_000
TRIP = 1 / 16
RATE = 10_000_000.0
"""Bytes a second that the path of these tests delivers."""
PRODUCT = int(RATE * TRIP)


class Trace:
    """A path of RATE and TRIP, told of round by round."""

    def __init__(self, round_trip: float = 0.0) -> None:
        self.now = 100.0
        self.bbr = Bbr(self.now, DATAGRAM, round_trip)
        self.delivered = 0

    def round(self, rate: float = RATE, trip: float = TRIP, **told: Any) -> Phase:
        """One acknowledgement that ends a round: a round trip later, all that left in the one before is there."""
        told = {"in_flight": PRODUCT, "acked": int(rate * trip), "interval": trip, "lost": 0} | told
        self.now += told.pop("later", trip)
        if told["lost"]:
            self.bbr.lost(told["lost"], self.now, told["in_flight"])
        sample = Sample()
        sample.now, sample.rate, sample.round_trip = self.now, rate, trip
        sample.prior_delivered = self.delivered
        sample.app_limited = False
        for name, value in told.items():
            setattr(sample, name, value)
        self.delivered += sample.acked
        sample.delivered = self.delivered
        self.bbr.acked(sample)
        return self.bbr.phase

    def cruise(self) -> None:
        """To the beginning of CRUISE."""
        for rate in (RATE / 4, RATE / 2, RATE, RATE, RATE):
            assert self.round(rate, in_flight=2 * PRODUCT) is Phase.STARTUP
        assert self.round(in_flight=2 * PRODUCT) is Phase.DRAIN
        assert self.round() is Phase.UP
        self.round(in_flight=PRODUCT * 5 // 4)
        assert self.bbr.phase is Phase.DOWN
        assert self.round(trip=TRIP * 1.1) is Phase.CRUISE


@pytest.fixture
def trace() -> Trace:
    return Trace()


@pytest.fixture
def cruising() -> Trace:
    trace = Trace()
    trace.cruise()
    return trace


# --- the beginning ---------------------------------------------------------------------------------------------------


def test_the_first_window_leaves_at_once(trace: Trace) -> None:
    assert trace.bbr.window == FIRST_WINDOW * DATAGRAM
    assert trace.bbr.rate >= FIRST_WINDOW * DATAGRAM / 0.001


def test_the_first_window_is_spread_over_a_round_trip_that_is_known() -> None:
    bbr = Trace(round_trip=TRIP).bbr
    assert bbr.rate == pytest.approx(2.77 * FIRST_WINDOW * DATAGRAM / TRIP)


def test_startup_ends_after_three_rounds_without_growth(trace: Trace) -> None:
    for rate in (1e6, 2e6, 4e6, 8e6, 8e6, 9e6):
        assert trace.round(rate) is Phase.STARTUP
        assert trace.bbr.rate == pytest.approx(2.77 * rate)
    assert trace.round(9.5e6) is Phase.DRAIN
    assert trace.bbr.rate == pytest.approx(0.36 * 9.5e6)


def test_startup_goes_on_while_a_quarter_is_gained(trace: Trace) -> None:
    rate = 1e6
    for _ in range(12):
        rate *= 1.26
        assert trace.round(rate) is Phase.STARTUP


@pytest.mark.parametrize(("trip", "phase"), [(0.0820, Phase.STARTUP), (0.0823, Phase.DRAIN)])
def test_startup_ends_where_a_queue_shows(trace: Trace, trip: float, phase: Phase) -> None:
    trace.round(1e6)
    assert trace.round(2e6, trip) is phase


def test_one_short_round_trip_in_a_round_means_no_queue(trace: Trace) -> None:
    trace.round(1e6)
    trace.round(2e6, 0.064, prior_delivered=0)
    assert trace.round(2e6, 0.09) is Phase.STARTUP


def test_rounds_that_were_not_full_do_not_end_startup(trace: Trace) -> None:
    for _ in range(20):
        assert trace.round(1e6, app_limited=True) is Phase.STARTUP


def test_drain_ends_when_the_queue_is_gone(trace: Trace) -> None:
    for _ in range(4):
        trace.round(in_flight=2 * PRODUCT)
    assert trace.bbr.phase is Phase.DRAIN
    assert trace.round(in_flight=PRODUCT + DATAGRAM) is Phase.DRAIN
    assert trace.round(in_flight=PRODUCT) is Phase.UP


# --- the cycle -------------------------------------------------------------------------------------------------------


def test_the_cycle(cruising: Trace) -> None:
    bbr = cruising.bbr
    for _ in range(2):
        for _ in range(5):
            assert cruising.round() is Phase.CRUISE
            assert bbr.rate == pytest.approx(0.98 * RATE)
        assert cruising.round(later=TRIP * 1.01) is Phase.UP
        assert bbr.rate == pytest.approx(1.25 * RATE)
        assert cruising.round(later=TRIP / 2) is Phase.UP
        assert cruising.round(in_flight=PRODUCT * 5 // 4) is Phase.DOWN
        assert bbr.rate == pytest.approx(0.75 * RATE)
        assert cruising.round(in_flight=PRODUCT * 9 // 8) is Phase.DOWN
        assert cruising.round() is Phase.CRUISE


def test_window_and_product(cruising: Trace) -> None:
    expected = 2 * PRODUCT + WINDOW_SECONDS * RATE + WINDOW_DATAGRAMS * DATAGRAM
    assert cruising.bbr.window == pytest.approx(expected)


def test_up_follows_upon_up_while_the_bandwidth_grows(cruising: Trace) -> None:
    while cruising.round() is not Phase.UP:
        pass
    cruising.round(later=TRIP * 1.01)
    assert cruising.round(RATE * 1.25) is Phase.CRUISE
    assert cruising.round(RATE * 1.25) is Phase.UP


def test_up_does_not_follow_where_a_queue_grows(cruising: Trace) -> None:
    while cruising.round() is not Phase.UP:
        pass
    cruising.round(later=TRIP * 1.01)
    assert cruising.round(RATE * 1.25) is Phase.CRUISE
    cruising.round(RATE * 1.25, trip=TRIP * 1.5)
    assert cruising.bbr.phase is Phase.CRUISE


def test_a_queue_that_does_not_drain_means_that_the_model_is_old(cruising: Trace) -> None:
    while cruising.round() is not Phase.UP:
        pass
    cruising.now += 2.5
    assert cruising.round(later=TRIP * 1.01) is Phase.DOWN
    for _ in range(2):
        assert cruising.round(RATE / 2, 2 * TRIP, in_flight=2 * PRODUCT) is Phase.DOWN
        assert cruising.bbr.bandwidth == RATE
    assert cruising.round(RATE / 2, 2 * TRIP, in_flight=2 * PRODUCT) is Phase.PROBE_RTT
    assert cruising.bbr.bandwidth == RATE / 2


def down(trace: Trace) -> None:
    """To the beginning of a DOWN."""
    while trace.round() is not Phase.UP:
        pass
    assert trace.round(later=TRIP * 1.01) is Phase.DOWN


def test_beside_others_it_gives_up_a_share_of_what_is_its_own(cruising: Trace) -> None:
    """DOWN makes the round trip shorter by a fifth: that part of the queue was its own."""
    down(cruising)
    cruising.round(trip=2.0 * TRIP, in_flight=2 * PRODUCT)
    assert cruising.round(trip=1.6 * TRIP) is Phase.CRUISE
    assert cruising.bbr.bandwidth == pytest.approx((1 - 0.2 * YIELD) * RATE)
    assert cruising.bbr.rate == pytest.approx(CRUISE_GAIN * cruising.bbr.bandwidth)


def test_where_no_queue_is_left_it_gives_up_nothing(cruising: Trace) -> None:
    down(cruising)
    cruising.round(trip=1.3 * TRIP, in_flight=2 * PRODUCT)
    assert cruising.round(trip=1.05 * TRIP) is Phase.CRUISE
    assert cruising.bbr.bandwidth == RATE


def test_beside_others_that_do_not_yield_it_claims_more(cruising: Trace) -> None:
    """DOWN does not show in the queue, and what it sent has arrived."""
    bbr = cruising.bbr
    down(cruising)
    for _ in range(3):
        cruising.round(DOWN_GAIN * RATE, 2 * TRIP, in_flight=2 * PRODUCT)
    assert bbr.phase is Phase.CRUISE
    assert bbr.bandwidth == RATE
    assert bbr.rate == pytest.approx(HOLD_GAIN * RATE)
    while cruising.round(trip=2 * TRIP, in_flight=2 * PRODUCT) is not Phase.UP:
        pass
    assert bbr.rate == pytest.approx(CLAIM_GAIN * RATE)
    # Drained again: the cycle is the usual one.
    assert cruising.round(later=TRIP * 1.01) is Phase.DOWN
    assert cruising.round() is Phase.CRUISE
    assert bbr.rate == pytest.approx(CRUISE_GAIN * RATE)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_of_a_sender_with_little_to_say_only_raise(cruising: Trace) -> None:
    for _ in range(40):
        cruising.round(RATE / 100, app_limited=True)
    assert cruising.bbr.bandwidth == RATE
    cruising.round(RATE * 1.1, app_limited=True)
    assert cruising.bbr.bandwidth == RATE * 1.1


def test_samples_of_bulk_lower_it_after_ten_rounds(cruising: Trace) -> None:
    for _ in range(11):
        cruising.round(RATE / 2)
    assert cruising.bbr.bandwidth == RATE / 2


def test_samples_over_less_than_half_a_round_trip_are_thrown_away(cruising: Trace) -> None:
    cruising.round(3 * RATE, interval=TRIP / 2 - 0.001)
    assert cruising.bbr.bandwidth == RATE
    cruising.round(3 * RATE, interval=TRIP / 2 + 0.001)
    assert cruising.bbr.bandwidth == 3 * RATE


def test_requests_do_not_teach_a_connection_to_be_slow(trace: Trace) -> None:
    for _ in range(50):
        trace.bbr.sent(300, trace.now, 0)
        trace.round(300 / TRIP, acked=300, in_flight=0, app_limited=True)
    assert trace.bbr.window >= FIRST_WINDOW * DATAGRAM
    assert trace.bbr.rate >= FIRST_WINDOW * DATAGRAM / TRIP


def test_a_slow_path_that_bulk_has_measured_gets_what_it_carries() -> None:
    trace = Trace()
    for _ in range(5):
        trace.round(50_000.0, in_flight=20 * DATAGRAM)
    assert trace.bbr.filled
    assert trace.bbr.rate == LEAST_FLOOR * DATAGRAM / TRIP


# --- the least round trip --------------------------------------------------------------------------------------------


def cruise_with_a_queue(trace: Trace) -> None:
    """Until its least round trip is ten seconds old."""
    for _ in range(1_000):
        if trace.round(trip=1.2 * TRIP) is Phase.PROBE_RTT:
            return
    raise AssertionError("never")


def test_the_round_trip_is_measured_again_after_ten_seconds(cruising: Trace) -> None:
    bbr, begin = cruising.bbr, cruising.now
    cruise_with_a_queue(cruising)
    assert 9.5 < cruising.now - begin <= 10.1
    assert bbr.window == PRODUCT // 2
    assert cruising.round(trip=1.2 * TRIP, in_flight=PRODUCT) is Phase.PROBE_RTT
    for _ in range(3):
        assert cruising.round(RATE / 2, trip=1.1 * TRIP, in_flight=PRODUCT // 2) is Phase.PROBE_RTT
    assert cruising.round(RATE / 2, trip=1.1 * TRIP, in_flight=PRODUCT // 2) is Phase.CRUISE
    assert bbr.least == 1.1 * TRIP
    assert bbr.bandwidth == RATE


def test_what_left_during_the_measurement_says_nothing_about_the_bandwidth(cruising: Trace) -> None:
    cruise_with_a_queue(cruising)
    while cruising.round(RATE / 2, in_flight=PRODUCT // 2) is Phase.PROBE_RTT:
        pass
    for _ in range(8):
        cruising.round(RATE / 2, in_flight=PRODUCT // 2, later=TRIP / 8, acked=DATAGRAM)
    assert cruising.bbr.bandwidth == RATE


def test_a_path_without_a_queue_is_not_measured_again(cruising: Trace) -> None:
    for _ in range(1_000):
        assert cruising.round() is not Phase.PROBE_RTT


def test_after_a_rest_the_first_round_trip_is_the_least(cruising: Trace) -> None:
    bbr = cruising.bbr
    cruising.now += 60
    bbr.sent(10 * DATAGRAM, cruising.now, 0)
    cruising.round(trip=2 * TRIP, app_limited=True)
    assert bbr.phase is not Phase.PROBE_RTT
    assert bbr.least == 2 * TRIP


def test_a_least_round_trip_that_is_measured_at_once_behind_a_rest_needs_no_probe(cruising: Trace) -> None:
    """An acknowledgement that measures nothing comes first: that of packets, or of what was sent again."""
    trace, bbr = cruising, cruising.bbr
    trace.now += 11.0
    bbr.sent(DATAGRAM, trace.now, 0)
    assert trace.round(round_trip=0.0) is not Phase.PROBE_RTT
    assert trace.round(round_trip=0.0) is not Phase.PROBE_RTT
    assert trace.round(trip=1.1 * TRIP) is not Phase.PROBE_RTT
    assert bbr.least == 1.1 * TRIP


# --- rest, silence, another path -------------------------------------------------------------------------------------


def test_after_a_rest_a_burst_goes_at_the_bandwidth(cruising: Trace) -> None:
    while cruising.round() is not Phase.UP:
        pass
    cruising.round(later=TRIP * 1.01)
    assert cruising.bbr.phase is Phase.DOWN
    window = cruising.bbr.window
    cruising.now += 5
    cruising.bbr.sent(DATAGRAM, cruising.now, 0)
    assert cruising.bbr.phase is Phase.CRUISE
    assert cruising.bbr.rate == RATE
    assert cruising.bbr.window == window


def test_in_a_silence_the_window_is_that_of_the_beginning(cruising: Trace) -> None:
    window = cruising.bbr.window
    cruising.bbr.silent(cruising.now + 0.5)
    assert cruising.bbr.window == FIRST_WINDOW * DATAGRAM
    cruising.now += 3
    cruising.round(1_000.0, acked=DATAGRAM, interval=3.0, lost=PRODUCT)
    assert cruising.bbr.bandwidth == RATE
    assert cruising.bbr.ceiling.rate == inf
    assert cruising.bbr.window == window


def test_a_short_silence_is_no_reason_to_brake(cruising: Trace) -> None:
    cruising.round(1_000.0, acked=DATAGRAM, interval=0.4, lost=PRODUCT, later=0.4)
    assert cruising.bbr.ceiling.rate == inf


def test_another_path_begins_anew(cruising: Trace) -> None:
    cruising.bbr.reset(cruising.now)
    assert cruising.bbr.phase is Phase.STARTUP
    assert cruising.bbr.window == FIRST_WINDOW * DATAGRAM
    assert cruising.bbr.bandwidth == 0.0
    assert cruising.bbr.least == inf


@pytest.mark.parametrize("phase", [Phase.CRUISE, Phase.UP, Phase.PROBE_RTT])
def test_a_clock_that_is_put_back_holds_nothing_up(cruising: Trace, phase: Phase) -> None:
    if phase is Phase.PROBE_RTT:
        cruise_with_a_queue(cruising)
        cruising.round(in_flight=PRODUCT // 2)
    else:
        while cruising.bbr.phase is not phase:
            cruising.round()
    cruising.now -= 90
    seen = {cruising.round(in_flight=PRODUCT // 2) for _ in range(12)}
    assert {Phase.CRUISE, Phase.UP} <= seen


# --- loss and marks --------------------------------------------------------------------------------------------------


def test_loss_is_no_reason_to_go_slower(cruising: Trace) -> None:
    for _ in range(50):
        cruising.round(RATE, lost=int(0.15 * PRODUCT))
    assert cruising.bbr.ceiling.rate == inf


def test_much_loss_is(cruising: Trace) -> None:
    bbr = cruising.bbr
    cruising.round(RATE, acked=PRODUCT // 2, lost=PRODUCT // 2)
    assert bbr.rate <= RATE / 2 * 1.001
    product = RATE / 2 * TRIP
    assert bbr.window == pytest.approx(
        2 * product + WINDOW_SECONDS * RATE / 2 + WINDOW_DATAGRAMS * DATAGRAM, rel=0.001
    )


def test_the_ceiling_rises_and_goes(cruising: Trace) -> None:
    cruising.round(RATE, acked=PRODUCT // 2, lost=PRODUCT // 2)
    ceiling = cruising.bbr.ceiling.rate
    cruising.round(RATE)
    assert cruising.bbr.ceiling.rate == pytest.approx(1.05 * ceiling)
    for _ in range(30):
        cruising.round(RATE)
    assert cruising.bbr.ceiling.rate == inf


def test_the_ceiling_stays_between_brake_and_release(cruising: Trace) -> None:
    cruising.round(RATE, acked=PRODUCT // 2, lost=PRODUCT // 2)
    ceiling = cruising.bbr.ceiling.rate
    cruising.round(RATE, acked=82 * DATAGRAM, lost=18 * DATAGRAM)
    assert cruising.bbr.ceiling.rate == ceiling


def test_few_losses_of_few_say_nothing(cruising: Trace) -> None:
    cruising.round(RATE / 100, acked=4 * DATAGRAM, lost=4 * DATAGRAM, app_limited=True)
    assert cruising.bbr.ceiling.rate == inf


def test_much_loss_twice_ends_startup(trace: Trace) -> None:
    trace.round(RATE, acked=40 * DATAGRAM, lost=40 * DATAGRAM)
    assert trace.bbr.phase is Phase.STARTUP
    trace.round(2 * RATE, acked=400 * DATAGRAM, lost=400 * DATAGRAM)
    assert trace.bbr.phase is Phase.DRAIN


def test_marks_are_answered_once_a_round(cruising: Trace) -> None:
    for _ in range(3):
        cruising.round(prior_delivered=0, ce=5, later=0.001)
    assert cruising.bbr.ceiling.rate == inf
    cruising.round()
    assert cruising.bbr.ceiling.rate == pytest.approx(0.85 * RATE)
    assert cruising.bbr.rate == pytest.approx(0.98 * 0.85 * RATE)


def test_a_mark_ends_up_and_startup(cruising: Trace, trace: Trace) -> None:
    while cruising.round() is not Phase.UP:
        pass
    assert cruising.round(later=0.001, prior_delivered=0, ce=1) is Phase.DOWN
    trace.round(RATE)
    assert trace.round(2 * RATE, ce=1) is Phase.DRAIN
