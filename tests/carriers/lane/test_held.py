"""Packets that wait for room beside streams: carriers/lane/held.py."""

from __future__ import annotations

from cryprq_proxy.carriers.lane.held import HELD_SECONDS, ITEM_COST, MAX_HELD, HeldPackets
from cryprq_proxy.lane.slices import HEADROOM, Shape

WHOLE = Shape(0, 0, 0)


def test_in_their_order_with_room_in_front_of_packets() -> None:
    held = HeldPackets()
    data = bytearray(b"packet")
    held.add(memoryview(data), WHOLE, 0.0)
    held.add(b"message", None, 0.0)
    data[:] = bytes(6)
    first, second = held.take(0.0), held.take(0.0)
    assert first is not None and second is not None
    assert (bytes(first[0][HEADROOM:]), first[1]) == (b"packet", WHOLE)
    assert (bytes(second[0]), second[1]) == (b"message", None)
    assert held.take(0.0) is None and not held and held.dropped == 0


def test_what_waits_is_bounded_and_the_oldest_is_dropped() -> None:
    held = HeldPackets()
    most = MAX_HELD // (ITEM_COST + 1_000)
    for number in range(3 * most):
        held.add(number.to_bytes(2).ljust(1_000), None, 0.0)
    assert held.dropped == 2 * most
    item = held.take(0.0)
    assert item is not None and int.from_bytes(item[0][:2]) == 2 * most
    for _ in range(3 * MAX_HELD // ITEM_COST):
        held.add(b"", None, 0.0)
    assert len(held._items) == MAX_HELD // ITEM_COST


def test_nothing_waits_for_long() -> None:
    held = HeldPackets()
    for at in (0.0, 0.5 * HELD_SECONDS, 2.0):
        held.add(b"%d" % (10 * at), None, at)
    assert held.take(2.0 + HELD_SECONDS / 2) == (b"20", None)
    assert held.dropped == 2


def test_nothing_is_left_when_the_lane_is_down() -> None:
    held = HeldPackets()
    held.add(b"x", None, 0.0)
    held.clear()
    assert not held and held.take(0.0) is None
    assert (held.dropped, held._bytes) == (1, 0)
