"""Either process killed in the middle of everything, and what the other makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.applications import Refused, UdpApplication, connect, read_exactly, through
from tests.support.programs import Exit, World, until
from tests.support.targets import HttpTarget, TcpTarget


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
    client.says("link to the exit .* left, since it is about to stop", since=mark)
    world.exit(port=exit.port)
    client.says("link up", since=mark)
    talk(client.port, echo_target)


def test_exit_stops_gracefully(world: World, echo_target: TcpTarget) -> None:
    """Streams that are open may end; new ones wait for another exit, and not for ever."""
    exit = world.exit({"shutdown_grace": 30})
    client = world.client(exit, {"wait_for_link": 0.5})
    with through(client.port, echo_target.port) as sock:
        exit.process.terminate()
        client.says("link to the exit .* left, ")
        with pytest.raises(Refused) as refusal:
            through(client.port, echo_target.port)
        assert refusal.value.code == 3
        sock.sendall(b"still here")
        assert read_exactly(sock, 10) == b"still here"
        assert exit.process.poll() is None
    assert exit.wait() == 0


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_client_stopped_in_the_middle_of_everything(
    up: bool, world: World, http: HttpTarget, echo_target: TcpTarget
) -> None:
    """Negotiations, requests that wait, downloads, kept HTTP connections, datagrams: all end, and nothing complains."""
    exit, client = world.pair()
    url = b"http://127.0.0.1:%d" % http.port
    with ExitStack() as stack:
        negotiating = [stack.enter_context(connect(client.port)) for _ in range(4)]
        for sock, data in zip(negotiating, (b"", b"\x05", b"GET", b"\x05\x01\x00"), strict=True):
            sock.sendall(data)
        udp = UdpApplication(client.port)
        stack.callback(udp.close)
        kept = stack.enter_context(connect(client.port))
        kept.sendall(b"GET " + url + b"/hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(10)
        download = stack.enter_context(connect(client.port))
        download.sendall(b"GET " + url + b"/bytes?size=500000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        read_exactly(download, 100_000)
        tunnel = stack.enter_context(through(client.port, echo_target.port))
        tunnel.sendall(b"x" * 1_000)
        if not up:
            exit.kill()
            until(lambda: not client.up, "the link is down")
            for start in (
                b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\x01\0\x50",
                b"GET " + url + b"/hello HTTP/1.0\r\n\r\n",
            ):
                stack.enter_context(connect(client.port)).sendall(start)
            until(lambda: client.status()["waiting"] == 2, "two requests wait")
        assert client.stop() == 0
    if up:
        until(lambda: not exit.sessions and not targets(exit), "the exit has nothing left of it")


def test_exit_stopped_in_the_middle_of_everything(
    world: World, http: HttpTarget, echo_target: TcpTarget
) -> None:
    """The grace is over before the download is: applications see resets, not early ends."""
    exit, client = world.pair()
    with (
        through(client.port, http.port) as download,
        through(client.port, echo_target.port) as tunnel,
        connect(exit.port) as stranger,
    ):
        udp = UdpApplication(client.port)
        download.sendall(b"GET /bytes?size=500000000 HTTP/1.0\r\n\r\n")
        read_exactly(download, 100_000)
        stranger.sendall(b"\x05")
        assert exit.stop() == 0
        for sock in (download, tunnel):
            with pytest.raises(ConnectionResetError):
                while sock.recv(1 << 20):
                    pass
        udp.close()
    until(lambda: client.streams == 0, "no stream is left")


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
