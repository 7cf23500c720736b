"""`join` beside a client that runs, which takes the exit over at once, or not, and then join says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pairs import new_identity
from tests.support.processes import Program, call

pytestmark = pytest.mark.process


@pytest.fixture
def invite(tmp_path: Path) -> Iterator[str]:
    """Of an exit that runs."""
    config = tmp_path / "exit.toml"
    config.write_text('identity = "exit.key"\nlisten = "127.0.0.1:0"\ncontrol_socket = "e.sock"\n')
    with Program("exit", "--config", str(config)) as exit:
        exit.log.wait("ready: ")
        yield call("invite", "laptop", "--config", str(config)).stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A client's, with another exit, where nothing listens."""
    file = tmp_path / "client.toml"
    file.write_text(
        f'identity = "client.key"\nlisten = "127.0.0.1:0"\nadmin = "off"\ncontrol_socket = "c.sock"\n'
        f'peer = "cryprq://{new_identity(tmp_path / "other.key")}@127.0.0.1:1"\n'
    )
    return file


@contextmanager
def client(file: Path, *flags: str) -> Iterator[Program]:
    with Program("--config", str(file), *flags) as client:
        client.log.wait("ready: ")
        yield client


def join(invite: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Whatever the client that runs says, the exit has let this machine in, and the file has the exit."""
    done = call("join", invite, "--name", "two", "--config", str(file))
    assert done.stdout.startswith("joined: ")
    assert invite.partition("#")[0] in file.read_text()
    return done


def test_the_client_that_runs_takes_the_exit_over_at_once(invite: str, file: Path) -> None:
    with client(file) as running:
        done = join(invite, file)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(
            "\nthe client that runs uses it from now on: 0 rules, 0 listed names, 2 exits (new: two)\n"
            f"\nSee through which exit it goes:\n  {sys.executable} -m cryprq_proxy check --config {file}\n"
            "or open http://cryprq.test/ in a browser that uses it\n"
        )
        running.log.wait("two: link up|exit two answers")


def test_an_exit_that_has_moved_is_used_at_its_new_address(invite: str, file: Path) -> None:
    """The client that runs knows its old address only, where nobody answers."""
    text = file.read_text()
    url, dead = invite.partition("#")[0], f"{invite.partition('@')[0]}@127.0.0.1:1"
    file.write_text(f'{text.partition("peer")[0]}peer = "{dead}"\n')
    with client(file) as running:
        running.log.wait("link down|cannot be reached|not reached|no link")
        done = call("join", invite, "--config", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        assert file.read_text() == f'{text.partition("peer")[0]}peer = ["{url}", "{dead}"]\n'
        assert (
            "\nthe exit 127.0.0.1 has a further address, which has just answered; if it is no longer at 127.0.0.1:1, "
            f"take that out of the file\nthe exit is in {file}\n"
        ) in done.stdout
        assert "the client that runs uses it from now on: " in done.stdout
        running.log.wait("link up")


def test_a_client_that_cannot_take_it_over_says_why(invite: str, file: Path) -> None:
    with client(file) as running:
        file.write_text(file.read_text() + '[[rule]]\nto = "block"\nlists = ["none.txt"]\n')
        done = join(invite, file)
        assert done.returncode == 0, "it has joined"
        assert done.stderr.startswith("note: the client that runs did not take it over: ")
        assert "everything stays as it was: " in done.stderr and "none.txt" in done.stderr
        assert done.stderr.endswith("; mend that, and it does so by itself\n")
        assert done.stderr.count("\n") == 1
        assert done.stdout.endswith(f"\nthe exit is in {file}\n")
        (file.parent / "none.txt").write_text("listed.example\n")
        running.log.wait(r"reloaded: 1 rule, 1 listed name, 2 exits \(new: two\)")


def test_a_client_whose_flags_name_its_exit_keeps_to_that(invite: str, file: Path, tmp_path: Path) -> None:
    with client(file, "--peer", f"cryprq://{new_identity(tmp_path / 'third.key')}@127.0.0.1:1"):
        done = join(invite, file)
        assert done.stderr == (
            "note: the client that runs was started with --peer, and keeps to the exits that this names: stop it, and "
            "start it without --peer\n"
        )


def test_a_client_with_another_file_is_left_alone(invite: str, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(file.read_text().replace("client.key", "otherclient.key"))
    with client(file):
        done = join(invite, other)
        assert done.returncode == 0
        assert f"Now start the proxy:\n  {sys.executable} -m cryprq_proxy --config {other}\n" in done.stdout
