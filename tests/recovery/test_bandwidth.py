"""The bandwidth: the best sample of the last rounds."""

from __future__ import annotations

from cryprq_proxy.recovery.bandwidth import MOST, ROUNDS, Bandwidth


def test_it_is_the_best_sample() -> None:
    bandwidth = Bandwidth()
    assert bandwidth.best == 0.0
    for rate in (5.0, 9.0, 7.0, 8.0):
        bandwidth.add(rate, 1.0)
    assert bandwidth.best == 9.0


def test_a_sample_stands_for_ten_rounds() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(9.0, 0.0)
    for number in range(1, ROUNDS):
        bandwidth.next_round(number)
        bandwidth.add(4.0, number)
        assert bandwidth.best == 9.0
    bandwidth.next_round(10.0)
    assert bandwidth.best == 4.0


def test_the_second_best_follows_the_best() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(9.0, 0.0)
    bandwidth.next_round(1.0)
    bandwidth.add(7.0, 1.0)
    for number in range(2, 12):
        bandwidth.next_round(number)
        bandwidth.add(3.0, number)
        assert bandwidth.best == (9.0 if number < 10 else 7.0 if number < 11 else 3.0)


def test_a_sample_stands_for_a_tenth_of_a_second_at_least() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(9.0, 0.0)
    for number in range(50):
        bandwidth.next_round(number / 1000)
        bandwidth.add(4.0, number / 1000)
    assert bandwidth.best == 9.0
    bandwidth.next_round(0.101)
    assert bandwidth.best == 4.0


def test_without_a_new_sample_the_last_one_stands() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(9.0, 0.0)
    for number in range(100):
        bandwidth.next_round(number)
    assert bandwidth.best == 9.0


def test_what_was_measured_before_a_change_is_forgotten() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(9.0, 0.0)
    bandwidth.add(4.0, 2.0)
    bandwidth.forget(1.0)
    assert bandwidth.best == 4.0
    bandwidth.forget(3.0)
    assert bandwidth.best == 4.0


def test_few_samples_are_kept_however_many_come() -> None:
    bandwidth = Bandwidth()
    for number in range(10_000):
        bandwidth.add(10_000.0 - number, 1.0)
    assert bandwidth.best == 10_000.0
    assert len(bandwidth._samples) == MOST
    bandwidth.forget(2.0)
    assert bandwidth.best == 1.0


def test_the_best_since_a_time() -> None:
    bandwidth = Bandwidth()
    for rate, now in ((9.0, 0.0), (5.0, 1.0), (3.0, 2.0)):
        bandwidth.add(rate, now)
    assert [bandwidth.since(time) for time in (-1.0, 0.0, 1.5, 2.0)] == [9.0, 5.0, 3.0, 0.0]


def test_all_that_was_measured_can_count_less() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(8.0, 0.0)
    bandwidth.next_round(1.0)
    bandwidth.add(4.0, 1.0)
    bandwidth.scale(0.5)
    assert (bandwidth.best, bandwidth.since(0.5)) == (4.0, 2.0)
    bandwidth.add(3.0, 2.0)
    bandwidth.forget(1.5)
    assert bandwidth.best == 3.0
