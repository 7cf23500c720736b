"""LaunchDaemons of macOS; launchctl is played here."""

from __future__ import annotations

import os
import plistlib
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryprq_proxy.base import paths
from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.service import launchd, manager, own, removal
from cryprq_proxy.commands.service.launchd import (
    FILES,
    LABELS,
    daemon_of,
    daemon_text,
    described_daemons,
    install_daemon,
    remove_daemons,
)
from cryprq_proxy.commands.service.units import Kind, check_open
from cryprq_proxy.errors import ConfigError, CryprqError

ROOT = Path(__file__).resolve().parents[3]
PEER = "a" * 51 + "q"
SAMPLE = Path("/opt/cryprq-proxy/.venv/bin/cryprq-proxy")
PRINTED = """system/{label} = {{
\tactive count = 1
\tpath = /Library/LaunchDaemons/{label}.plist
\ttype = LaunchDaemon
\tstate = running

\tprogram = /opt/cryprq-proxy/.venv/bin/cryprq-proxy
\tpid = 4711
\tlast exit code = (never exited)
}}
"""


class Launchd:
    """What launchd has loaded, and what it was told."""

    def __init__(self) -> None:
        self.lingers = 0
        """Looks for which a job that was booted out still ends."""
        self.screen = True
        """Whether somebody is logged in there, so that the domain gui/UID starts services."""
        self._ending: dict[str, int] = {}
        self.loaded: set[str] = set()
        self.words: list[str] = []

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.words.append(" ".join(command[1:]))
        assert command[0] == "launchctl"
        match command[1:]:
            case ["bootstrap", domain, file]:
                if not self.screen and domain != "system":
                    return self._said(125, "Bootstrap failed: 125: Domain does not support specified action")
                label = plistlib.loads(Path(file).read_bytes())["Label"]
                if label in self.loaded or self._ending.get(label):
                    return self._said(5, "Bootstrap failed: 5: Input/output error")
                self.loaded.add(label)
                return self._said(0)
            case ["bootout", place]:
                label = place.rpartition("/")[2]
                if label not in self.loaded:
                    return self._said(3, "Boot-out failed: 3: No such process")
                self.loaded.discard(label)
                self._ending[label] = self.lingers
                return self._said(0)
            case ["print", place]:
                label = place.rpartition("/")[2]
                if label not in self.loaded and self._ending.get(label):
                    self._ending[label] -= 1
                elif label not in self.loaded:
                    return self._said(113, f'Could not find service "{label}" in domain for system')
                return self._said(0, out=PRINTED.format(label=label))
        raise AssertionError(command)

    def _said(self, code: int, error: str = "", out: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, out, error)


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launchd:
    played = Launchd()
    monkeypatch.setattr(launchd, "call", played.call)
    monkeypatch.setattr(launchd, "DAEMONS", tmp_path / "LaunchDaemons")
    monkeypatch.setattr(launchd, "program", lambda: Path("/bin/sh"))
    monkeypatch.setattr(paths, "ROOTS_CONFIG", tmp_path / "etc")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_USER", raising=False)
    return played


