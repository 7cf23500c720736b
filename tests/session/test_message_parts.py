"""The parts of a message of the rotation come in any order, and twice."""

from __future__ import annotations

from itertools import permutations

import pytest

from cryprq_proxy.errors import CarrierError, CloseReason, PeerError
from cryprq_proxy.session.message_parts import MessageParts
from cryprq_proxy.session.wire import MAX_PART, PARTS

MESSAGE = [b"one ", b"two ", b"three"]


@pytest.mark.parametrize("order", list(permutations(range(PARTS))))
def test_in_any_order_with_a_copy_of_each(order: tuple[int, ...]) -> None:
    parts = MessageParts()
    for part in order[:-1]:
        assert parts.add(1, part, MESSAGE[part]) is None
        assert parts.add(1, part, MESSAGE[part]) is None
    assert parts.add(1, order[-1], MESSAGE[order[-1]]) == b"one two three"


@pytest.mark.parametrize("whole", [False, True])
def test_a_part_that_differs_from_its_first_copy_is_of_somebody_else(whole: bool) -> None:
    parts = MessageParts()
    for part in range(PARTS if whole else 1):
        parts.add(1, part, MESSAGE[part])
    with pytest.raises(PeerError) as caught:
        parts.add(1, 0, b"two ")
    assert caught.value.reason is CloseReason.REKEY and not isinstance(caught.value, CarrierError)


def test_a_later_message_takes_the_place_of_an_earlier_one() -> None:
    parts = MessageParts()
    for part in range(2):
        parts.add(1, part, bytes(MAX_PART))
    for part in range(2):
        assert parts.add(2, part, MESSAGE[part]) is None
    assert parts.add(2, 2, MESSAGE[2]) == b"one two three"


def test_one_message_is_held_at_a_time() -> None:
    parts = MessageParts()
    for epoch in range(1_000):
        for part in range(PARTS):
            parts.add(epoch, part, bytes(MAX_PART))
    assert sum(map(len, parts._parts.values())) == PARTS * MAX_PART
