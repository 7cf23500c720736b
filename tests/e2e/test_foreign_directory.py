"""Root in the directory of the service's user, with real processes. The user is a made-up number, and is hostile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.pairing.invitation import Invitation
from tests.support.processes import Program, call, environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another user's directory")

SERVICE, OTHER = 4_321, 4_322
ALICE = PeerId(bytes(32))


@pytest.fixture
def directory(own_directories: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's directory, /etc/cryprq as it were."""
    directory = own_directories / "lib" / "cryprq"
    directory.mkdir(parents=True)
    os.chown(directory, SERVICE, SERVICE)
    directory.chmod(0o700)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory.parent))
    return directory


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of root, open to all for looking."""
    directory = tmp_path / "outside"
    directory.mkdir()
    return directory


def write(file: Path, text: str, owner: int = SERVICE, mode: int = 0o600) -> Path:
    file.write_text(text)
    os.chown(file, owner, owner)
    file.chmod(mode)
    return file


def good(*arguments: str) -> str:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str) -> str:
    """The sentence of a command that fails."""
    done = call(*arguments)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def owners(directory: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_uid for path in directory.iterdir()}


# --- the race ---

_SWAP = """
import os, sys
victim, user, line = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
print("ready", flush=True)
while True:
    os.symlink(victim, "link")
    os.replace("link", "invites")
    with open("file", "w") as out:
        out.write(line)
    os.replace("file", "invites")
"""

_INVITE = """
import os, sys
from cryprq_proxy.cli import run_command
from cryprq_proxy.pairing import invitation
for number in range(50):
    if not (pid := os.fork()):
        os._exit(run_command(["invite", f"laptop{number}", "--address", "exit.example"]))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(os.listdir(sys.argv[1])))
