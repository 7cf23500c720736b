"""How one side of a connection ends, and what the other side sees: an end is an end, and a reset is a reset.

For each front, by way of the exit, the same with applications that are answered early, and directly, in both
directions. That nothing is left behind is checked, too; what
is given up before it has begun is in test_abandoned.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from cryprq_proxy.base.sockets import set_reset_on_close
from tests.support.applications import Curl, connect, read_exactly, through
from tests.support.background import PATIENCE
from tests.support.programs import Client, Exit, World, until

PART: Final = bytes(40_000)
CLOSE_DELIMITED: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


class Target:
    """A listening socket of the test; `accept` gives the next connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE)
        self.port: int = self._server.getsockname()[1]

    def accept(self) -> socket.socket:
        sock, _ = self._server.accept()
        sock.settimeout(PATIENCE)
        return sock

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


ROUTES: Final = {
    "tunnel": {"connect": "exact"},
    "early": {"connect": "eager"},
    "direct": {"default": "direct"},
}


@pytest.fixture(scope="module", params=ROUTES)
def roles(request: pytest.FixtureRequest, shared_world: World) -> tuple[Exit, Client]:
    exit = shared_world.exit(identity=f"exit-{request.param}")
    return exit, shared_world.client(exit, ROUTES[request.param])


def by_socks(client: Client, target: Target) -> socket.socket:
    return through(client.port, target.port)


def by_connect(client: Client, target: Target) -> socket.socket:
    sock = connect(client.port)
    sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target.port)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    return sock


FRONTS = pytest.mark.parametrize("front", [by_socks, by_connect])
type Front = Callable[[Client, Target], socket.socket]


def finish(sock: socket.socket, how: str) -> None:
    """End the direction of `sock` ("end") or break the connection ("reset")."""
    if how == "end":
        sock.shutdown(socket.SHUT_WR)
    else:
        set_reset_on_close(sock)
        sock.close()


def seen(sock: socket.socket) -> tuple[int, str]:
    """How many bytes come, and how it ends."""
    size = 0
    try:
        while part := sock.recv(65_536):
            size += len(part)
    except ConnectionResetError:
        return size, "reset"
    return size, "end"


def nothing_left(exit: Exit, client: Client) -> None:
    until(lambda: exit.streams == client.status()["connections"]["open"] == 0, "the stream is gone", 5.0)


HOWS = pytest.mark.parametrize("how", ["end", "reset"])


@FRONTS
@HOWS
@pytest.mark.parametrize("first", ["application", "target"])
@pytest.mark.parametrize("after", [0, len(PART)])
def test_relaying(
    roles: tuple[Exit, Client], target: Target, front: Front, first: str, how: str, after: int
) -> None:
    """The side that is not `first` sees the same end, and then may answer it by its own."""
    application = front(roles[1], target)
    server = target.accept()
    one, other = (application, server) if first == "application" else (server, application)
    with application, server:
        one.sendall(PART[:after])
        if how == "end":
            finish(one, how)
            assert seen(other) == (after, "end")
            other.sendall(PART)
            finish(other, "end")
            assert seen(one) == (len(PART), "end")
        else:
            assert len(read_exactly(other, after)) == after
            finish(one, how)
            assert seen(other) == (0, "reset")
    nothing_left(*roles)


@FRONTS
@pytest.mark.parametrize("first", ["application", "target"])
def test_a_reset_behind_an_end(roles: tuple[Exit, Client], target: Target, front: Front, first: str) -> None:
    """One side has ended its direction, the other one breaks off in the middle of its answer."""
    application = front(roles[1], target)
    server = target.accept()
    one, other = (application, server) if first == "application" else (server, application)
    with application, server:
        finish(one, "end")
        assert seen(other) == (0, "end")
        other.sendall(PART)
        assert len(read_exactly(one, len(PART))) == len(PART)
        finish(other, "reset")
        assert seen(one) == (0, "reset")
    nothing_left(*roles)


