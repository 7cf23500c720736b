"""Whether something keeps the clock, as the kernel says."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cryprq_proxy.base.kept_clock import clock_is_kept


@pytest.mark.parametrize(("state", "kept"), [(0, True), (3, True), (5, False), (-1, None)])
def test_the_state_tells(state: int, kept: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def adjtimex(buffer: Any) -> int:
        asked.append(buffer.raw)
        return state

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(adjtimex=adjtimex))
    assert clock_is_kept() is kept
    assert asked == [bytes(512)], "it asks, and changes nothing"


def test_another_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert clock_is_kept() is None


def test_a_c_library_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert clock_is_kept() is None
