"""Lifetimes go on while the machine sleeps."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator

import pytest

from cryprq_proxy.base import clock

NUMBERS = {"CLOCK_BOOTTIME": 107, "CLOCK_MONOTONIC_RAW": 104, "CLOCK_MONOTONIC": 101}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The clocks that were read, each by its number."""
    read: list[int] = []

    def gettime(number: int) -> float:
        read.append(number)
        return 5.5

    for name, number in NUMBERS.items():
        monkeypatch.setattr(time, name, number, raising=False)
    monkeypatch.setattr(time, "clock_gettime", gettime)
    yield read
    monkeypatch.undo()
    importlib.reload(clock)


@pytest.mark.parametrize(
    ("platform", "name"),
    [("linux", "CLOCK_BOOTTIME"), ("darwin", "CLOCK_MONOTONIC_RAW"), ("freebsd14", "CLOCK_MONOTONIC")],
)
def test_which_clock_counts_the_sleep(
    platform: str, name: str, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS CLOCK_MONOTONIC_RAW is mach_continuous_time; on Linux it stands still."""
    monkeypatch.setattr(sys, "platform", platform)
    assert importlib.reload(clock).clock() == 5.5
    assert asked == [NUMBERS[name]]


def test_it_runs() -> None:
    before = clock.clock()
    assert before <= clock.clock() < before + 60


def test_the_filters_of_the_systems_differ_in_a_sleep(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers of Linux's kernel run by time.monotonic; the process that closes on macOS runs by this clock."""
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    for platform, shown in (("linux", 7.5), ("darwin", 5.5)):
        monkeypatch.setattr(sys, "platform", platform)
        assert importlib.reload(clock).filter_clock() == shown
