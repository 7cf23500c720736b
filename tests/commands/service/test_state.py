"""commands/service/state.py and ownership.py: the service knows the first flights of before, and reads them itself."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryprq_proxy.base import paths, systemd
from cryprq_proxy.base.systemd import Systemd
from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.service import install, units
from cryprq_proxy.commands.service.ownership import NewOwner, check_givable, give
from cryprq_proxy.commands.service.state import StateOf
from cryprq_proxy.config.keys import save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.exit.flight_memory import FILE, MAX_FLIGHTS, RECENT, joined

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
SERVICE = NewOwner(4_321, 4_321)
OLD, NEW, LATEST = (f"{number:032x}" for number in range(3))


@pytest.fixture
def state(own_directories: Path) -> Path:
    """Root's state directory, in which an exit of root has answered one first flight."""
    paths.ROOTS_CONFIG.parent.mkdir()
    paths.ROOTS_STATE.mkdir(parents=True)
    (paths.ROOTS_STATE / RECENT).write_text(f"{OLD}\n")
    (paths.ROOTS_STATE / RECENT).chmod(0o600)
    return paths.ROOTS_STATE


@pytest.fixture
def machine(state: Path, own_directories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that takes everything, and a user for services."""
    monkeypatch.setattr(systemd, "UNIT_DIRECTORY", own_directories / "systemd")
    (own_directories / "systemd").mkdir()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Systemd, "runs", lambda self: True)

    def call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "inactive\n", "")

    monkeypatch.setattr(systemd, "call", call)
    monkeypatch.setattr(install, "program", lambda: Path("/opt/cryprq-proxy/bin/cryprq-proxy"))
    monkeypatch.setattr(units, "hidden_parts", lambda called: [])
    monkeypatch.setattr(units, "check_readable", lambda called, hidden, user: None)
    plain = pwd.getpwnam
    entry = pwd.struct_passwd(("cryprq", "x", *SERVICE, "", "/var/lib/cryprq", "/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry if name == "cryprq" else plain(name))


def owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in (directory, *directory.rglob("*"))}


def run(*arguments: str, code: int = 0) -> None:
    assert run_command(["service", *arguments]) == code


def test_the_state_changes_hands_with_the_service(machine: None, state: Path) -> None:
    run("install", "exit")
    assert owners(state) == {SERVICE.uid}
    run("uninstall")
    run("install", "exit", "--tun")
    assert owners(state) == {0} and (state / RECENT).read_text() == f"{OLD}\n"


def test_what_another_user_has_planted_changes_nothing(
    machine: None, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    os.link(secret, state / FILE)
    run("install", "exit", code=2)
    assert "has a second name: move it away first" in capsys.readouterr().err
    assert owners(state) == {0} and not list(systemd.UNIT_DIRECTORY.iterdir())
    assert not paths.ROOTS_CONFIG.exists()
    (state / FILE).unlink()
    (state / FILE).symlink_to(secret)
    run("install", "exit")
    assert (state / FILE).lstat().st_uid == SERVICE.uid and secret.stat().st_uid == 0


def test_a_state_directory_that_is_a_link(machine: None, state: Path, tmp_path: Path) -> None:
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="a link or a file: move it away first"):
        check_givable(state, frozenset({0}))
    run("install", "exit", code=2)
    assert owners(tmp_path / "elsewhere") == {0}


def test_what_a_persons_exit_has_answered_goes_along(
    machine: None, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = pwd.struct_passwd(("ann", "x", 0, 0, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: home)
    source, own = tmp_path / ".config/cryprq", tmp_path / ".local/state/cryprq"
    save_identity(Identity.generate(select_provider()), source / "identity")
    (source / "authorized").touch()
    own.mkdir(parents=True)
    (own / FILE).write_text(f"{NEW}\nnonsense\n")
    (own / RECENT).write_text(f"{LATEST}\n")
    run("install", "exit", "--from", str(source))
    assert owners(state) == {SERVICE.uid} and list(own.iterdir()) == []
    assert (state / FILE).read_text().split() == [NEW, LATEST]
    assert (state / RECENT).read_text() == f"{OLD}\n"
    assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}


def test_without_a_home_there_is_nothing_to_take(tmp_path: Path, own_directories: Path) -> None:
    StateOf(tmp_path).place(SERVICE, frozenset())
    assert not paths.ROOTS_STATE.exists()


def test_what_is_given_already_is_left_alone(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that runs never loses the right to its files, not for a moment."""
    give(state, SERVICE, frozenset())
    monkeypatch.setattr(os, "fchown", None)
    give(state, SERVICE, frozenset())


def test_several_lists_become_one_with_the_latest() -> None:
    assert joined([f"{OLD}\n{NEW}\n", f"{LATEST} {NEW}x\n{OLD}"], 2) == f"{NEW}\n{LATEST}\n"
    many = "\n".join(f"{number:032x}" for number in range(MAX_FLIGHTS + 1))
    assert len(joined([many]).split()) == MAX_FLIGHTS
