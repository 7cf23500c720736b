"""Completion in real shells: the script that is printed, loaded there, and what a Tab then gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cryprq_proxy.cli import cli, run_command
from cryprq_proxy.commands.completion import SHELLS
from tests.support.logged import ROOT
from tests.support.processes import call


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian: apt-get install {name}")
    return found


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the scripts, and the program by its name first in PATH. It may take its time to answer."""
    program = tmp_path / "cryprq-proxy"
    start = "from cryprq_proxy import cli; cli.completion.ANSWER_SECONDS = 60.0; cli.main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{start}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "cryprq").mkdir()
    (tmp_path / "cryprq" / "client.toml").write_text(
        f'[[exit]]\nname = "home"\npeer = "cryprq://{"a" * 52}@exit.example"\n'
    )
    return tmp_path


def write_script(directory: Path, name: str) -> Path:
    made = call("completion", name)
    assert (made.returncode, made.stderr) == (0, "")
    script = directory / f"script.{name}"
    script.write_text(made.stdout)
    return script


def run(*arguments: str, stdin: str = "") -> list[str]:
    done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


_TAB = """
source "$1"
complete -p cryprq-proxy
COMP_WORDS=({words}) COMP_CWORD={at} COMPREPLY=()
_cryprq_proxy_completion cryprq-proxy
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "at", "there", "not_there"),
    [
        ("cryprq-proxy st", 1, "status", "exit"),
        ("cryprq-proxy status --", 2, "--json", "--peer"),
        ("cryprq-proxy --", 1, "--peer", "--hold"),
        ("cryprq-proxy completion ''", 2, "zsh", "status"),
        ("cryprq-proxy switch h", 2, "home", "auto"),
    ],
)
def test_bash(scripts: Path, words: str, at: int, there: str, not_there: str) -> None:
    script = write_script(scripts, "bash")
    said = run(
        shell("bash"), "--norc", "--noprofile", "-c", _TAB.format(words=words, at=at), "bash", str(script)
    )
    assert said[0] == "complete -o nosort -F _cryprq_proxy_completion cryprq-proxy"
    assert there in said[1:]
    assert not_there not in said[1:]


@pytest.mark.process
def test_zsh(scripts: Path) -> None:
    """The script registers its function, and asks the program the way it expects it."""
    script = write_script(scripts, "zsh")
    (registered,) = run(
        shell("zsh"),
        "-f",
        "-c",
        'autoload -Uz compinit; compinit -u -D; source "$1"; print -r -- $_comps[cryprq-proxy]',
        "zsh",
        str(script),
    )
    assert registered == "_cryprq_proxy_completion"
    said = run(
        "env",
        "COMP_WORDS=cryprq-proxy st",
        "COMP_CWORD=1",
        "_CRYPRQ_PROXY_COMPLETE=zsh_complete",
        "cryprq-proxy",
    )
    assert said[:2] == ["plain", "status"]


@pytest.mark.process
def test_fish(scripts: Path) -> None:
    script = write_script(scripts, "fish")
    said = run(
        shell("fish"), "--no-config", "-c", f"source {script}; complete --do-complete 'cryprq-proxy st'"
    )
    assert "status" in [line.split("\t")[0] for line in said]


@pytest.mark.parametrize("name", SHELLS)
def test_a_script_names_the_program_and_nothing_of_this_machine(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["completion", name]) == 0
    out = capsys.readouterr().out
    assert "cryprq-proxy" in out and "_CRYPRQ_PROXY_COMPLETE" in out
    assert str(ROOT) not in out


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["completion", "tcsh"]) == 2
    assert "cryprq-proxy: " in capsys.readouterr().err


def test_every_command_says_what_it_is_for() -> None:
    """Shells that show a help text beside each word get one."""
    assert [name for name, command in cli.commands.items() if not command.get_short_help_str()] == []
