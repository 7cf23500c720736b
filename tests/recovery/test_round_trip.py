"""RFC 9002 section 5: samples, the smoothed round trip, its variation, the least one, and the probe time-out."""

from __future__ import annotations

import pytest

from cryprq_proxy.recovery.round_trip import ACK_DELAY, LONGEST, RoundTrip


def after(*samples: float, delay: float = 0.0) -> RoundTrip:
    trip = RoundTrip()
    for at, sample in enumerate(samples):
        trip.add(sample, delay, float(at))
    return trip


def test_before_the_first_sample_a_third_of_a_second_is_assumed() -> None:
    trip = RoundTrip()
    assert (trip.samples, trip.least) == (0, 0.333)
    assert trip.timeout() == pytest.approx(0.333 + 4 * 0.1665 + 2 * ACK_DELAY)


def test_the_first_sample_counts_whole() -> None:
    trip = after(0.1)
    assert (trip.smoothed, trip.variation, trip.least, trip.latest) == (0.1, 0.05, 0.1, 0.1)


def test_later_samples_count_an_eighth() -> None:
    trip = after(0.1, 0.18)
    assert trip.smoothed == pytest.approx(0.11)
    assert trip.variation == pytest.approx(0.0375 + 0.02)
    assert (trip.least, trip.latest) == (0.1, 0.18)


def test_the_delay_of_the_receiver_is_taken_off() -> None:
    trip = after(0.1, 0.134, delay=0.018)
    assert trip.smoothed == pytest.approx(0.102)
    assert trip.latest == 0.134


def test_the_delay_never_brings_a_sample_below_the_least_one() -> None:
    trip = after(0.1, 0.11, delay=0.02)
    assert trip.smoothed == pytest.approx(0.1 + 0.01 / 8)


def test_a_receiver_cannot_claim_more_delay_than_it_may_have() -> None:
    trip = after(0.1, 0.5, delay=0.4)
    assert trip.smoothed == pytest.approx(0.1 + (0.5 - ACK_DELAY - 0.1) / 8)


def test_the_least_one_is_that_of_raw_samples() -> None:
    assert after(0.03, delay=0.025).least == 0.03


def test_the_least_one_is_forgotten_after_ten_seconds() -> None:
    trip = RoundTrip()
    least = []
    for at in range(14):
        trip.add(0.01 if at == 0 else 0.05, 0.0, float(at))
        least.append(trip.least)
    assert least[:10] == [0.01] * 10
    assert least[12:] == [0.05] * 2


def test_after_a_pause_the_least_one_is_new() -> None:
    trip = RoundTrip()
    trip.add(0.01, 0.0, 0.0)
    trip.add(0.05, 0.0, 100.0)
    assert trip.least == 0.05


@pytest.mark.parametrize("sample", [-0.001, LONGEST + 0.001])
def test_a_clock_that_jumped_makes_no_sample(sample: float) -> None:
    trip = RoundTrip()
    assert not trip.add(sample, 0.0, 1.0)
    assert trip.samples == 0


def test_a_sample_of_nothing_is_above_nothing() -> None:
    assert after(0.0).latest > 0.0


def test_a_steady_path_waits_for_the_timers_of_the_receiver() -> None:
    trip = after(*[0.05] * 100)
    assert trip.timeout() == pytest.approx(0.05 + 0.002 + 2 * ACK_DELAY)