@HOWS
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x05\x01",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01",
        b"GET http://127.0.0.1/ HT",
        b"GET http://127.0.0.1/ HTTP/1.1\r\nHost:",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n",
    ],
)
def test_before_a_request_is_complete(pair: tuple[Exit, Client], said: bytes, how: str) -> None:
    """The front ends its side, too. A head of HTTP that is cut is answered first."""
    _, client = pair
    before = len(client.lasting_files())
    with connect(client.port) as application:
        application.sendall(said)
        until(lambda: client.files() > before, "the connection is accepted")
        finish(application, how)
        if how == "end":
            seen(application)
        until(lambda: client.files() <= before, "its descriptor is free", 5.0)


@FRONTS
@HOWS
def test_before_the_target_is_connected(
    roles: tuple[Exit, Client], target: Target, front: Front, how: str
) -> None:
    """What was sent behind the request reaches its target, with the end."""
    with connect(roles[1].port) as application:
        if front is by_socks:
            address = b"\x01\x7f\0\0\x01" + target.port.to_bytes(2)
            application.sendall(b"\x05\x01\x00" + b"\x05\x01\x00" + address + PART)
        else:
            application.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target.port + PART)
        if how == "end":
            finish(application, how)
            with target.accept() as server:
                assert seen(server) == (len(PART), "end")
                finish(server, "end")
                assert seen(application)[1] == "end"
        else:
            with target.accept() as server:
                finish(application, how)
                assert seen(server)[1] == "reset"
    nothing_left(*roles)


# --- HTTP requests ---


def ask(client: Client, target: Target, version: bytes = b"1.1", fields: bytes = b"") -> socket.socket:
    sock = connect(client.port)
    request = b"GET http://127.0.0.1:%d/ HTTP/%b\r\nHost: x\r\n%b\r\n" % (target.port, version, fields)
    sock.sendall(request)
    return sock


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    return head


@HOWS
def test_an_origin_that_ends_without_an_answer(roles: tuple[Exit, Client], target: Target, how: str) -> None:
    with ask(roles[1], target) as application, target.accept() as server:
        read_head(server)
        finish(server, how)
        server.close()
        assert read_head(application).startswith(b"HTTP/1.1 502 ")
    nothing_left(*roles)


