"""What `--tun --dry-run` prints, and when it is refused. That it says what a start does is for the lab."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.dry_run import render
from tests.support.fake_system import FakeSystem
from tun import this_system

KEY = "a" * 52
CLIENT = ("--peer", f"cryprq://{KEY}@192.0.2.9:4433")
LONG = "\n".join(map(str, range(20)))


def change(what: str, text: str = "", undo: str = "undone") -> dict[str, str]:
    return {"what": what, "undo": undo, "text": text}


def lines(*changes: dict[str, str], full: bool = False, remarks: tuple[str, ...] = ()) -> list[str]:
    return list(render({"changes": changes, "remarks": remarks}, full=full))


def test_the_changes_are_numbered_and_each_has_its_undo() -> None:
    assert lines(change("one"), change("two", "a\nb"), remarks=("as far as can be seen",)) == [
        "Nothing was changed. A start would change, in this order:",
        "",
        "  1. one",
        "     undo: undone",
        "",
        "  2. two",
        "       a",
        "       b",
        "     undo: undone",
        "",
        "- as far as can be seen",
    ]


def test_a_long_text_is_summed_up_and_a_second_version_is_compared() -> None:
    said = lines(change("nft -f -", LONG), change("nft -f -", f"{LONG}\nlast"))
    assert "       (20 lines; --full shows them)" in said
    assert "       (21 lines, as before but for 1; --full shows all)" in said
    assert "       +last" in said
    assert "       7" not in said
    assert "       7" in lines(change("nft -f -", LONG), full=True)


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (("--dry-run",), "--dry-run needs --tun"),
        (("--tun", "--json"), "--json needs --dry-run"),
        (("--tun", "--full"), "--full needs --dry-run"),
    ],
)
@pytest.mark.parametrize("role", [(*CLIENT,), ("exit", "--allow", KEY)])
def test_flags_without_the_one_that_they_need(
    role: tuple[str, ...],
    flags: tuple[str, ...],
    wrong: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run_command([*role, *flags]) == 2
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("role", [(*CLIENT,), ("exit", "--allow", KEY)])
def test_both_roles_without_root_and_without_a_key(
    role: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_command([*role, "--tun", "--dry-run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert any(
        change["what"] == "nft -f -" and "table inet cryprq" in change["text"] for change in found["changes"]
    )
    assert all(change["undo"] for change in found["changes"])
    assert not list(tmp_path.rglob("*"))


# --- --experimental ---


class Unproved(FakeSystem):
    name = "macOS"


@pytest.mark.parametrize("role", [(*CLIENT,), ("exit", "--allow", KEY)])
def test_a_system_that_is_not_proved_is_refused_in_one_sentence(
    role: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(this_system, "this_system", lambda: Unproved(tmp_path))
    assert run_command([*role, "--tun", "--yes"] if role == CLIENT else [*role, "--tun"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cryprq-proxy: ")]
    assert "not been proved on macOS yet" in said
    assert "docs/macos.md" in said
    assert "--experimental" in said
