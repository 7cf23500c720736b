"""The rates of frames that no other bound holds."""

from __future__ import annotations

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.control_rates import (
    CONTROL_BURST,
    CONTROL_FRAMES,
    CONTROL_RATE,
    LATE_BURST,
    LATE_RATE,
    ControlRates,
)
from cryprq_proxy.session.wire import Kind

CONTROL = sorted([*CONTROL_FRAMES, wire.ACK])


def control_frames(rates: ControlRates, kind: int, epoch: int, now: float) -> int:
    """How many pass until one is too many."""
    for count in range(CONTROL_BURST + 1):
        try:
            rates.control(kind, epoch, now)
        except PeerError as error:
            assert error.reason is CloseReason.LIMIT
            assert Kind(kind).name in str(error)
            return count
    raise AssertionError("no end")


def late_frames(rates: ControlRates, now: float) -> int:
    for count in range(LATE_BURST + 1):
        try:
            rates.late(wire.DATA, now)
        except PeerError as error:
            assert error.reason is CloseReason.LIMIT
            return count
    raise AssertionError("no end")


def test_the_frames_that_count_whatever_they_say() -> None:
    assert {Kind(kind).name: weight for kind, weight in CONTROL_FRAMES.items()} == {
        **dict.fromkeys(("PING", "PONG", "LANE", "GOAWAY", "ADVERTISE", "STREAMS", "PREFER"), 1),
        **dict.fromkeys(("REKEY", "REKEY_ANSWER", "REKEY_PLEASE", "SWITCH"), 1),
        **dict.fromkeys(("NETWORK", "TAKEN"), 16),
    }


@pytest.mark.parametrize("kind", CONTROL, ids=[Kind(kind).name for kind in CONTROL])
def test_control_frames_have_a_burst_and_a_rate(kind: int) -> None:
    rates = ControlRates()
    weight = CONTROL_FRAMES.get(kind, 1)
    assert control_frames(rates, kind, 0, 100.0) == CONTROL_BURST // weight
    rates = ControlRates()
    for second in range(1_000):
        for _ in range(int(CONTROL_RATE) // weight):
            rates.control(kind, 0, 100.0 + second)
    assert control_frames(rates, kind, 0, 1_100.0) == CONTROL_BURST // weight


def test_all_control_frames_share_one_allowance() -> None:
    rates = ControlRates()
    for _ in range(CONTROL_BURST // 2):
        rates.control(wire.PING, 0, 0.0)
    assert control_frames(rates, wire.NETWORK, 0, 0.0) == CONTROL_BURST // 2 // 16


def test_each_epoch_fills_the_allowance() -> None:
    rates = ControlRates()
    for epoch in range(3):
        for _ in range(CONTROL_BURST):
            rates.control(wire.LANE, epoch, 0.0)
    assert control_frames(rates, wire.PING, 2, 0.0) == 0


def test_late_frames_have_a_burst_and_a_rate() -> None:
    rates = ControlRates()
    assert late_frames(rates, 100.0) == LATE_BURST
    rates = ControlRates()
    for _ in range(LATE_BURST):
        rates.late(wire.RESET, 100.0)
    assert late_frames(rates, 100.5) == LATE_RATE / 2


def test_what_a_lost_path_carried_may_come_again() -> None:
    rates = ControlRates()
    for _ in range(CONTROL_BURST):
        rates.control(wire.PING, 0, 0.0)
    for _ in range(LATE_BURST):
        rates.late(wire.DATA, 0.0)
    rates.path_lost()
    assert control_frames(rates, wire.PING, 0, 0.0) == CONTROL_BURST
    assert late_frames(rates, 0.0) == LATE_BURST
