"""Local forwards of a real client, by its configuration."""

from __future__ import annotations

import hashlib
import socket

import pytest

from tests.support.applications import connect, read_all
from tests.support.programs import World, free_port, until
from tests.support.targets import BLOCK, TcpTarget, answer_after_end


@pytest.fixture
def target(serve: object) -> TcpTarget:
    return serve(answer_after_end)  # type: ignore[operator,no-any-return]


def test_a_forward_carries_both_directions_and_their_ends(world: World, target: TcpTarget) -> None:
    to_target, to_nobody, port = free_port(), free_port(), free_port()
    exit = world.exit()
    client = world.client(
        exit,
        {
            "connect": "exact",
            "forward": [
                {"listen": to_target, "to": f"site.test:{target.port}"},
                {"listen": f"127.0.0.1:{to_nobody}", "to": f"127.0.0.1:{port}"},
            ],
        },
    )
    with connect(to_target) as sock:
        sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == f"{hashlib.sha256(BLOCK).hexdigest()} {len(BLOCK)}".encode()
    with connect(to_nobody) as sock, pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert client.status()["forwards"] == [
        {"listen": f"127.0.0.1:{to_target}", "to": f"site.test:{target.port}", "connections": 1},
        {"listen": f"127.0.0.1:{to_nobody}", "to": f"127.0.0.1:{port}", "connections": 1},
    ]
    until(lambda: exit.streams == client.streams == 0, "the streams are gone")
