"""Either process killed in the middle of everything, and what the other makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from applications import Refused, read_exactly, through
from programs import Exit, World, until
from targets import TcpTarget


def talk(port: int, target: TcpTarget) -> None:
    with through(port, target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"


def test_exit_killed_and_started_again(world: World, echo_target: TcpTarget) -> None:
    """The client is back by itself. Requests made meanwhile wait for it; streams of the old exit end with a reset."""
    exit, client = world.pair()
    old = through(client.port, echo_target.port)
    mark = client.written
    exit.kill()
    client.says("link down", since=mark)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(talk, client.port, echo_target) for _ in range(4)]
        until(lambda: client.status()["waiting"] == 4, "the requests wait")
        mark = client.written
        world.exit(port=exit.port)
        for request in waiting:
            request.result()
    client.says("link up", since=mark)
    with old, pytest.raises(ConnectionResetError):
        old.sendall(b"x")
        old.recv(1)
    talk(client.port, echo_target)
    until(lambda: client.streams == 0, "no stream is left")


def test_exit_stopped_and_started_again(world: World, echo_target: TcpTarget) -> None:
    """The same with SIGTERM: the exit says goodbye."""
    exit, client = world.pair()
    mark = client.written
    assert exit.stop() == 0
    client.says("link down.*shutting down", since=mark)
    world.exit(port=exit.port)
    client.says("link up", since=mark)
    talk(client.port, echo_target)


def test_exit_stops_gracefully(world: World, echo_target: TcpTarget) -> None:
    """Streams that are open may end; new ones are refused."""
    exit = world.exit({"shutdown_grace": 30})
    client = world.client(exit)
    with through(client.port, echo_target.port) as sock:
        exit.process.terminate()
        until(lambda: refused(client.port, echo_target.port), "new streams are refused")
        sock.sendall(b"still here")
        assert read_exactly(sock, 10) == b"still here"
        assert exit.process.poll() is None
    assert exit.wait_end() == 0


def refused(port: int, target: int) -> bool:
    try:
        through(port, target).close()
    except Refused:
        return True
    return False


def test_client_killed(world: World, echo_target: TcpTarget) -> None:
    """The exit serves the others, and keeps the session of the dead for a while: it cannot know."""
    exit = world.exit(clients=("client", "other"))
    client = world.client(exit)
    other = world.client(exit, identity="other")
    with through(client.port, echo_target.port), through(other.port, echo_target.port) as sock:
        dead = world.identity("client")[1]
        mark = exit.written
        client.kill()
        exit.says(f"link down: {dead}", since=mark)
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        links = {session["peer_id"]: session["link"] for session in exit.sessions}
        assert links == {dead: "down", world.identity("other")[1]: "up"}
        talk(other.port, echo_target)


def test_session_of_a_killed_client_expires(world: World, echo_target: TcpTarget) -> None:
    exit = world.exit({"limits": {"resume_seconds": 0.2}})
    client = world.client(exit)
    with through(client.port, echo_target.port):
        client.kill()
        until(lambda: not exit.sessions and not targets(exit), "the session and its target are gone")


def targets(exit: Exit) -> int:
    return int(exit.status()["targets"])
