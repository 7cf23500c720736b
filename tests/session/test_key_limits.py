"""How much one key may be used."""

from __future__ import annotations

import pytest

from cryprq_proxy.session.key_limits import RotationLimits

LIMITS = RotationLimits(interval=60.0, records=100, bytes=10_000, datagrams=1_000)


class Used:
    """Keys that have sealed so many records and bytes."""

    since = joined = 0.0

    def __init__(self, records: int, size: int) -> None:
        self._records = records
        self._size = size

    def used(self, records: int, size: int, /) -> bool:
        return self._records >= records or self._size >= size

    def settled(self, epoch: int, /) -> bool:
        return True


@pytest.mark.parametrize(
    ("records", "size", "datagrams", "times"),
    [
        (99, 9_999, 999, 0),
        (100, 0, 0, 1),
        (0, 10_000, 0, 1),
        (0, 0, 1_000, 1),
        (199, 19_999, 1_999, 1),
        (200, 0, 0, 2),
        (0, 20_000, 0, 2),
        (0, 0, 2_000, 2),
        (1_000, 0, 0, 2),
    ],
)
def test_how_many_times_keys_are_used_up(records: int, size: int, datagrams: int, times: int) -> None:
    assert LIMITS.used(Used(records, size), datagrams) == times


def test_half_of_what_is_left_to_a_key_is_for_the_rotation() -> None:
    assert not LIMITS.presses(149, 14_999) and not LIMITS.lane_presses(1_499)
    assert LIMITS.presses(150, 0) and LIMITS.presses(0, 15_000) and LIMITS.lane_presses(1_500)
