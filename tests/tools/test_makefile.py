"""The Makefile, also for the make of macOS, which is GNU make 3.81."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pages import ROOT

MAKE = (ROOT / "Makefile").read_text("utf-8")
VERBS = re.findall(r"^([a-z-]+):[^#\n]*## (.*)", MAKE, re.MULTILINE)
NEWER = (
    r"^\w+ *!=",
    r"^\w+ *::+=",
    r"^define \w+ *[:+?]?=",
    r"^(undefine|private|load) ",
    r"^\.(ONESHELL|RECIPEPREFIX|NOTINTERMEDIATE|WAIT)",
    r"^[^\t#]* &:",
    r"\$\((file|guile|let|intcmp) ",
)
"""What came with 3.82 and later."""

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As a person calls it; programs in `path` come before those of the machine."""
    more = {} if path is None else {"PATH": f"{path}:{os.environ['PATH']}"}
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=outer | more, capture_output=True, text=True, timeout=60, check=False
    )


def test_it_has_nothing_that_make_3_81_does_not_understand() -> None:
    for newer in NEWER:
        assert not re.search(newer, MAKE, re.MULTILINE), newer
    flags = MAKE.replace("$(if $(filter output-sync,$(.FEATURES)),-j2 --output-sync=target)", "")
    assert "--output-sync" not in flags


@needs_make
@pytest.mark.process
def test_all_verbs_are_listed() -> None:
    told = make().stdout.splitlines()
    assert len(VERBS) > 15
    assert [line.split(maxsplit=2)[1:] for line in told] == [list(verb) for verb in VERBS]
    assert len({line.index(words) for line, (_, words) in zip(told, VERBS, strict=True)}) == 1, "one column"


@needs_make
@pytest.mark.process
def test_a_check_needs_no_flag_that_an_old_make_lacks(tmp_path: Path) -> None:
    def told(*words: str) -> str:
        done = make("-n", "check", f"VENV={tmp_path}/venv", *words)
        assert done.returncode == 0 and "mypy" in done.stdout and "pytest" in done.stdout
        return done.stdout

    assert "output-sync" in told() and "output-sync" not in told(".FEATURES=")


@needs_make
@pytest.mark.process
def test_an_environment_without_a_python(tmp_path: Path) -> None:
    done = make("venv", f"VENV={tmp_path}/venv", f"PYTHON={tmp_path}/python")
    assert (
        done.returncode and f"No CPython 3.12 or newer was found at {tmp_path}/python: install" in done.stderr
    )
    assert not (tmp_path / "venv").exists()


@needs_make
@pytest.mark.process
@pytest.mark.parametrize(
    ("system", "machine", "refused"),
    [("Darwin", "x86_64", True), ("Darwin", "arm64", False), ("Linux", "x86_64", False)],
)
def test_an_environment_on_an_intel_mac(system: str, machine: str, refused: bool, tmp_path: Path) -> None:
    """The python here makes nothing, so elsewhere it is asked to make an environment, and that is all."""
    asked = f'case "$*" in *platform*) echo {machine};; *venv*) exit 1;; esac'
    for name, text in (("uname", f"echo {system}"), ("python", asked)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("sh", "rm", "touch"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = make("venv", f"VENV={tmp_path}/venv", f"PYTHON={tmp_path}/python", f"PATH={tmp_path}")
    assert done.returncode
    assert ("is for Intel Macs" in done.stderr) is refused
    assert ("could not make an environment" in done.stderr) is not refused
