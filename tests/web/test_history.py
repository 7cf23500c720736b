"""The throughput of the last ten minutes: rates from counters, a bound, and clocks that are set."""

from __future__ import annotations

import asyncio

import pytest

from cryprq_proxy.status import Traffic
from cryprq_proxy.web import history
from cryprq_proxy.web.history import SAMPLES, SECONDS, History, Throughput


class Meter:
    def __init__(self) -> None:
        self.now = 1_000.0
        self.sent = self.received = 0
        self.history = History(self.traffic, lambda: self.now)

    def traffic(self) -> Traffic:
        return Traffic(sent=self.sent, received=self.received)

    def pass_by(self, seconds: float, sent: int, received: int) -> None:
        self.now += seconds
        self.sent += sent
        self.received += received
        self.history.look()


def test_rates_are_those_between_two_looks() -> None:
    meter = Meter()
    meter.pass_by(0, 500, 500)  # before the first look: nobody knows in which time
    assert not meter.history.samples
    meter.pass_by(5, 1_000, 20_000)
    meter.pass_by(10, 0, 50)
    assert list(meter.history.samples) == [Throughput(1_005.0, 200, 4_000), Throughput(1_015.0, 0, 5)]


def test_ten_minutes_are_kept_and_no_more() -> None:
    meter = Meter()
    for number in range(1_000):
        meter.pass_by(SECONDS, number, 0)
    assert len(meter.history.samples) == SAMPLES == 600 / SECONDS
    assert meter.history.samples[-1].at - meter.history.samples[0].at < 600


def test_a_clock_that_is_set_back_begins_anew() -> None:
    meter = Meter()
    meter.history.look()
    meter.pass_by(5, 1, 1)
    meter.pass_by(-3_600, 5, 5)
    meter.pass_by(0, 5, 5)
    assert not meter.history.samples
    meter.pass_by(5, 50, 0)
    assert [sample.up for sample in meter.history.samples] == [10]


async def test_it_looks_by_itself_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SECONDS", 0.001)
    meter = Meter()
    looked = asyncio.Event()

    def clock() -> float:
        meter.now += 1
        if meter.now > 1_003:
            looked.set()
        return meter.now

    kept = History(meter.traffic, clock)
    kept.start()
    async with asyncio.timeout(20):
        await looked.wait()
    kept.stop()
    await asyncio.sleep(0)
    after = len(kept.samples)
    assert after >= 2
    await asyncio.sleep(0.01)
    assert len(kept.samples) == after
