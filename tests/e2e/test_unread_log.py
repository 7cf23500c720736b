"""A standard error that nobody reads, as of a container whose log driver hangs: it stops nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.control import query
from tests.support.applications import read_exactly, through
from tests.support.background import PATIENCE
from tests.support.config_files import Settings, toml
from tests.support.programs import World, free_port, until
from tests.support.targets import TcpTarget

type Start = Callable[[str, list[str], Settings], UnreadProcess]


class UnreadProcess:
    """A role whose standard error is a pipe of one page that is full."""

    def __init__(self, world: World, name: str, arguments: list[str], settings: Settings) -> None:
        self.control = world.directory / f"{name}.sock"
        file = world.directory / f"{name}.toml"
        file.write_text(toml({"control_socket": str(self.control), "log_level": "debug", **settings}))
        file.chmod(0o600)
        self.source, self._sink = os.pipe()
        fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, 4_096)
        self.process = subprocess.Popen(
            world.command(*arguments, "--config", str(file)), stderr=self._sink, env=world.environment
        )

    def answers(self) -> bool:
        with contextlib.suppress(CryprqError):
            query(self.control)
            return True
        return False

    def fill(self) -> None:
        """Each reload is a line in the log."""
        until(self.answers, "it listens")
        until(lambda: self._reload(), "its standard error is full")

    def _reload(self) -> bool:
        query(self.control, "reload", PATIENCE)
        return not select.select([], [self._sink], [], 0)[1]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.source)
        os.close(self._sink)


@pytest.fixture
def start(world: World) -> Iterator[Start]:
    started: list[UnreadProcess] = []

    def run(name: str, arguments: list[str], settings: Settings) -> UnreadProcess:
        started.append(UnreadProcess(world, name, arguments, settings))
        return started[-1]

    yield run
    for process in started:
        process.close()


def test_both_roles_go_on_without_a_reader(start: Start, world: World, echo_target: TcpTarget) -> None:
    (exit_key, exit_id), (client_key, client_id) = world.identity("exit"), world.identity("client")
    port, proxy = free_port(), free_port()
    exit = start(
        "exit",
        ["exit"],
        {
            "identity": str(exit_key),
            "listen": [f"127.0.0.1:{port}"],
            "allow": [client_id],
            "allow_private": True,
            "shutdown_grace": 0.5,
        },
    )
    exit.fill()
    client = start(
        "client",
        [],
        {
            "identity": str(client_key),
            "listen": f"127.0.0.1:{proxy}",
            "peer": f"cryprq://{exit_id}@127.0.0.1:{port}",
            "admin": "off",
        },
    )
    client.fill()
    # New links, streams and commands log more; none of it waits.
    for process in (client, exit):
        for _ in range(100):
            query(process.control, "reload", PATIENCE)
    with through(proxy, echo_target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
    assert query(exit.control)["targets"] <= 1
    assert [client.end(), exit.end()] == [0, 0]


def test_a_failed_start_ends_too(start: Start, world: World) -> None:
    """Nobody reads its last sentence either."""
    key, port = world.identity("exit")[0], free_port()
    settings = {"identity": str(key), "listen": [f"127.0.0.1:{port}"], "shutdown_grace": 0.5}
    first = start("first", ["exit"], settings)
    until(first.answers, "it listens")
    second = UnreadProcess(world, "second", ["exit"], settings)
    os.set_blocking(second._sink, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(second._sink, b"-" * 63 + b"\n")
    os.set_blocking(second._sink, True)
    try:
        assert second.process.wait(PATIENCE) == 1
    finally:
        second.close()
