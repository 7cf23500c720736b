"""The workflow file for a Mac: its actions cannot change under it, and it calls what this tree has."""

from __future__ import annotations

import re

from tests.support.pages import ROOT

TEXT = (ROOT / ".github/workflows/macos.yml").read_text("utf-8")
MAKE = (ROOT / "Makefile").read_text("utf-8")


def test_every_action_is_pinned_to_a_commit() -> None:
    used = re.findall(r"uses: (\S+)", TEXT)
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) for action in used)


def test_its_steps_are_parts_of_make_test_macos() -> None:
    called = set(re.findall(r"run: make (\S+)", TEXT)) - {"venv"}
    parts = re.search(r"Darwin\)\nMACOS_PARTS := (.*)\n", MAKE)
    assert parts is not None
    assert called == set(parts[1].split())


def test_what_make_names_is_there() -> None:
    part = MAKE.partition("MACOS_PARTS :=")[2].partition("\nmutants:")[0]
    named = re.findall(r"tests/[a-z0-9_/.]+", part)
    assert "tests/macos" in named
    assert all((ROOT / name).exists() for name in named), named


def test_it_may_read_only() -> None:
    assert "permissions:\n  contents: read\n" in TEXT
    assert "pull_request_target" not in TEXT
