"""commands/service/install.py, own.py and removal.py: what a manager is told, and what is left where it fails."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryprq_proxy.base import paths, systemd
from cryprq_proxy.base.systemd import Systemd
from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.service import install, manager, own, units
from cryprq_proxy.config.keys import load_identity, save_identity
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import CryprqError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs services of the system")
PEER = f'peer = "cryprq://{"a" * 52}@exit.example:4433"\n'
ALICE = PeerId(bytes(32))

type Capture = pytest.CaptureFixture[str]


class Told:
    """What the manager was told. It runs unless `runs` is False, and `fails` is the word that it refuses."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.runs = True
        self.active: set[str] = set()
        self.fails = ""

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        line = " ".join(command).removeprefix("systemctl ")
        out = ""
        if command[-2] == "is-active":
            out = "active\n" if command[-1] in self.active else "inactive\n"
        elif "show" in command:
            out = "ActiveState=active\nUnitFileState=enabled\nStatusText=link up\x1b to there\n"
        else:
            self.words.append(line)
        failed = bool(self.fails) and self.fails in line
        return subprocess.CompletedProcess(command, int(failed), out, "Job failed.\nmore\n" if failed else "")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, own_directories: Path) -> Told:
    """Root's machine, with a user for services, and the program where a service finds it."""
    told = Told()
    monkeypatch.setattr(systemd, "call", told.call)
    monkeypatch.setattr(manager, "call", told.call)
    monkeypatch.setattr(Systemd, "runs", lambda self: told.runs)
    monkeypatch.setattr(systemd, "UNIT_DIRECTORY", own_directories / "systemd")
    (own_directories / "systemd").mkdir()
    paths.ROOTS_CONFIG.parent.mkdir()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(sys, "argv", ["/opt/cryprq-proxy/bin/cryprq-proxy"])
    for module in (install, own):
        monkeypatch.setattr(module, "program", lambda: Path("/opt/cryprq-proxy/bin/cryprq-proxy"))
    monkeypatch.setattr(units, "hidden_parts", lambda called: [])
    monkeypatch.setattr(units, "check_readable", lambda called, hidden, user: None)
    monkeypatch.setattr(install, "prepare", lambda start, owner: None)
    plain = pwd.getpwnam
    entry = pwd.struct_passwd(("cryprq", "x", 4_321, 4_321, "", "/var/lib/cryprq", "/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry if name == "cryprq" else plain(name))
    return told


def run(capsys: Capture, *arguments: str, code: int = 0) -> str:
    """Standard output of a command that ends well, else its one sentence."""
    assert run_command(["service", *arguments]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    if not code:
        return out
    assert err.count("\n") == 1 and err.startswith("cryprq-proxy: ") and err.strip().isprintable(), err
    return err


def unit(name: str) -> Path:
    return systemd.UNIT_DIRECTORY / f"{name}.service"


def tried(directory: Path, config: str = "") -> str:
    """What somebody has tried out; the peer id."""
    identity = Identity.generate(select_provider())
    save_identity(identity, directory / "identity")
    if config:
        (directory / "client.toml").write_text(config)
    else:
        (directory / "authorized").write_text(f"{ALICE} laptop\n")
    return str(identity.peer_id)


# --- install ---


@needs_root
def test_an_exit_on_a_fresh_machine(told: Told, capsys: Capture) -> None:
    out = run(capsys, "install", "exit")
    assert told.words == ["daemon-reload", "enable cryprq-exit", "restart cryprq-exit"]
    assert "ExecStart=/opt/cryprq-proxy/bin/cryprq-proxy exit --overlap\n" in unit("cryprq-exit").read_text()
    assert unit("cryprq-exit").stat().st_mode & 0o777 == 0o644
    status = paths.ROOTS_CONFIG.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4_321, 4_321, 0o700)
    assert out.endswith(
        "starts with this machine\n\nNext:\n  /opt/cryprq-proxy/bin/cryprq-proxy invite laptop\n"
    )
    # Once more is an upgrade: the unit is written anew.
    unit("cryprq-exit").write_text(f"{units.MARK}\n# of an older version\n[Service]\nExecStart=/x\n")
    run(capsys, "install", "exit")
    assert "older" not in unit("cryprq-exit").read_text()


@needs_root
def test_a_proxy_waits_for_an_exit_and_a_join_starts_it(told: Told, capsys: Capture) -> None:
    out = run(capsys, "install", "proxy")
    assert told.words == ["daemon-reload", "enable cryprq-proxy"]
    assert out.endswith("\nNext:\n  /opt/cryprq-proxy/bin/cryprq-proxy join 'cryprq://...#...'\n")
    told.words.clear()
    assert own.after_join() == ["the service cryprq-proxy runs now"]
    assert told.words == ["enable cryprq-proxy", "restart cryprq-proxy"]
    told.active.add("cryprq-proxy")
    assert own.after_join() == ["the service cryprq-proxy runs and uses it"]


@needs_root
def test_a_join_comes_first_as_well(told: Told, capsys: Capture) -> None:
    tried(paths.ROOTS_CONFIG, PEER)
    out = run(capsys, "install")
    assert told.words[-1] == "restart cryprq-proxy"
    assert out.endswith("\nNext:\n  /opt/cryprq-proxy/bin/cryprq-proxy check\n")
    assert {path.stat().st_uid for path in paths.ROOTS_CONFIG.iterdir()} == {4_321}


@needs_root
def test_system_wide_mode_is_begun_by_a_person(told: Told, capsys: Capture) -> None:
    assert "join" in run(capsys, "install", "tun")
    assert paths.ROOTS_CONFIG.stat().st_uid == 0
    assert own.after_join() == [
        "start the service, from which on all goes through the exit:",
        "  systemctl start cryprq-client-tun",
    ]
    (paths.ROOTS_CONFIG / "client.toml").write_text(PEER)
    assert "say it with --yes" in run(capsys, "install", "tun", code=2)
    run(capsys, "install", "tun", "--yes")
    assert told.words[-1] == "restart cryprq-client-tun"


@needs_root
def test_an_exit_carries_packets_by_a_flag_or_its_configuration(told: Told, capsys: Capture) -> None:
    run(capsys, "install", "exit", "--tun")
    drop_in = systemd.UNIT_DIRECTORY / "cryprq-exit.service.d" / "cryprq-tun.conf"
    assert "ExecStart=/opt/cryprq-proxy/bin/cryprq-proxy exit --overlap --tun\n" in drop_in.read_text()
    assert paths.ROOTS_CONFIG.stat().st_uid == 0
    # An upgrade leaves it as it is.
    run(capsys, "install", "exit")
    assert drop_in.exists()
    run(capsys, "uninstall")
    assert list(systemd.UNIT_DIRECTORY.iterdir()) == []
    (paths.ROOTS_CONFIG / "exit.toml").write_text("[tun]\nenabled = true\n")
    run(capsys, "install", "exit")
    assert drop_in.exists()
    assert "belongs to an exit" in run(capsys, "install", "proxy", "--tun", code=2)


@needs_root
def test_what_a_person_has_tried_goes_along(
    told: Told, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ".config" / "cryprq"
    peer_id = tried(directory)
    entry = pwd.struct_passwd(("alice", "x", 1_000, 1_000, "", str(tmp_path), "/bin/sh"))
    plain = pwd.getpwnam
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry if name == "alice" else plain(name))
    monkeypatch.setenv("SUDO_USER", "alice")
    out = run(capsys, "install")
    assert f"carried from {directory} to {paths.ROOTS_CONFIG}" in out
    assert out.endswith("\nNext:\n  sudo /opt/cryprq-proxy/bin/cryprq-proxy invite laptop\n")
    assert list(directory.iterdir()) == []
    for path in (paths.ROOTS_CONFIG, *paths.ROOTS_CONFIG.iterdir()):
        assert path.stat().st_uid == 4_321
        os.chown(path, 0, 0)
    assert str(load_identity(select_provider(), paths.ROOTS_CONFIG / "identity").peer_id) == peer_id


@needs_root
def test_without_a_manager_it_says_how_to_start(told: Told, capsys: Capture) -> None:
    told.runs = False
    out = run(capsys, "install", "exit")
    assert told.words == []
    assert (
        "no service manager runs here. Start it by hand, as root, with:\n"
        "  setpriv --reuid=cryprq --regid=cryprq --init-groups env "
        "XDG_RUNTIME_DIR=/run XDG_CONFIG_HOME=/etc XDG_STATE_HOME=/var/lib "
        "/opt/cryprq-proxy/bin/cryprq-proxy exit --overlap\n"
    ) in out
    run(capsys, "install", "proxy")
    assert own.after_join()[0] == "start the service by hand with:"


# --- what is refused, and then nothing has changed ---


@contextmanager
def unchanged(*directories: Path) -> Iterator[None]:
    def all_of() -> dict[Path, tuple[bytes, int]]:
        found = [path for directory in directories for path in (directory, *directory.rglob("*"))]
        return {path: (path.read_bytes() if path.is_file() else b"", path.stat().st_uid) for path in found}

    before = all_of()
    yield
    assert all_of() == before


@needs_root
def test_another_ones_unit(told: Told, capsys: Capture) -> None:
    unit("cryprq-exit").write_text("[Service]\nExecStart=/bin/true\n")
    with unchanged(systemd.UNIT_DIRECTORY, paths.ROOTS_CONFIG.parent):
        said = run(capsys, "install", "exit", code=2)
        assert "was not written by" in said and "move it away first" in said
        said = run(capsys, "uninstall", "exit", code=2)
        assert "was not written by" in said and said.endswith(": whoever has written it removes it\n")
    assert told.words == []


@needs_root
@pytest.mark.parametrize(
    ("name", "text"), [("client.toml", "peer = 1\n"), ("client.toml", "\x00"), ("client.toml", '["')]
)
def test_a_damaged_configuration(told: Told, capsys: Capture, name: str, text: str) -> None:
    tried(paths.ROOTS_CONFIG, PEER)
    (paths.ROOTS_CONFIG / name).write_text(text)
    with unchanged(systemd.UNIT_DIRECTORY, paths.ROOTS_CONFIG):
        assert "client.toml" in run(capsys, "install", "proxy", code=2)
    assert told.words == []


@needs_root
@pytest.mark.parametrize("carried", [True, False], ids=["carried", "in place"])
@pytest.mark.parametrize(
    ("kind", "config", "wrong"),
    [
        ("exit", 'psk_file = "psk"\n', "exit.toml: psk_file: the key file {}/psk does not exist"),
        ("exit", '[websocket]\nlisten = 8443\ncertificate = "c"\nkey = "c"\n', "websocket.certificate: "),
        ("proxy", f'{PEER}user_file = "user"\n', "client.toml: user_file: the user file {}/user does not"),
        ("proxy", f'{PEER}[[rule]]\nto = "block"\nlists = ["a"]\n', "rule[1].lists: "),
        ("proxy", f'{PEER}[[rule]]\nto = "exit:vps"\nports = [1]\n', 'no exit called "vps"'),
    ],
)
def test_a_configuration_with_which_nothing_would_start(
    told: Told, capsys: Capture, tmp_path: Path, carried: bool, kind: str, config: str, wrong: str
) -> None:
    directory = tmp_path / "tried" if carried else paths.ROOTS_CONFIG
    tried(directory)
    (directory / f"{'exit' if kind == 'exit' else 'client'}.toml").write_text(config)
    more = ("--from", str(directory)) if carried else ()
    with unchanged(directory, paths.ROOTS_CONFIG.parent, systemd.UNIT_DIRECTORY):
        said = run(capsys, "install", kind, *more, code=2)
    assert wrong.format(directory) in said
    assert told.words == []


@needs_root
def test_files_that_the_configuration_names_are_there_after_the_move(
    told: Told, capsys: Capture, tmp_path: Path
) -> None:
    directory = tmp_path / "tried"
    tried(directory)
    (directory / "exit.toml").write_text(f'psk_file = "{directory}/psk"\n')
    (directory / "psk").write_text("0" * 64)
    (directory / "psk").chmod(0o600)
    run(capsys, "install", "exit", "--from", str(directory))
    assert (paths.ROOTS_CONFIG / "psk").stat().st_uid == 4_321
    assert not list(paths.ROOTS_CONFIG.parent.glob(".*"))


@needs_root
def test_one_directory_has_one_owner(told: Told, capsys: Capture) -> None:
    run(capsys, "install", "exit")
    with unchanged(systemd.UNIT_DIRECTORY, paths.ROOTS_CONFIG):
        said = run(capsys, "install", "tun", code=2)
    assert "the service cryprq-exit runs as cryprq" in said and "service uninstall" in said
    run(capsys, "install", "proxy")
    run(capsys, "uninstall")
    run(capsys, "install", "tun")
    assert "runs as root" in run(capsys, "install", "proxy", code=2)


@needs_root
def test_what_is_there_is_replaced_only_when_asked(told: Told, capsys: Capture, tmp_path: Path) -> None:
    new, old = tried(tmp_path / "new"), tried(paths.ROOTS_CONFIG)
    with unchanged(tmp_path / "new", paths.ROOTS_CONFIG):
        said = run(capsys, "install", "exit", "--from", str(tmp_path / "new"), code=2)
    assert "Replace it by" in said and "--yes" in said
    out = run(capsys, "install", "exit", "--from", str(tmp_path / "new"), "--yes")
    kept = paths.ROOTS_CONFIG.with_name("cryprq.old")
    assert f"what was in {paths.ROOTS_CONFIG} is in {kept}" in out
    os.chown(paths.ROOTS_CONFIG / "identity", 0, 0)
    os.chown(paths.ROOTS_CONFIG, 0, 0)
    provider = select_provider()
    assert str(load_identity(provider, paths.ROOTS_CONFIG / "identity").peer_id) == new
    assert str(load_identity(provider, kept / "identity").peer_id) == old


@needs_root
def test_keys_that_another_service_uses_are_not_replaced(told: Told, capsys: Capture, tmp_path: Path) -> None:
    run(capsys, "install", "exit")
    (paths.ROOTS_CONFIG / "identity").touch()
    tried(tmp_path / "new", PEER)
    with unchanged(tmp_path / "new", paths.ROOTS_CONFIG):
        said = run(capsys, "install", "proxy", "--from", str(tmp_path / "new"), "--yes", code=2)
    assert "holds the keys of the service cryprq-exit" in said


@needs_root
def test_places_that_do_not_do(
    told: Told, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is no directory" in run(capsys, "install", "exit", "--from", str(tmp_path / "a\x1b\n"), code=2)
    paths.ROOTS_CONFIG.mkdir()
    assert "without --from" in run(capsys, "install", "exit", "--from", str(paths.ROOTS_CONFIG), code=2)
    tried(tmp_path / "bob")
    os.chown(tmp_path / "bob", 4_322, 4_322)
    monkeypatch.setenv("SUDO_USER", "alice")
    said = run(capsys, "install", "exit", "--from", str(tmp_path / "bob"), code=2)
    assert "belongs to the user 4322, and alice calls" in said
    systemd.UNIT_DIRECTORY.rmdir()
    assert "where units are, does not exist" in run(capsys, "install", "exit", code=2)


@needs_root
def test_a_role_that_runs_by_hand_keeps_its_keys(told: Told, capsys: Capture, own_directories: Path) -> None:
    path = own_directories / "run" / "cryprq" / "exit.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert f"the exit runs by hand, with {path}: end it first" in run(capsys, "install", "exit", code=2)
        told.active.add("cryprq-exit")
        run(capsys, "install", "exit")


@needs_root
def test_a_start_that_fails_is_told_and_loses_nothing(told: Told, capsys: Capture) -> None:
    peer_id = tried(paths.ROOTS_CONFIG)
    told.fails = "restart"
    said = run(capsys, "install", "exit", code=1)
    assert "`systemctl restart cryprq-exit` failed: Job failed; `journalctl -u cryprq-exit` says more" in said
    os.chown(paths.ROOTS_CONFIG / "identity", 0, 0)
    os.chown(paths.ROOTS_CONFIG, 0, 0)
    assert str(load_identity(select_provider(), paths.ROOTS_CONFIG / "identity").peer_id) == peer_id


def test_a_kind_that_nobody_can_guess(told: Told, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "say which service" in run(capsys, "install", code=2)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = run(capsys, "install", "exit", code=2)
    assert "is root's: sudo " in said and "--user" in said
    assert "are root's" in run(capsys, "uninstall", code=2)


# --- of one person ---


@pytest.fixture
def person(told: Told, monkeypatch: pytest.MonkeyPatch) -> Told:
    uid = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(own, "_check_home", lambda: None)
    assert uid == os.getuid()
    return told


def test_a_proxy_of_ones_own(person: Told, capsys: Capture, own_directories: Path) -> None:
    run(capsys, "install", "proxy", "--user")
    file = own_directories / ".config/systemd/user/cryprq-proxy.service"
    assert "ExecStart=/opt/cryprq-proxy/bin/cryprq-proxy\n" in file.read_text()
    assert person.words == ["--user daemon-reload", "--user enable cryprq-proxy"]
    assert own.after_join() == ["the service cryprq-proxy runs now"]
    (own_directories / ".config/cryprq").mkdir()
    (own_directories / ".config/cryprq/client.toml").write_text("peer = 1")
    assert "client.toml" in run(capsys, "install", "--user", code=2)
    out = run(capsys, "status")
    assert "cryprq-proxy: active, enabled: link up\\x1b to there\n  as you, /opt" in out
    assert f"stay in {own_directories}/.config/cryprq" in run(capsys, "uninstall", "--user")
    assert not file.exists()
    assert "not installed" in run(capsys, "uninstall", "--user", code=2)
    assert "no service is installed" in run(capsys, "status")


def test_what_a_person_cannot_have(told: Told, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "for the proxy alone" in run(capsys, "install", "exit", "--user", code=2)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "call it without sudo" in run(capsys, "install", "--user", code=2)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert "belongs to the user" in run(capsys, "install", "--user", code=2)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert "cannot be used" in run(capsys, "install", "--user", code=2)


# --- removal ---


@needs_root
def test_uninstall_keeps_the_keys(told: Told, capsys: Capture) -> None:
    tried(paths.ROOTS_CONFIG)
    run(capsys, "install", "exit")
    told.words.clear()
    out = run(capsys, "uninstall")
    assert told.words == ["disable --now cryprq-exit", "daemon-reload"]
    assert f"its keys, configuration and lists stay in {paths.ROOTS_CONFIG}" in out
    assert (paths.ROOTS_CONFIG / "identity").exists() and not unit("cryprq-exit").exists()
    assert "no service that this program has installed" in run(capsys, "uninstall", code=2)
    assert "is not installed" in run(capsys, "uninstall", "proxy", code=2)


@needs_root
def test_uninstall_of_what_cannot_be_stopped_removes_nothing(told: Told, capsys: Capture) -> None:
    run(capsys, "install", "exit")
    told.fails = "disable"
    run(capsys, "uninstall", code=1)
    assert unit("cryprq-exit").exists()


@pytest.mark.process
def test_a_tool_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(CryprqError, match=r"/no/such/tool cannot be run: "):
        systemd.call(["/no/such/tool"])
