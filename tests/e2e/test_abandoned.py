"""Requests that their applications give up: in whatever state, nothing of them is left at client, exit and origin."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from cryprq_proxy.base.sockets import set_reset_on_close
from tests.support.applications import connect, read_exactly, through
from tests.support.background import Background
from tests.support.origins import Answer, Origin, deaf, never, slowly, stops_in_the_middle, without_end
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import HttpTarget

REQUESTS = 100
SECONDS = 5.0
"""The time after which nothing may be left."""


class Roles:
    """An exit and its client, with what each of them holds."""

    def __init__(self, exit: Exit, client: Client) -> None:
        self.exit = exit
        self.client = client
        self._files = {role: len(role.lasting_files()) for role in (exit, client)}

    def held(self) -> dict[str, int]:
        """Streams, connections and descriptors beyond those of a pair at rest."""
        found = {
            "streams of the client": self.client.streams,
            "connections of the client": self.client.status()["connections"]["open"],
            "streams of the exit": self.exit.streams,
            "targets of the exit": self.exit.status()["targets"],
        }
        for role, files in self._files.items():
            found[f"files of {role.name}"] = max(role.files() - files, 0)
        return {name: number for name, number in found.items() if number}


def left_after(roles: Roles, origin: Origin | None, seconds: float) -> dict[str, int]:
    """What is left as soon as nothing is left, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        held = roles.held()
        if origin is not None and origin.open:
            held["connections of the origin"] = origin.open
        if not held or time.monotonic() > deadline:
            return held
        time.sleep(0.05)


ROUTES = {"tunnel": {"connect": "exact"}, "early": {"connect": "eager"}, "direct": {"default": "direct"}}


@pytest.fixture(scope="module", params=ROUTES)
def roles(request: pytest.FixtureRequest, shared_world: World, http: HttpTarget) -> Roles:
    # Where applications are answered early, what they leave behind has the time of a target that does not answer.
    settings = {"limits": {"connect_timeout": 1.0}} if request.param == "early" else {}
    exit = shared_world.exit(settings, identity=f"exit-{request.param}")
    client = shared_world.client(exit, ROUTES[request.param])
    # The first stream makes what stays.
    with through(client.port, http.port):
        pass
    until(lambda: exit.streams == client.status()["connections"]["open"] == 0, "the first stream is gone")
    return Roles(exit, client)


@pytest.fixture
def origin(background: Background) -> Iterator[Callable[..., Origin]]:
    made: list[Origin] = []

    def make(answer: Answer, *, reads: bool = True) -> Origin:
        made.append(Origin(background, answer, reads=reads))
        return made[-1]

    yield make
    for target in made:
        target.close()


def get(port: int) -> bytes:
    return b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port


def post(port: int, size: int) -> bytes:
    return b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (port, size)


def give_up(socks: list[socket.socket], how: str) -> None:
    for sock in socks:
        if how == "reset":
            set_reset_on_close(sock)
        sock.close()


HOWS = pytest.mark.parametrize("how", ["close", "reset"])


@HOWS
@pytest.mark.parametrize("answer", [never, slowly, stops_in_the_middle, without_end])
def test_requests(roles: Roles, origin: Callable[..., Origin], answer: Answer, how: str) -> None:
    """Whether the origin has not begun to answer, answers slowly, or sends more than is read."""
    target = origin(answer)
    socks = [connect(roles.client.port) for _ in range(REQUESTS)]
    for sock in socks:
        sock.sendall(get(target.port))
    until(lambda: target.open == REQUESTS, "all requests have reached the origin")
    if answer is not never:
        for sock in socks:
            read_exactly(sock, 12)
    give_up(socks, how)
    assert left_after(roles, target, SECONDS) == {}


@HOWS
def test_uploads(roles: Roles, origin: Callable[..., Origin], how: str) -> None:
    """The origin reads a part of the body and no more, so the rest fills all buffers up to the application."""
    target = origin(never, reads=False)
    socks = [connect(roles.client.port) for _ in range(5)]
    for sock in socks:
        sock.sendall(post(target.port, 1 << 30))
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(1 << 27))
    give_up(socks, how)
    # An origin that reads nothing hears of no end.
    assert left_after(roles, None, SECONDS) == {}


@pytest.mark.parametrize(
    ("front", "how"),
    [
        *itertools.product(["http", "connect", "socks"], ["close", "reset"]),
        # What an application has sent before it closed, its target still gets.
        ("early", "reset"),
    ],
)
def test_while_the_target_is_being_connected(roles: Roles, front: str, how: str) -> None:
    with deaf() as port, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(roles.client.port)) for _ in range(20)]
        for sock in socks:
            if front == "http":
                sock.sendall(get(port))
            elif front == "connect":
                sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            else:
                sock.sendall(b"\x05\x01\x00")
                assert read_exactly(sock, 2) == b"\x05\x00"
                sock.sendall(b"\x05\x01\x00\x01\x7f\0\0\x01" + port.to_bytes(2))
                if front == "early":
                    sock.sendall(b"early")
        until(lambda: roles.client.status()["connections"]["open"] == len(socks), "all are being connected")
        give_up(socks, how)
        assert left_after(roles, None, SECONDS) == {}
