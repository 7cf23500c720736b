"""By which part a queue falls while a sender holds back."""

from __future__ import annotations

from math import inf

import pytest

from cryprq_proxy.recovery.drain import Drain


def test_before_the_first_round_nothing_fell() -> None:
    drain = Drain()
    assert drain.fell == 0.0
    drain.end_round(inf)
    assert drain.fell == 0.0


def test_it_is_told_by_the_longest_and_the_last_round() -> None:
    drain = Drain()
    for least in (0.09, 0.1, 0.08):
        drain.end_round(least)
    assert drain.fell == pytest.approx(0.2)
    # A round without a round trip says nothing.
    drain.end_round(inf)
    assert drain.fell == pytest.approx(0.2)


def test_a_queue_that_grows_has_not_fallen() -> None:
    drain = Drain()
    for least in (0.08, 0.09):
        drain.end_round(least)
    assert drain.fell == 0.0


def test_each_phase_is_judged_for_itself() -> None:
    drain = Drain()
    drain.end_round(0.1)
    drain.begin()
    drain.end_round(0.05)
    assert drain.fell == 0.0
