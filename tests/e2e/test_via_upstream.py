"""The client dials its exit through an upstream SOCKS5 proxy: asyncio-socks-server, and a client of our own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.applications import read_exactly, through
from tests.support.programs import Program, World, free_port, until
from tests.support.targets import TcpTarget


@pytest.fixture
def upstream(world: World) -> Callable[..., tuple[Program, int]]:
    """Starts asyncio-socks-server; its port."""

    def start(*options: str) -> tuple[Program, int]:
        port = free_port()
        arguments = ["-m", "asyncio_socks_server", "--host", "127.0.0.1", "--port", str(port), *options]
        program = Program("upstream", arguments, world.environment, Path(world.directory))
        world.programs.append(program)
        until(lambda: answers(port), "the upstream proxy is ready")
        return program, port

    return start


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def works(port: int, target: TcpTarget) -> None:
    with through(port, target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"


def test_without_password(
    world: World, upstream: Callable[..., tuple[Program, int]], echo_target: TcpTarget
) -> None:
    _, port = upstream()
    exit = world.exit()
    works(world.client(exit, {"upstream": f"socks5://127.0.0.1:{port}"}).port, echo_target)


def test_with_password(
    world: World, upstream: Callable[..., tuple[Program, int]], echo_target: TcpTarget
) -> None:
    _, port = upstream("--auth", "alice:secret")
    exit = world.exit()
    works(world.client(exit, {"upstream": f"socks5://alice:secret@127.0.0.1:{port}"}).port, echo_target)


@pytest.mark.parametrize("user", ["alice:wrong@", ""])
def test_wrong_password(user: str, world: World, upstream: Callable[..., tuple[Program, int]]) -> None:
    """The log says whose fault it is, without the password; nothing reaches the exit."""
    _, port = upstream("--auth", "alice:secret")
    exit = world.exit()
    client = world.client(exit, {"upstream": f"socks5://{user}127.0.0.1:{port}"}, wait=False)
    client.says(f"no link to .*the upstream proxy at 127.0.0.1:{port} did not connect")
    assert "wrong" not in client.log
    assert "handshake" not in exit.log


def test_no_upstream(world: World) -> None:
    """It is not there: the exit is not dialled without it."""
    exit = world.exit()
    client = world.client(exit, {"upstream": f"socks5://127.0.0.1:{free_port()}"}, wait=False)
    client.says("no link to .*the upstream proxy")
    assert "handshake" not in exit.log


def test_upstream_killed(world: World, upstream: Callable[..., tuple[Program, int]]) -> None:
    program, port = upstream()
    client = world.client(world.exit(), {"upstream": f"socks5://127.0.0.1:{port}"})
    mark = client.written
    program.kill()
    client.says("link down", since=mark)
    client.says("no link to .*the upstream proxy", since=mark)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_link_within_a_link(scheme: str, world: World, echo_target: TcpTarget) -> None:
    """The upstream is another client of ours, with a password; it resolves nothing either."""
    outer = world.client(world.exit(), {"user": "alice:secret"})
    inner_exit = world.exit(identity="inner-exit")
    inner = world.client(inner_exit, {"upstream": f"{scheme}://alice:secret@127.0.0.1:{outer.port}"})
    works(inner.port, echo_target)
    assert outer.streams == 1
