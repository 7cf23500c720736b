"""`cryprq-proxy connect` as other programs use it: in a pipeline, and under a real ssh to a real sshd."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.background import PATIENCE
from tests.support.programs import Client, Exit, World, free_port, until
from tests.support.real_server import RealServer
from tests.support.targets import BLOCK, EndFirst, Manner, TcpTarget, answer_after_end

ROOT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")

type Serve = Callable[[Manner], TcpTarget]


def start(
    world: World, client: Client, port: int, *more: str, host: str = "site.test"
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        world.command(
            "connect", host, str(port), "--config", str(world.directory / f"{client.name}.toml"), *more
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=world.environment,
    )


def say(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def hear(process: subprocess.Popen[bytes], size: int = -1) -> bytes:
    """So many bytes, or all until the end."""
    assert process.stdout is not None
    return process.stdout.read(size)


def run(world: World, client: Client, port: int, data: bytes = b"", *more: str) -> tuple[int, bytes, str]:
    """Exit code, what came, and what was said about it."""
    process = start(world, client, port, *more)
    shown, said = process.communicate(data, PATIENCE)
    return process.returncode, shown, said.decode()


def test_the_input_s_end_comes_first(shared_world: World, exit: Exit, client: Client, serve: Serve) -> None:
    """The target answers after it has heard the end, and what it hears is every byte."""
    data = BLOCK * 8
    told = f"{hashlib.sha256(data).hexdigest()} {len(data)}".encode()
    assert run(shared_world, client, serve(answer_after_end).port, data) == (0, told, "")
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_the_target_s_end_comes_first(shared_world: World, exit: Exit, client: Client, serve: Serve) -> None:
    manner = EndFirst()
    with start(shared_world, client, serve(manner).port) as process:
        assert hear(process) == b"bye"
        say(process, BLOCK)
        assert process.stdin is not None
        process.stdin.close()
        assert manner.wait() == BLOCK
        assert process.wait(PATIENCE) == 0
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_everything_comes_back(shared_world: World, client: Client, echo_target: TcpTarget) -> None:
    data = BLOCK * 8
    assert run(shared_world, client, echo_target.port, data) == (0, data, "")


def test_a_reader_that_goes_away(
    shared_world: World, exit: Exit, client: Client, echo_target: TcpTarget
) -> None:
    with start(shared_world, client, echo_target.port) as process:
        say(process, b"x")
        assert hear(process, 1) == b"x"
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_killed(shared_world: World, exit: Exit, client: Client, echo_target: TcpTarget) -> None:
    with start(shared_world, client, echo_target.port) as process:
        say(process, b"x")
        assert hear(process, 1) == b"x"
        process.send_signal(signal.SIGKILL)
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_why_a_target_is_not_connected(shared_world: World, client: Client) -> None:
    port = free_port()
    code, shown, said = run(shared_world, client, port)
    assert (code, shown) == (1, b"")
    assert said == (
        f"cryprq-proxy: site.test:{port}: the target refused the connection. Check the port, and whether the server "
        "runs\n"
    )


def test_the_configured_password_is_used(world: World, echo_target: TcpTarget) -> None:
    client = world.client(world.exit(), {"user": "alice:secret"})
    assert run(world, client, echo_target.port, b"hello") == (0, b"hello", "")


def test_a_password_that_is_not_there(world: World, tmp_path: Path, echo_target: TcpTarget) -> None:
    """As for another user of the machine, who cannot read the configuration."""
    client = world.client(world.exit(), {"user": "alice:secret"})
    own = tmp_path / "own.toml"
    own.write_text(f'peer = "cryprq://{client.peer_id}@127.0.0.1"\nlisten = {client.port}\n')
    ask = [*world.command("connect", "site.test", str(echo_target.port)), "--config", str(own)]
    done = subprocess.run(ask, capture_output=True, text=True, cwd=ROOT, env=world.environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "asks for a user and a password, which the configuration does not have" in done.stderr
    login = tmp_path / "login"
    login.write_text("alice:secret\n")
    login.chmod(0o600)
    ask += ["--user-file", str(login)]
    done = subprocess.run(
        ask, input="hi", capture_output=True, text=True, cwd=ROOT, env=world.environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi", "")


def test_closed_streams_are_like_the_null_device(shared_world: World, client: Client) -> None:
    command = shared_world.command("connect", "--proxy", "127.0.0.1:1", "site.test", "1")
    for closing in ("<&-", ">&-", "<&- >&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {closing}', "bash", *command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=shared_world.environment,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "cryprq-proxy: no proxy answers at 127.0.0.1:1 (connection refused): start the client, or say with --proxy "
            "where it listens\n"
        )


# --- ssh ---


class Sshd(RealServer):
    """An sshd of its own on loopback that lets in who runs the test."""

    def __init__(self, directory: Path) -> None:
        assert SSHD is not None
        port = free_port()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True
            )
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {directory}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {directory}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
        )
        serve = [SSHD, "-D", "-e", "-f", str(directory / "sshd_config")]
        if os.geteuid() == 0:
            # As root it wants a directory of its own in /run: in a mount namespace, so that none is left.
            inside = 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"'
            serve = ["unshare", "--mount", "sh", "-c", inside, "sh", *serve]
        super().__init__(serve, port, directory / "sshd.log")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path)
    yield server
    server.stop()


@pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="no sshd is installed; on Debian: apt-get install openssh-server",
)
def test_ssh_as_the_page_says(world: World, tmp_path: Path, sshd: Sshd) -> None:
    """The lines of docs/applications.md, with the program by its name in PATH and the client's socket at its default
    place: the link's name for the host, megabytes both ways, and the exit code of the far command."""
    runtime = tmp_path / "run"
    control = runtime / "cryprq" / "client.sock"
    client = world.client(world.exit(), {"control_socket": str(control)}, wait=False)
    client.control = control
    page = (ROOT / "docs" / "applications.md").read_text()
    found = re.search(r"^    Host \*\.example\n( +ProxyCommand .*)\n", page, re.MULTILINE)
    assert found
    (tmp_path / "ssh_config").write_text(
        f"Host *.test\n{found[1]}\nHost *\n  IdentityFile {tmp_path}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {tmp_path}/known\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n"
    )
    program = tmp_path / "bin" / "cryprq-proxy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(world.command())} "$@"\n')
    program.chmod(0o755)
    environment = {
        **world.environment,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(runtime),
    }
    done = subprocess.run(
        [
            "ssh",
            "-F",
            f"{tmp_path}/ssh_config",
            f"ssh://{getpass.getuser()}@site.test:{sshd.port}",
            "cat; exit 3",
        ],
        input=BLOCK * 4,
        capture_output=True,
        env=environment,
        timeout=PATIENCE,
        check=False,
    )
    said = done.stderr.decode()
    assert (done.returncode, done.stdout == BLOCK * 4) == (3, True), said
    assert "cryprq-proxy" not in said
    until(lambda: client.streams == 0, "the stream is gone")
