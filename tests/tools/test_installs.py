"""tools/installs.py: what it would install, on which CPythons, and how it hears where the demo listens."""

from __future__ import annotations

import io
import sys
import tomllib
from pathlib import Path

import pytest

from tools.installs import CPYTHONS, TREE, Installation, InstallError, find, installations, own_page


def test_each_cpython_has_each_installer_and_source() -> None:
    made = installations(["3.12", "3.13"])
    assert len(made) == len(set(made)) == 2 * 3 * 3
    assert Installation("3.13", "pipx", "sdist") in made
    assert not [one for one in made if one.cpython == "3.14"]


def test_the_package_names_each_cpython_that_is_tried() -> None:
    """And the oldest of them is the one that it demands."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {line.rpartition(" :: ")[2] for line in project["classifiers"] if ":: Python ::" in line}
    assert named == set(CPYTHONS)
    assert project["requires-python"] == f">={CPYTHONS[0]}"


@pytest.mark.process
def test_a_cpython_is_found_by_its_name_and_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to another version, as after an upgrade by hand, is none of this version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (version, "3.99"):
        (tmp_path / f"python{name}").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tmp_path / f"python{name}").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find(version) == sys.executable
    assert find("3.99") is None
    assert find("3.999") is None


def test_a_demo_that_ends_before_it_listens() -> None:
    with pytest.raises(InstallError, match="without a word"):
        own_page(io.StringIO("Error: the port is taken\n"))
