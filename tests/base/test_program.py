"""base/program.py: what a person is told to run is found by the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cryprq_proxy.base.program import called, to_run, to_run_as_root
from tests.support.logged import environment_in


@pytest.fixture
def program(tmp_path: Path) -> Path:
    directory = tmp_path / "environment" / "bin"
    directory.mkdir(parents=True)
    file = directory / "cryprq-proxy"
    file.touch(0o755)
    return file


def test_found_by_the_path_it_has_its_plain_name(program: Path) -> None:
    assert called(str(program), [], f"/usr/bin:{program.parent}") == "cryprq-proxy"


def test_a_link_in_the_path_is_it_too(program: Path, tmp_path: Path) -> None:
    (tmp_path / "cryprq-proxy").symlink_to(program)
    assert called(str(program), [], str(tmp_path)) == "cryprq-proxy"


def test_elsewhere_it_is_named_as_it_was_called(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.parents[2])
    assert called("environment/bin/cryprq-proxy", [], "/nowhere") == "environment/bin/cryprq-proxy"


def test_another_one_of_the_name_in_the_path_is_not_it(program: Path, tmp_path: Path) -> None:
    (tmp_path / "cryprq-proxy").touch(0o755)
    assert called(str(program), [], str(tmp_path)) == str(program)


def test_a_file_that_is_gone_is_not_it_either(program: Path) -> None:
    assert called("/nowhere/cryprq-proxy", [], str(program.parent)) == "/nowhere/cryprq-proxy"


def test_a_shell_reads_it_as_one_word() -> None:
    assert called("/my own/cryprq-proxy", [], "/nowhere") == "'/my own/cryprq-proxy'"


def test_as_a_module_the_interpreter_is_named() -> None:
    assert called("/x/cryprq_proxy/__main__.py", ["python3", "-m"], "") == "python3 -m cryprq_proxy"


def test_inside_of_another_program_it_has_its_plain_name() -> None:
    assert to_run("id") == "cryprq-proxy id"
    assert to_run_as_root("cleanup") == "sudo cryprq-proxy cleanup"


@pytest.mark.process
def test_a_module_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cryprq_proxy", "peers"]
    done = subprocess.run(command, env=environment_in(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == f"no peers; invite one with: {sys.executable} -m cryprq_proxy invite NAME\n"
