"""How the program begins and ends, in this process; test_cli.py has real interrupts of real processes."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from cryprq_proxy import __main__ as program
from cryprq_proxy import cli
from cryprq_proxy.commands import completion


class EndedError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end(code: int) -> NoReturn:
        codes.append(code)
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    return codes


def run_with(monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]) -> list[Any]:
    """The handlers of SIGINT while the command runs, and behind it."""
    handlers: list[Any] = []

    def command() -> NoReturn:
        handlers.append(signal.getsignal(signal.SIGINT))
        raise raised

    monkeypatch.setattr(cli, "main", command)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises((SystemExit, EndedError)):
            program.main()
        handlers.append(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    return handlers


def test_a_command_has_the_usual_handler_and_its_end_none(
    monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    assert run_with(monkeypatch, SystemExit) == [signal.default_int_handler, signal.SIG_DFL]
    assert ends == []


def test_an_interrupt_that_nobody_takes_ends_with_the_code_of_a_shell(
    monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    run_with(monkeypatch, KeyboardInterrupt)
    assert ends == [program.INTERRUPTED] == [130]


def test_an_interrupt_in_a_finalizer_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    came = threading.Event()
    monkeypatch.setattr(_thread, "interrupt_main", came.set)
    program._interrupt_again(SimpleNamespace(exc_type=KeyboardInterrupt))
    assert came.wait(30)
    others: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", others.append)
    other = SimpleNamespace(exc_type=ValueError)
    program._interrupt_again(other)
    assert others == [other]


def test_closed_standard_files_are_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([0, 2, 7])
    inherited: list[int] = []
    closed: list[int] = []
    monkeypatch.setattr(os, "open", lambda *_: next(numbers))
    monkeypatch.setattr(os, "set_inheritable", lambda handle, _: inherited.append(handle))
    monkeypatch.setattr(os, "close", closed.append)
    cli._open_closed_files()
    assert (inherited, closed) == ([0, 2], [7])


def test_a_directory_that_is_closed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> NoReturn:
        raise PermissionError

    went: list[str] = []
    monkeypatch.setattr(os, "getcwd", closed)
    monkeypatch.setattr(os, "chdir", went.append)
    cli._leave_closed_directory()
    assert went == ["/"]


@pytest.mark.parametrize("completes", [False, True])
def test_a_command_line_or_a_completion(completes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_open_closed_files", lambda: None)
    monkeypatch.setattr(cli, "run_command", lambda: 7)
    monkeypatch.setattr(completion, "answer", lambda *_: 9)
    if completes:
        monkeypatch.setenv(completion.VARIABLE, "bash_complete")
    else:
        monkeypatch.delenv(completion.VARIABLE, raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == (9 if completes else 7)
    assert os.environ.get(completion.VARIABLE) == ("bash_complete" if completes else None)