"""
"""Each in a process of its own, forked from one that has loaded the program."""


@contextlib.contextmanager
def swapping(directory: Path, victim: Path) -> Iterator[None]:
    """The file `invites` is by turns a file with a line of the user's own, and a link to `victim`."""
    line = json.dumps({"name": "evil", "hash": "a" * 64, "created": 1, "expires": 1 << 40}) + "\n"
    process = subprocess.Popen(
        [sys.executable, "-c", _SWAP, str(victim), str(SERVICE), line], stdout=subprocess.PIPE, cwd=directory
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_no_link_leads_root_outside(directory: Path, outside: Path) -> None:
    """Fifty invites while the directory's user swaps the list for a link to a file that only root can make."""
    good("keygen")
    with swapping(directory, outside / "victim"):
        done = subprocess.run(
            [sys.executable, "-c", _INVITE, str(outside)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=100,
        )
    ends = [line for line in done.stdout.splitlines() if not line.startswith("cryprq://")]
    assert len(ends) == 50
    assert set(ends) <= {"0 0", "2 0"}
    assert set(owners(directory).values()) == {SERVICE}


# --- each command ---


def test_what_root_makes_there_belongs_to_the_user(directory: Path) -> None:
    own = good("keygen").strip()
    assert good("id").strip() == own
    uri = good("invite", "laptop", "--address", "exit.example")
    assert str(Invitation.parse(uri).peer_id) == own
    assert "laptop, until" in good("invite", "--list")
    good("invite", "--cancel", "laptop")
    write(directory / "authorized", f"{ALICE} phone\n", mode=0o640)
    assert good("peers") == f"phone  {ALICE}\n"
    good("peers", "rename", "phone", "desk")
    good("peers", "revoke", "desk")
    assert owners(directory) == dict.fromkeys(("identity", "invites", "authorized", "revoked"), SERVICE)
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "identity": 0o600,
        "invites": 0o600,
        "authorized": 0o640,
        "revoked": 0o600,
    }
    assert "exists already" in refused("keygen")


def test_a_directory_that_the_user_lacks_is_made_as_that_user(
    own_directories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = own_directories / "home"
    home.mkdir()
    os.chown(home, SERVICE, SERVICE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    good("keygen")
    identity = home / ".config" / "cryprq" / "identity"
    assert {path.stat().st_uid for path in (identity, identity.parent, identity.parent.parent)} == {SERVICE}


def test_root_exit_and_root_client_in_foreign_directories(directory: Path, tmp_path: Path) -> None:
    """The exit redeems an invite and learns of a revocation, all in a directory that is not root's."""
    write(directory / "exit.toml", 'listen = "127.0.0.1:0"\n')
    clients = tmp_path / "client"
    clients.mkdir()
    os.chown(clients, OTHER, OTHER)
    config = write(
        clients / "client.toml",
        'identity = "key"\nlisten = "127.0.0.1:0"\nadmin = "off"\n',
        owner=OTHER,
    )
    with Program("exit") as exit:
        exit.log.wait("ready: ")
        uri = good("invite", "laptop").strip()
        good("join", uri, "--config", str(config))
        exit.log.wait("used an invite and is on the list of peers now, as laptop")
        exit.log.wait("reloaded: 1 peer allowed")
        assert owners(clients) == {"client.toml": OTHER, "key": OTHER}
        with Program("--config", str(config)) as client:
            client.log.wait("link up")
            good("peers", "revoke", "laptop")
            client.log.wait("link down: .*not authorized")
            assert client.end(signal.SIGINT) == 0
        assert exit.end(signal.SIGINT) == 0
    assert set(owners(directory).values()) == {SERVICE}


# --- what the user names ---


def test_a_list_outside_is_neither_read_nor_written(directory: Path, outside: Path) -> None:
    secret = write(outside / "authorized", f"{ALICE} secret\n", owner=0)
    write(directory / "exit.toml", f'authorized = "{secret}"\n')
    assert "permission denied" in refused("peers")
    assert "permission denied" in refused("peers", "revoke", "secret")
    assert "permission denied" in refused("invite", "laptop", "--address", "exit.example")
    assert secret.read_text() == f"{ALICE} secret\n"
    assert list(outside.iterdir()) == [secret]
    # What that user can read, another one can still change.
    theirs = write(directory / "theirs", f"{ALICE} other\n", owner=OTHER, mode=0o644)
    write(directory / "exit.toml", 'authorized = "theirs"\n')
    assert f"belongs to the user {OTHER}; run: chown {SERVICE} {theirs}" in refused("peers")


def test_an_identity_outside_is_neither_used_nor_made(directory: Path, outside: Path) -> None:
    good("keygen", str(outside / "key"))
    for name in ("key", "new"):
        write(directory / "exit.toml", f'identity = "{outside / name}"\n')
        assert "permission denied" in refused("invite", "laptop", "--address", "exit.example")
    assert [path.name for path in outside.iterdir()] == ["key"]


def test_root_opens_no_file_that_the_users_configuration_names_for_it(directory: Path, outside: Path) -> None:
    for line, key in (
        (f'control_socket = "{outside}/socket"', "control_socket"),
        (f'tun.state_dir = "{outside}"', "tun.state_dir"),
        (f'websocket = {{ certificate = "{outside}/c", key = "{outside}/k" }}', "websocket.certificate"),
    ):
        write(directory / "exit.toml", f"{line}\n")
        assert f"root does not use the file that {key} names" in refused("exit")
    assert list(outside.iterdir()) == []


def test_a_running_service_names_only_what_its_user_can_open(
    directory: Path, outside: Path, own_directories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has a configuration of its own; what answers at the socket is the hostile user's."""
    secret = write(outside / "authorized", f"{ALICE} secret\n", owner=0)
    sockets = own_directories / "run" / "cryprq"
    sockets.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_directories / ".config"))
    good("keygen")
    with Program("exit", "--listen", "127.0.0.1:0", "--authorized", str(secret)) as exit:
        exit.log.wait("ready: ")
        assert f"secret ({str(ALICE)[:8]}...)" in good("peers")
        os.chown(sockets, SERVICE, SERVICE)
        assert "permission denied" in refused("peers")
        assert "permission denied" in refused("invite", "laptop")
        assert exit.end(signal.SIGINT) == 0
    assert list(outside.iterdir()) == [secret]
