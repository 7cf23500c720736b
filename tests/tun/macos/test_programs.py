"""How the programs of macOS are run, with scripts in their places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tun.macos import programs
from tun.macos.programs import Command, ProgramAnswer, ProgramError, ask, change, complaint, run


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in the place of `route`."""
    file = tmp_path / "route"
    monkeypatch.setattr(programs, "PATHS", {"route": str(file)})
    return file


def write(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.mark.process
def test_input_output_and_environment(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    write(script, 'cat; echo "$* $LC_ALL $HOME"; echo bad >&2; exit 3')
    assert run(Command(("route", "add", "x y"), "in\n")) == ProgramAnswer("in\nadd x y C \n", "bad\n", 3)


@pytest.mark.process
def test_a_program_that_does_not_end_is_left(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SECONDS", 0.05)
    write(script, "exec sleep 60")
    with pytest.raises(ProgramError, match=r"^`route monitor` does not end within 0\.05 s$"):
        run(Command(("route", "monitor")))


@pytest.mark.process
def test_what_is_too_much_is_not_read(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_OUTPUT", 1 << 20)
    write(script, "head -c 1048577 /dev/zero")
    with pytest.raises(ProgramError, match="says more than 1 MiB"):
        run(Command(("route", "get")))
    write(script, "head -c 1048576 /dev/zero")
    assert len(run(Command(("route", "get"))).out) == 1 << 20


@pytest.mark.process
def test_a_program_that_is_missing(script: Path) -> None:
    with pytest.raises(ProgramError, match=r"^route cannot be run: no such file or directory$"):
        run(Command(("route", "get")))


def test_a_failure_is_one_sentence() -> None:
    command = Command(("route", "add", "1"))
    for answer, said in (
        (ProgramAnswer("", "route: bad address: 1\nusage: ...\n", 64), "route: bad address: 1"),
        (ProgramAnswer("\n  said here\n", "", 1), "said here"),
        (ProgramAnswer("", "", 9), "exit code 9"),
    ):
        assert complaint(command, answer) == f"`route add 1` failed: {said}"
        with pytest.raises(ProgramError, match="failed"):
            change(lambda _, answer=answer: answer, command)  # type: ignore[misc]
        with pytest.raises(ProgramError, match="failed"):
            ask(lambda _, answer=answer: answer, "route", "get")  # type: ignore[misc]
    assert ask(lambda command: ProgramAnswer(str(command.changes)), "route") == "False"


def test_the_paths_are_whole() -> None:
    assert all(os.path.isabs(path) and path.endswith(f"/{name}") for name, path in programs.PATHS.items())