def read_chunks(sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes of a chunked body, in however many chunks they come."""
    data = b""
    while len(data) < size:
        line = b""
        while not line.endswith(b"\r\n"):
            line += read_exactly(sock, 1)
        data += read_exactly(sock, int(line, 16))
        assert read_exactly(sock, 2) == b"\r\n"
    return data


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    ("framing", "how", "complete"),
    [
        (b"Connection: close\r\n", "end", True),
        (b"Connection: close\r\n", "reset", False),
        (b"Content-Length: 100000\r\n", "end", False),
        (b"Content-Length: 100000\r\n", "reset", False),
        (b"Transfer-Encoding: chunked\r\n", "end", False),
        (b"Transfer-Encoding: chunked\r\n", "reset", False),
    ],
)
def test_an_origin_that_ends_in_its_answer(
    roles: tuple[Exit, Client], target: Target, version: bytes, framing: bytes, how: str, complete: bool
) -> None:
    """An HTTP/1.0 client gets a body of chunks as one that ends with the connection."""
    chunked = framing.startswith(b"Transfer")
    with ask(roles[1], target, version) as application, target.accept() as server:
        read_head(server)
        server.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        server.sendall(b"%x\r\n%b\r\n" % (len(PART), PART) if chunked else PART)
        head = read_head(application)
        assert head.startswith(b"HTTP/1.1 200 ")
        if b"chunked" in head:
            assert read_chunks(application, len(PART)) == PART
        else:
            read_exactly(application, len(PART))
        finish(server, how)
        server.close()
        if complete and b"chunked" in head:
            assert read_exactly(application, 5) == b"0\r\n\r\n"
        else:
            assert seen(application)[1] == ("end" if complete else "reset")
    nothing_left(*roles)


def test_an_upload_that_is_cut(roles: tuple[Exit, Client], target: Target) -> None:
    """The origin sees no end in order, whose bytes it could take for the whole."""
    with connect(roles[1].port) as application:
        head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        application.sendall(head % target.port + PART)
        with target.accept() as server:
            read_head(server)
            read_exactly(server, len(PART))
            application.close()
            assert seen(server) == (0, "reset")
    nothing_left(*roles)


def test_a_request_that_is_given_up_ends_in_order(roles: tuple[Exit, Client], target: Target) -> None:
    """The origin has all of it, and sees what it would see of the application itself."""
    ask(roles[1], target).close()
    with target.accept() as server:
        read_head(server)
        assert seen(server) == (0, "end")
    nothing_left(*roles)


def test_an_application_that_ends_its_half_gets_its_answer(
    roles: tuple[Exit, Client], target: Target
) -> None:
    """However late it comes."""
    with ask(roles[1], target) as application, target.accept() as server:
        application.shutdown(socket.SHUT_WR)
        read_head(server)
        server.settimeout(2.5)
        with pytest.raises(TimeoutError):
            server.recv(1)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert read_head(application).startswith(b"HTTP/1.1 200 ")
        assert application.recv(10) == b"ok"
        assert seen(application) == (0, "end")
    nothing_left(*roles)


@HOWS
def test_an_origin_that_ends_between_two_requests(
    roles: tuple[Exit, Client], target: Target, how: str
) -> None:
    with ask(roles[1], target) as application, target.accept() as server:
        read_head(server)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        read_head(application)
        read_exactly(application, 2)
        assert roles[1].status()["connections"]["open"] == 1
        finish(server, how)
        nothing_left(*roles)


# --- the proxy itself ends ---


def end_client(exit: Exit, client: Client) -> None:
    assert client.stop(PATIENCE) == 0


def kill_client(exit: Exit, client: Client) -> None:
    client.kill()


def end_exit(exit: Exit, client: Client) -> None:
    assert exit.stop(PATIENCE) == 0


@pytest.mark.parametrize("end", [end_client, kill_client, end_exit])
@pytest.mark.parametrize("front", ["http", "socks", "connect"])
def test_a_body_that_is_cut_by_the_proxy(
    world: World, curl: Curl, target: Target, front: str, end: Callable[[Exit, Client], None]
) -> None:
    """`curl -0` takes a body without a length for complete when the connection ends in order."""
    exit, client = world.pair()
    proxy = f"http://127.0.0.1:{client.port}"
    way = {
        "http": ["-x", proxy],
        "socks": ["-x", proxy.replace("http", "socks5h")],
        "connect": ["-p", "-x", proxy],
    }[front]
    url = f"http://127.0.0.1:{target.port}/"
    with curl.started("-0", *way, "-o", "got", url) as running, target.accept() as server:
        read_head(server)
        server.sendall(CLOSE_DELIMITED + PART)
        until(lambda: curl.size("got") == len(PART), "curl has what was sent")
        end(exit, client)
        # "Failure in receiving network data."
        assert running.wait(PATIENCE) == 56
        if end is not kill_client:  # else the exit keeps the session for a while
            assert seen(server) == (0, "reset")


@pytest.mark.parametrize(
    ("route", "killed"), [("tunnel", "client"), ("tunnel", "exit"), ("direct", "client")]
)
def test_an_upload_that_is_cut_by_the_proxy(world: World, target: Target, route: str, killed: str) -> None:
    """Its target does not take what has come for the whole."""
    exit = world.exit()
    client = world.client(exit, {"default": route})
    with by_socks(client, target) as application, target.accept() as server:
        application.sendall(PART)
        read_exactly(server, len(PART))
        (client if killed == "client" else exit).kill()
        if (route, killed) == ("tunnel", "client"):
            assert exit.stop(PATIENCE) == 0  # else it keeps the session for a while
        assert seen(server) == (0, "reset")
        if killed == "client":
            assert seen(application) == (0, "reset")