@pytest.fixture
def person(mac: Launchd, monkeypatch: pytest.MonkeyPatch, own_directories: Path) -> Launchd:
    """One who has joined an exit, without root."""
    monkeypatch.setattr(manager, "on_macos", lambda: True)
    monkeypatch.setattr(removal, "on_macos", lambda: True)
    monkeypatch.setattr(own, "program", lambda: Path("/opt/cryprq-proxy/bin/cryprq-proxy"))
    monkeypatch.setattr(own, "_check_home", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    monkeypatch.setattr(os, "getuid", lambda: 501)
    monkeypatch.setattr(launchd, "_POLL", 0)
    (own_directories / ".config/cryprq").mkdir(parents=True)
    (own_directories / ".config/cryprq/client.toml").write_text(f'peer = "cryprq://{PEER}@192.0.2.1:4433"\n')
    (own_directories / "Library").mkdir()
    return mac


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Standard output of a command that ends well, else its one sentence."""
    assert run_command(["service", *words]) == code
    out, err = capsys.readouterr()
    assert not code or err.count("\n") == 1
    return out if not code else err


def consent(role: str, more: str = "", experimental: str = "true") -> None:
    paths.ROOTS_CONFIG.mkdir(exist_ok=True)
    (paths.ROOTS_CONFIG / f"{role}.toml").write_text(f"{more}[tun]\nexperimental = {experimental}\n")


def told(kind: Kind) -> dict[str, object]:
    found: dict[str, object] = plistlib.loads((launchd.DAEMONS / f"{LABELS[kind]}.plist").read_bytes())
    return found


@pytest.mark.parametrize("packets", [False, True])
def test_an_exit(packets: bool, mac: Launchd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as who called sudo, with the keys that this person has tried; packets need root."""
    person = pwd.getpwnam("nobody")
    monkeypatch.setenv("SUDO_USER", person.pw_name)
    if packets:
        with pytest.raises(
            ConfigError,
            match=r"not been proved on macOS yet.*experimental = true into \[tun\] of .*exit\.toml",
        ):
            install_daemon("exit", packets)
        assert not mac.words and not launchd.DAEMONS.exists()
        consent("exit")
    install_daemon("exit", packets)
    found = told("exit")
    assert found["UserName"] == ("root" if packets else person.pw_name)
    assert found["ProgramArguments"] == ["/bin/sh", "exit", *(["--tun"] if packets else [])]
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["SoftResourceLimits"] == {"NumberOfFiles": FILES}
    assert found["StandardErrorPath"] == found["StandardOutPath"]
    assert mac.loaded == {"org.cryprq.exit"}


def test_twice_and_away(mac: Launchd) -> None:
    install_daemon("exit", False)
    install_daemon("exit", False)
    mac.loaded.clear()
    install_daemon("exit", False)
    assert described_daemons() == ["org.cryprq.exit: state running, pid 4711, last exit code (never exited)"]
    mac.loaded.clear()
    assert described_daemons() == ["org.cryprq.exit: installed, but launchd has not loaded it"]
    assert "is removed" in remove_daemons(None)[0]
    assert described_daemons() == []
    assert not list(launchd.DAEMONS.iterdir())
    assert remove_daemons("exit") == []


def test_system_wide_mode_needs_a_configuration_first(mac: Launchd, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no client\.toml in .*join"):
        install_daemon("tun", False)
    assert not mac.words
    consent("client", f'peer = "cryprq://{PEER}@192.0.2.1:4433"\n', experimental="false")
    with pytest.raises(ConfigError, match="not been proved on macOS yet"):
        install_daemon("tun", False)
    assert not mac.words
    consent("client", f'peer = "cryprq://{PEER}@192.0.2.1:4433"\n')
    install_daemon("tun", False)
    assert told("tun")["ProgramArguments"] == ["/bin/sh", "--tun"]
    assert told("tun")["UserName"] == "root"


def test_the_commands(
    mac: Launchd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(manager, "on_macos", lambda: True)
    monkeypatch.setattr(removal, "on_macos", lambda: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["install", "exit"], ["status"], ["uninstall", "exit"]):
        assert run_command(["service", *words]) == 0
    said = capsys.readouterr().out
    assert "launchd runs it as root" in said
    assert "org.cryprq.exit: state running" in said
    assert "org.cryprq.exit is removed" in said
    assert run_command(["service", "uninstall", "exit"]) == 2
    assert run_command(["service", "install", "tun", "--tun"]) == 2


def test_the_old_job_has_ended_before_the_new_one_is_loaded(
    mac: Launchd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else launchd refuses the new one, and nothing runs."""
    monkeypatch.setattr(launchd, "_POLL", 0)
    install_daemon("exit", False)
    mac.lingers = 3
    install_daemon("exit", False)
    assert mac.loaded == {"org.cryprq.exit"}
    monkeypatch.setattr(launchd, "END_SECONDS", -launchd._MARGIN)
    with pytest.raises(CryprqError, match="does not end"):
        install_daemon("exit", False)


def test_only_root(mac: Launchd, monkeypatch: pytest.MonkeyPatch) -> None:
    install_daemon("exit", False)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    for act in (lambda: install_daemon("exit", False), lambda: remove_daemons(None)):
        with pytest.raises(ConfigError, match="is root's"):
            act()


def test_a_plist_of_somebody_else_stays(mac: Launchd) -> None:
    launchd.DAEMONS.mkdir()
    file = launchd.DAEMONS / "org.cryprq.exit.plist"
    file.write_text("<plist/>")
    with pytest.raises(ConfigError, match="was not written by"):
        install_daemon("exit", False)
    assert remove_daemons(None) == []
    assert file.read_text() == "<plist/>"


def test_what_launchd_refuses_is_told(mac: Launchd) -> None:
    mac.loaded.add("org.cryprq.exit")
    with pytest.raises(CryprqError, match="Bootstrap failed: 5"):
        install_daemon("exit", False)


@pytest.mark.parametrize(("kind", "packets"), [("exit", True), ("tun", False)])
def test_the_samples_are_what_is_installed(kind: Kind, packets: bool) -> None:
    text = daemon_text(daemon_of(kind, SAMPLE, "root", Path("/var/root"), packets))
    assert (ROOT / "configs" / f"{LABELS[kind]}.plist").read_text() == text


# --- the proxy of a person ---


def test_launchd_runs_the_proxy_of_a_person(
    person: Launchd, capsys: pytest.CaptureFixture[str], own_directories: Path
) -> None:
    file = own_directories / "Library/LaunchAgents/org.cryprq.proxy.plist"
    assert f"{file} is written" in run(capsys, "install", "proxy")
    assert person.words == [f"bootstrap gui/501 {file}"]
    assert plistlib.loads(file.read_bytes())["ProgramArguments"] == ["/opt/cryprq-proxy/bin/cryprq-proxy"]
    assert str(file) in run(capsys, "status")
    run(capsys, "uninstall")
    assert not file.exists() and not person.loaded


def test_a_proxy_is_removed_when_it_has_ended(person: Launchd, capsys: pytest.CaptureFixture[str]) -> None:
    """Else an install that follows at once is refused."""
    run(capsys, "install", "proxy")
    person.lingers = 3
    run(capsys, "uninstall")
    run(capsys, "install", "proxy")
    assert person.loaded == {"org.cryprq.proxy"}


def test_without_anybody_at_the_screen(
    person: Launchd, capsys: pytest.CaptureFixture[str], own_directories: Path
) -> None:
    person.screen = False
    said = run(capsys, "install", "proxy", code=1)
    assert "125: Domain does not support" in said and "not logged in at the screen of this Mac" in said
    assert said.endswith("run the proxy in a terminal: cryprq-proxy\n")
    person.screen = True
    run(capsys, "install", "proxy")
    assert person.loaded == {"org.cryprq.proxy"}


@pytest.mark.parametrize(
    "place",
    [
        "HOME/Documents",
        "HOME/desktop/src",
        "/Users/Alice/Downloads",
        "HOME/Library/Mobile Documents/com~apple",
        "HOME/Library/CloudStorage/OneDrive",
    ],
)
def test_what_macos_shows_to_no_service(
    place: str,
    person: Launchd,
    capsys: pytest.CaptureFixture[str],
    own_directories: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = Path(place.replace("HOME", str(own_directories)), "cryprq-proxy/.venv/bin/cryprq-proxy")
    monkeypatch.setattr(own, "program", lambda: called)
    said = run(capsys, "install", "proxy", code=2)
    assert f"{called} is in " in said and "macOS shows to no service: move the program elsewhere" in said
    monkeypatch.setattr(launchd, "program", lambda: called)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "macOS shows to no service" in run(capsys, "install", "exit", code=2)
    assert not person.words and not (own_directories / "Library/LaunchAgents").exists()
    assert not launchd.DAEMONS.exists()


def test_other_places_of_a_home_are_open(person: Launchd, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "/Users/alice/cryprq-proxy",
        "/Users/alice/src/Documents",
        "/Users/Shared/Desktops/x",
        "/Documents",
    ):
        check_open(Path(place, ".venv/bin/cryprq-proxy"))
