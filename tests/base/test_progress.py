"""The bar of what takes long: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from cryprq_proxy.base.progress import bar, unseen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_nothing_of_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bar("reading [red]lists") as report:
        report(0, 0)
        report(500_000, 1_000_000)
    shown = terminal.getvalue()
    assert "reading [red]lists" in shown
    assert "0.5/1.0 MB" in shown
    assert shown.rstrip("\n").endswith("\x1b[2K")  # the last thing is that its line is erased


@pytest.mark.parametrize("what", [bar, unseen])
def test_nothing_where_there_is_no_terminal(what: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with (bar if what is bar else unseen)("reading lists") as report:
        report(1, 2)
    assert pipe.getvalue() == ""
