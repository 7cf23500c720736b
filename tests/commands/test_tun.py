"""What a start of system-wide mode asks before it ends connections from outside."""

from __future__ import annotations

import os
import pty

import click
import pytest

from cryprq_proxy.commands import tun
from cryprq_proxy.commands.tun import ask_before_cutting
from cryprq_proxy.config.tun import TunTable
from cryprq_proxy.errors import CryprqError

ENDS = ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions; each is answered with a no."""
    questions: list[str] = []

    def confirm(text: str, *, err: bool) -> bool:
        assert err
        questions.append(text)
        return False

    monkeypatch.setattr("cryprq_proxy.service.system_wide.cut_by_start", lambda table: ENDS)
    monkeypatch.setattr(click, "confirm", confirm)
    return questions


def test_a_no_ends_the_start(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "_at_terminal", lambda: True)
    with pytest.raises(CryprqError, match="nothing was changed"):
        ask_before_cutting(TunTable())
    assert "203.0.113.1, 203.0.113.2, 203.0.113.3 and 2 more" in asked[0]


def test_without_a_terminal_it_is_one_line(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tun, "_at_terminal", lambda: False)
    ask_before_cutting(TunTable())
    assert not asked
    assert len(caplog.records) == 1


def test_a_terminal_in_whose_foreground_we_are_not_cannot_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = pty.openpty()
    try:
        monkeypatch.setattr(tun, "_STDIN", ends[1])
        assert not tun._at_terminal()
    finally:
        for end in ends:
            os.close(end)
