"""Slices of one train that contradict each other; how trains open is in test_opening.py."""

from __future__ import annotations

from cryprq_proxy.lane.slices import TCP4
from tests.support.lanes import dropped, forged, part, receive
from tests.vectors.make_lane import lanes, tcp4


def test_slices_that_disagree() -> None:
    _, exit_, _, at_exit = lanes()
    packet = tcp4(bytes(200))
    train = [
        forged(part(TCP4, 0, 3, 100, 40, packet[:40] + bytes(100)), 5),
        forged(part(TCP4, 1, 2, 100, 40, packet[:40] + bytes(100)), 6),
    ]
    receive(exit_, b"".join(train), len(train[0]))
    assert dropped(exit_) == {"disagreement": 2}
    assert at_exit.runs == []
