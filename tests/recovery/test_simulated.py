"""Recovery, BBR and pacer over simulated lines: what they promise, with wide margins.

The clock is virtual and chance has a seed: each run gives the same figures. A line has 200 Mbit/s, a round trip of
50 ms and a buffer of one bandwidth-delay product unless something else is said.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from cryprq_proxy.recovery.bbr import Bbr, Phase
from cryprq_proxy.recovery.congestion import Sample
from tests.support.simulated_transfer import DATAGRAM, Stage, Transfer

DATAGRAMS = 1443 * 8 / 1e6
"""Mbit of one."""


def dark(stage: Stage, seconds: float) -> None:
    """Nothing passes in either direction."""
    stage.out.dark_until = stage.back.dark_until = stage.clock.now + seconds


def bulk(stage: Stage) -> Transfer:
    """A transfer that always has something to send."""
    transfer = stage.transfer()
    transfer.offer(inf)
    return transfer


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.03, 0.1])
def test_loss_costs_what_is_lost(loss: float) -> None:
    stage = Stage(loss=loss)
    measured = stage.measure(bulk(stage), 6)
    assert measured.rate(2) >= 0.85 * 200 * (1 - loss)
    assert measured.rates[0] >= 100


@pytest.mark.parametrize("buffer", [0.1, 0.25, 1.0, 4.0, 8.0])
def test_buffers(buffer: float) -> None:
    stage = Stage(buffer=buffer)
    measured = stage.measure(bulk(stage), 6)
    assert measured.rate(2) >= 0.85 * 200
    # A queue of STARTUP is gone soon, and none stands afterwards.
    assert measured.wait(0.5, 1.0) <= 0.01
    assert measured.wait(0.99, 2.0) <= 0.05
    assert stage.out.full <= 0.08 * stage.out.offered


@pytest.mark.parametrize(
    ("rate", "trip", "buffer"),
    [(1.0, 0.05, 4.0), (2.0, 0.3, 1.0), (20.0, 0.02, 0.1), (20.0, 0.02, 1.0), (1000.0, 0.002, 1.0)],
)
def test_slow_and_fast_lines(rate: float, trip: float, buffer: float) -> None:
    stage = Stage(rate, trip, buffer)
    measured = stage.measure(bulk(stage), 8)
    assert measured.rate(4) >= 0.85 * rate
    # Or what four datagrams wait for.
    assert measured.wait(0.5, 4.0) <= max(0.01, 4 * DATAGRAMS / rate)


@pytest.mark.parametrize("loss", [0.0, 0.001])
def test_a_long_fast_line(loss: float) -> None:
    stage = Stage(500, 0.15, loss=loss)
    assert stage.measure(bulk(stage), 10).rate() >= 320


@pytest.mark.parametrize(
    "traits", [{"ack_loss": 0.3}, {"reorder": 0.02}, {"duplicate": 0.02}, {"loss": 0.02, "ack_loss": 0.2}]
)
def test_other_faults_of_a_line(traits: dict[str, Any]) -> None:
    stage = Stage(**traits)
    assert stage.measure(bulk(stage), 6).rate(2) >= 0.85 * 200


# --- lines that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("buffer", "rate"), [(1.0, 100.0), (4.0, 100.0), (4.0, 20.0), (1.0, 400.0)])
def test_another_rate_is_followed_within_three_seconds(buffer: float, rate: float) -> None:
    stage = Stage(buffer=buffer)
    transfer = bulk(stage)
    stage.measure(transfer, 4)
    stage.out.change(stage.clock.now, rate=rate * 1e6 / 8)
    stage.measure(transfer, 3)
    measured = stage.measure(transfer, 3)
    assert measured.rate() >= 0.85 * rate
    assert measured.wait(0.5) <= 0.01


@pytest.mark.parametrize("trip", [0.01, 0.15])
def test_another_round_trip_is_followed(trip: float) -> None:
    stage = Stage()
    transfer = bulk(stage)
    stage.measure(transfer, 4)
    stage.out.change(stage.clock.now, delay=trip - 0.025)
    stage.measure(transfer, 4)
    assert stage.measure(transfer, 3).rate() >= 0.85 * 200


def test_after_a_black_out_it_sends_at_once() -> None:
    stage = Stage()
    transfer = bulk(stage)
    stage.measure(transfer, 4)
    dark(stage, 3.0)
    before = transfer.arrived
    stage.clock.run(3.0)
    # What was on the line came in still.
    assert transfer.arrived - before < 25_000_000 * 0.05
    before = transfer.arrived
    stage.clock.run(0.6)
    assert transfer.arrived > before
    assert stage.measure(transfer, 3).rate(1) >= 0.85 * 200


@pytest.mark.parametrize("dark_for", [0.05, 0.2, 0.5, 1.0, 10.0])
def test_black_outs_of_any_length_are_no_congestion(dark_for: float) -> None:
    stage = Stage(loss=0.01)
    transfer = bulk(stage)
    stage.measure(transfer, 3)
    dark(stage, dark_for)
    stage.clock.run(dark_for + 0.6)
    assert stage.measure(transfer, 2).rate() >= 0.8 * 200


def test_it_never_stalls() -> None:
    """Everything at once, over and over: it goes on each time."""
    stage = Stage(loss=0.02, ack_loss=0.1, reorder=0.02, duplicate=0.02)
    transfer = bulk(stage)
    for number in range(12):
        former = stage.out.traits.rate
        stage.out.change(
            stage.clock.now, rate=(5, 200, 40)[number % 3] * 1e6 / 8, delay=(0.01, 0.06)[number % 2]
        )
        dark(stage, (0.0, 0.3, 1.2)[number % 3])
        stage.clock.run(2.0)
        before = transfer.arrived
        stage.clock.run(1.0)
        assert transfer.arrived - before >= 0.2 * min(former, stage.out.traits.rate), number


# --- senders that pause ----------------------------------------------------------------------------------------------


def finished(transfer: Transfer, size: int) -> float:
    """Seconds until `size` bytes are acknowledged."""
    begin, target = transfer.clock.now, transfer.arrived + size
    transfer.offer(size)
    assert transfer.clock.run(60.0, lambda: transfer.arrived >= target)
    return transfer.clock.now - begin


def test_first_requests_are_not_held_up() -> None:
    """A round trip for the first window, and for each small request; a page of 20 kB objects needs no more."""
    stage = Stage()
    transfer = stage.transfer()
    assert finished(transfer, 32 * DATAGRAM) <= 0.06
    for _ in range(20):
        assert finished(transfer, 600) <= 0.052
        stage.clock.run(0.05)
    for _ in range(5):
        assert finished(transfer, 20_000) <= 0.07
    assert finished(transfer, 2_000_000) <= 0.6


def test_a_burst_after_a_rest_goes_at_the_bandwidth() -> None:
    stage = Stage()
    transfer = bulk(stage)
    stage.measure(transfer, 3)
    transfer.stop()
    for rest in (0.3, 3.0, 30.0):
        stage.clock.run(rest)
        # 80 ms at the rate of the line, and a round trip.
        assert finished(transfer, 2_000_000) <= 0.2
        assert stage.out.wait(stage.clock.now) <= 0.01


def test_a_sender_with_little_to_say_keeps_its_bandwidth() -> None:
    stage = Stage()
    transfer = bulk(stage)
    stage.measure(transfer, 3)
    transfer.stop()
    stage.clock.run(1.0)
    for _ in range(200):
        transfer.offer(1_000)
        stage.clock.run(0.05)
    assert finished(transfer, 2_000_000) <= 0.2


# --- with others -----------------------------------------------------------------------------------------------------


def test_beside_reno_neither_side_falls_below_a_quarter() -> None:
    stage = Stage()
    transfer, reno = bulk(stage), stage.reno()
    stage.at(0.5, reno.start)
    stage.measure(transfer, 5)
    before = reno.arrived
    ours = stage.measure(transfer, 20).rate()
    theirs = (reno.arrived - before) * 8 / 20e6
    assert ours + theirs >= 0.85 * 200
    assert min(ours, theirs) >= 50


def test_beside_a_flow_that_heeds_no_loss_it_keeps_a_quarter() -> None:
    stage = Stage()
    transfer, other = bulk(stage), stage.transfer(_Heedless)
    stage.at(0.4, lambda: other.offer(inf))
    stage.measure(transfer, 4)
    before = other.arrived
    ours = stage.measure(transfer, 18).rate()
    theirs = (other.arrived - before) * 8 / 18e6
    assert ours + theirs >= 0.85 * 200
    assert min(ours, theirs) >= 55


class _Heedless(Bbr):
    """The first version of BBR, as kernels have it: DOWN ends after a round trip whatever the queue is, and CRUISE
    keeps a queue that once stood."""

    __slots__ = ()

    def _enter(self, phase: Phase, now: float) -> None:
        super()._enter(phase, now)
        self._gain = {Phase.CRUISE: 1.0, Phase.STARTUP: 2.89, Phase.UP: 1.25}.get(phase, self._gain)

    def _step(self, sample: Sample, now: float) -> None:
        if self.phase is Phase.DOWN and now - self._since >= self.least:
            self._enter(Phase.CRUISE, now)
        super()._step(sample, now)

    def _grows(self) -> bool:
        return False

    def _undrained(self, now: float) -> None:
        pass

    def _yield(self) -> None:
        pass


@pytest.mark.parametrize("buffer", [1.0, 4.0])
def test_two_senders_share_a_line(buffer: float) -> None:
    stage = Stage(buffer=buffer)
    first, second = bulk(stage), stage.transfer()
    stage.at(2, lambda: second.offer(inf))
    stage.measure(first, 6)
    before = second.arrived
    measured = stage.measure(first, 14)
    theirs = (second.arrived - before) * 8 / 14e6
    assert 1 / 2 <= theirs / measured.rate() <= 2
    assert measured.wait(0.5) <= 0.03


def test_marks_keep_the_queue_below_them() -> None:
    stage = Stage(buffer=4.0, marking=0.1)
    measured = stage.measure(bulk(stage), 6)
    assert measured.rate(2) >= 0.7 * 200
    assert measured.wait(0.95, 1.0) <= 0.02


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_the_window_is_not_waited_for_in_a_loop() -> None:
    """A sender whose window has room for less than a datagram waits for an acknowledgement, not for its timer."""
    stage = Stage(20, 0.05)
    transfer = stage.transfer(_Narrow)
    transfer.offer(inf)
    stage.measure(transfer, 2)
    assert transfer.arrived > 100 * DATAGRAM
    assert transfer.pumps <= 4 * transfer.trains


class _Narrow(Bbr):
    """Its window is ten datagrams and a half."""

    __slots__ = ()

    def _set(self) -> None:
        super()._set()
        self.window = 10 * DATAGRAM + 700
