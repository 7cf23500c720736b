"""The length of a path: what is believed, and what is a queue."""

from __future__ import annotations

import pytest

from cryprq_proxy.session.path_length import LITTLE, LONGER, PathLength

RATE = 10_000_000
UNKNOWN = 0.1


class Measured:
    """A path on which bytes come at RATE, and that is measured each second."""

    def __init__(self, *samples: float) -> None:
        self.path = PathLength(UNKNOWN, 0, 0.0)
        self.now = 0.0
        self.received = 0
        for sample in samples:
            self.then(sample)

    def then(self, sample: float, credit: int = 0, rate: int = RATE) -> float:
        self.now += 1.0
        self.received += rate
        self.path.measured(sample, self.received, credit, self.now)
        return self.path.round_trip


def test_the_first_measurement_is_believed_and_each_shorter_one() -> None:
    on = Measured()
    assert on.path.round_trip == UNKNOWN
    assert [on.then(sample) for sample in (0.3, 0.35, 0.2, 0.39, 0.25)] == [0.3, 0.3, 0.2, 0.2, 0.2]


def test_a_longer_path_is_believed_after_some_measurements_in_a_row() -> None:
    on = Measured(0.001)
    assert [on.then(0.3 + number / 100) for number in range(LONGER)] == [0.001] * (LONGER - 1) + [0.3]


def test_one_short_measurement_among_them_is_the_path() -> None:
    on = Measured(0.1)
    for _ in range(5):
        assert {on.then(0.3) for _ in range(LONGER - 1)} == {0.1}
        assert on.then(0.15) == 0.1


@pytest.mark.parametrize(("credit", "believed"), [(RATE * 3 // 10 + 1, False), (RATE * 3 // 10 - 1, True)])
def test_a_queue_that_credit_can_have_made_is_no_longer_path(credit: int, believed: bool) -> None:
    on = Measured(0.1)
    trips = [on.then(0.3, credit) for _ in range(4 * LONGER)]
    assert (trips[-1] == 0.3) is believed


def test_what_is_measured_while_nothing_comes_holds_no_queue() -> None:
    on = Measured(0.1)
    on.then(0.3, 1 << 30, LITTLE - 1)
    assert [on.then(0.5, 1 << 30) for _ in range(LONGER - 1)] == [0.1] * (LONGER - 2) + [0.3]


def test_a_line_that_became_slower_is_taken_for_a_long_one_once() -> None:
    on = Measured(0.1)
    slow, credit = RATE // 10, RATE // 10
    for _ in range(LONGER):
        on.then(1.0, credit, slow)
    assert on.path.round_trip == 1.0
    for _ in range(4 * LONGER):
        on.then(4.0, 4 * slow, slow)
    assert on.path.round_trip == 1.0
