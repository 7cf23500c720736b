"""After which silence a path is in doubt."""

from __future__ import annotations

import pytest

from cryprq_proxy.session.suspicion import CALM_SECONDS, KERNEL_ROUNDS, LEAST_LATE, MOST_PATIENCE, Suspicion

INFINITY = float("inf")


def steady(seconds: float) -> Suspicion:
    """One that has seen many answers in that time."""
    suspicion = Suspicion()
    for _ in range(100):
        suspicion.measured(seconds)
    return suspicion


def test_the_first_answer_may_be_an_exception() -> None:
    """RFC 6298, section 2.2."""
    suspicion = Suspicion()
    suspicion.measured(0.2)
    assert suspicion.seconds == pytest.approx(0.2 + 4 * 0.1)


def test_a_later_answer_weighs_less() -> None:
    """Section 2.3."""
    suspicion = Suspicion()
    suspicion.measured(0.2)
    suspicion.measured(0.4)
    assert suspicion.seconds == pytest.approx(0.225 + 4 * (0.75 * 0.1 + 0.25 * 0.2))


def test_an_answer_that_takes_always_the_same_time_may_be_a_little_late() -> None:
    assert steady(0.2).seconds == pytest.approx(0.2 + LEAST_LATE)


def test_a_record_is_timed_from_when_it_leaves_until_it_is_acknowledged() -> None:
    suspicion = steady(0.2)
    suspicion.sent(7, 10.0)
    suspicion.sent(8, 10.1)
    suspicion.answered(7, 10.2)
    assert suspicion.seconds == pytest.approx(0.2 + LEAST_LATE), "records 0 to 6 are acknowledged"
    suspicion.answered(8, 10.6)
    assert suspicion.seconds == pytest.approx(0.25 + 4 * 0.1, rel=0.001)


def test_what_was_sent_before_is_not_timed_again() -> None:
    """A path that sends something else has the same unit at the end of its log."""
    suspicion = steady(0.2)
    suspicion.sent(7, 10.0)
    suspicion.answered(8, 10.2)
    suspicion.sent(7, 10.3)
    suspicion.answered(9, 10.3)
    assert suspicion.seconds == pytest.approx(0.2 + LEAST_LATE)


def test_each_acknowledgement_begins_the_time_anew() -> None:
    suspicion = steady(0.2)
    suspicion.asked = 10.0
    assert suspicion.at == pytest.approx(10.0 + suspicion.seconds)
    suspicion.answered(1, 10.1)
    assert suspicion.at == pytest.approx(10.1 + suspicion.seconds)


def test_a_kernel_that_says_nothing_confirms_it() -> None:
    suspicion = steady(0.2)
    suspicion.asked = 10.0
    assert suspicion.confirmed(INFINITY, suspicion.at)
    assert suspicion.confirmed(suspicion.seconds, suspicion.at)


def test_a_kernel_that_has_acknowledged_lately_is_asked_again_when_that_is_old() -> None:
    suspicion = steady(0.2)
    suspicion.asked = 10.0
    assert not suspicion.confirmed(0.1, now := suspicion.at)
    assert suspicion.at == pytest.approx(now + suspicion.seconds - 0.1)
    assert suspicion.confirmed(suspicion.seconds, suspicion.at)


def test_a_kernel_is_not_believed_for_ever() -> None:
    """It may be that of a proxy, with the peer dead behind it."""
    suspicion = steady(0.2)
    suspicion.asked = 10.0
    while not suspicion.confirmed(0.0, now := suspicion.at):
        assert suspicion.at > now
    assert now == pytest.approx(10.0 + KERNEL_ROUNDS * suspicion.seconds)


def test_wrong_doubts_teach_patience_and_right_ones_take_it_back() -> None:
    suspicion = steady(0.2)
    usual = suspicion.seconds
    for factor in (2, 4, 8, 16, MOST_PATIENCE):
        suspicion.begin(1.0)
        suspicion.end(2.0)
        assert suspicion.seconds == pytest.approx(factor * usual)
    for factor in (8, 4, 2, 1, 1):
        suspicion.begin(1.0)
        suspicion.confirm()
        suspicion.end(2.0)
        assert suspicion.seconds == pytest.approx(factor * usual)


def test_calm_minutes_end_the_patience() -> None:
    """Else a path that lives for days would at last be slow to be left for good."""
    suspicion = steady(0.2)
    usual = suspicion.seconds
    for _ in range(4):
        suspicion.begin(1.0)
        suspicion.end(2.0)
    suspicion.calm(1.0 + CALM_SECONDS)
    assert suspicion.seconds == pytest.approx(16 * usual)
    suspicion.calm(now := 2.0 + CALM_SECONDS)
    assert suspicion.seconds == pytest.approx(8 * usual)
    suspicion.begin(now)
    suspicion.end(now + 1.0)
    suspicion.calm(now + CALM_SECONDS)
    assert suspicion.seconds == pytest.approx(16 * usual), "a wrong doubt begins the minute anew"
    for minute in range(1, 8):
        suspicion.calm(now + 1.0 + minute * CALM_SECONDS)
    assert suspicion.seconds == pytest.approx(usual)


def test_what_a_silence_lasts_is_no_answer() -> None:
    suspicion = steady(0.2)
    suspicion.sent(7, 10.0)
    suspicion.begin(10.3)
    suspicion.confirm()
    suspicion.end(20.0)
    suspicion.answered(8, 20.0)
    assert suspicion.seconds == pytest.approx(0.2 + LEAST_LATE)


def test_a_path_that_has_answered_has_its_time_again() -> None:
    suspicion = steady(0.2)
    suspicion.asked = 10.0
    suspicion.begin(10.3)
    suspicion.end(10.4)
    assert suspicion.at == pytest.approx(10.4 + suspicion.seconds)
