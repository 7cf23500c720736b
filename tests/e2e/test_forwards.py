"""Local forwards of a real client, by its configuration, the command line and a reload."""

from __future__ import annotations

import hashlib
import socket

import pytest

from cryprq_proxy.process.control import query
from tests.support.applications import connect, read_all, read_exactly
from tests.support.config_files import toml
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


def echoes(port: int) -> socket.socket:
    """A connection that leads to the echo."""
    sock = connect(port)
    sock.sendall(b"hello")
    assert read_exactly(sock, 5) == b"hello"
    return sock


def test_a_reload_opens_turns_and_closes_them_beside_those_of_the_command_line(
    world: World, target: TcpTarget, echo_target: TcpTarget
) -> None:
    flag, old, turned, new = (free_port() for _ in range(4))
    echo = f"127.0.0.1:{echo_target.port}"
    client = world.client(
        world.exit(),
        {"forward": [{"listen": old, "to": echo}, {"listen": turned, "to": f"127.0.0.1:{target.port}"}]},
        flags=("-L", f"{flag}:{echo}"),
    )
    file = world.directory / f"{client.name}.toml"
    text = file.read_text()
    with echoes(flag) as by_flag, echoes(old) as by_old, socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        tables = [{"listen": port, "to": echo} for port in (turned, new, taken)]
        file.write_text(text.partition("[[forward]]")[0] + toml({"forward": tables}))
        said = query(client.control, "reload")["reloaded"]
        assert said.endswith(
            f"1 exit, 3 forwards (new: 127.0.0.1:{new}; removed: 127.0.0.1:{old}; other target: 127.0.0.1:{turned})"
            f"; no forward to {echo}: 127.0.0.1:{taken} is in use by another program; stop that one, or give another "
            "address with -L or [[forward]]"
        )
        for port in (flag, turned, new):
            echoes(port).close()
        with pytest.raises(ConnectionRefusedError):
            connect(old)
        for sock in (by_flag, by_old):
            sock.sendall(b"still here")
            assert read_exactly(sock, 10) == b"still here"
    assert query(client.control, "reload")["reloaded"].endswith(f"4 forwards (new: 127.0.0.1:{taken})")
    echoes(taken).close()
    until(lambda: client.streams == 0, "the streams are gone")
