"""Processes without a free file descriptor: they go on, say so once, and answer the control socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from cryprq_proxy.process.control import query
from tests.support.applications import Refused, UdpApplication, connect, read_exactly, through
from tests.support.background import PATIENCE
from tests.support.programs import Role, World, free_port
from tests.support.targets import TcpTarget, UdpEcho

EXACT = {"connect": "exact"}
"""So that a refusal is told, and no connection ended for it."""
WARNING = "connections wait or fail: too many open files"


@contextlib.contextmanager
def exhausted(role: Role, port: int, connections: int) -> Iterator[None]:
    """So many connections to `port` find the process without a free descriptor, until two of them are closed."""
    with role.no_free_files(), contextlib.ExitStack() as stack:
        queued = [stack.enter_context(connect(port)) for _ in range(connections)]
        for sock in queued[:2]:
            sock.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        yield


def lines(role: Role) -> int:
    return role.log.count(WARNING)


def test_an_exit_without_descriptors(world: World, echo_target: TcpTarget) -> None:
    """Ten strangers cost one line and no link, and when there are descriptors again all is as before."""
    exit = world.exit()
    client = world.client(exit, EXACT)
    with through(client.port, echo_target.port) as sock:
        before = exit.written
        with exhausted(exit, exit.port, 10):
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            with pytest.raises(Refused):
                through(client.port, echo_target.port).close()
            # Not before: what answers it is free for a moment afterwards.
            assert exit.status()["targets"] == 1
            assert lines(exit) == 1
            assert exit.written - before < 50
        through(client.port, echo_target.port).close()
    client.wait_up()


def test_metrics_without_descriptors(world: World) -> None:
    """The web server accepts as the others do."""
    port = free_port()
    exit = world.exit({"metrics": f"127.0.0.1:{port}"})
    with exhausted(exit, port, 10):
        exit.status()
        assert lines(exit) == 1
    with connect(port) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
        assert read_exactly(sock, 15) == b"HTTP/1.1 200 OK"


def test_a_client_without_descriptors(world: World, echo_target: TcpTarget) -> None:
    _, client = world.pair()
    with exhausted(client, client.port, 10):
        assert client.up
        assert lines(client) == 1
    through(client.port, echo_target.port).close()


def test_dialling_without_descriptors_is_tried_again(world: World, echo_target: TcpTarget) -> None:
    """It had ended the client, with exit code 1."""
    port = free_port()
    client = world.client((world.identity("exit")[1], port), wait=False)
    client.says("no link to .*connection refused")
    with client.no_free_files():
        client.says("no link to .*too many open files")
        assert not client.up
    world.exit(port=port)
    client.wait_up()
    through(client.port, echo_target.port).close()


def test_udp_associations_leave_descriptors_to_others(world: World, udp_echo: UdpEcho) -> None:
    """Each counts as two, one for each family of addresses."""
    exit = world.exit(clients=("client", "other"), files=400)
    greedy, other = world.client(exit), world.client(exit, identity="other")
    with contextlib.ExitStack() as stack:
        held: list[UdpApplication] = []
        with pytest.raises(Refused):
            while len(held) < 400:
                held.append(UdpApplication(greedy.port))
                stack.callback(held[-1].close)
        assert len(held) == 27
        application = UdpApplication(other.port)
        stack.callback(application.close)
        application.send(b"x", udp_echo.port)
        assert application.receive()[1] == b"x"
        assert exit.status()["streams_refused"] == {"limit": 1}
    assert not lines(exit)


def test_one_peer_leaves_descriptors_to_others(world: World, echo_target: TcpTarget) -> None:
    """It takes its share for streams, and the exit goes on for another peer and for the control socket."""
    exit = world.exit(clients=("client", "other"), files=400)
    greedy, other = world.client(exit, EXACT), world.client(exit, identity="other")
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        with pytest.raises(Refused):
            while len(held) < 400:
                held.append(stack.enter_context(through(greedy.port, echo_target.port)))
        # Three quarters of 400 / 2 - 128.
        assert len(held) == 54
        for _ in range(10):
            stack.enter_context(through(other.port, echo_target.port))
        assert query(exit.control)["streams_refused"] == {"limit": 1}
    assert not lines(exit)
