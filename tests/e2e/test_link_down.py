"""Without a link: requests wait for a bounded time and fail, and not one byte goes out directly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests.support.applications import Curl, Refused, connect, read_all, read_exactly, request, through
from tests.support.programs import Client, World, free_port, until
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho

WAIT = 1.0
UNCONFIGURED = 10.0
"""Seconds that the client would wait by default."""


@pytest.fixture
def alone(world: World) -> Client:
    """A client whose exit does not exist."""
    return world.client((world.identity("exit")[1], free_port()), {"wait_for_link": WAIT}, wait=False)


def takes_the_bounded_time(act: Callable[[], object]) -> None:
    start = time.monotonic()
    act()
    assert WAIT * 0.9 < time.monotonic() - start < UNCONFIGURED


def test_socks5(alone: Client, echo_target: TcpTarget) -> None:
    def ask() -> None:
        with pytest.raises(Refused) as refusal:
            through(alone.port, echo_target.port)
        assert refusal.value.code == 3

    takes_the_bounded_time(ask)
    assert echo_target.accepted == 0
    alone.says("no link to .*refused")


def test_socks4(alone: Client, echo_target: TcpTarget) -> None:
    with connect(alone.port) as sock:
        sock.sendall(b"\x04\x01" + echo_target.port.to_bytes(2) + b"\x7f\0\0\x01\0")
        takes_the_bounded_time(lambda: read_exactly(sock, 8)[1] == 91)
        assert sock.recv(1) == b""
    assert echo_target.accepted == 0


def test_udp(alone: Client, udp_echo: UdpEcho) -> None:
    with connect(alone.port) as sock:
        assert request(sock, 3, "0.0.0.0", 0)[0] == 3
        assert sock.recv(1) == b""


@pytest.mark.parametrize("tunnel", [False, True], ids=["http", "connect"])
def test_http(tunnel: bool, alone: Client, http: HttpTarget) -> None:
    method, to = (b"CONNECT", b"") if tunnel else (b"GET", b"http://")
    path = b"" if tunnel else b"/hello"
    with connect(alone.port) as sock:
        host = b"127.0.0.1:%d" % http.port
        sock.sendall(
            method
            + b" "
            + to
            + host
            + path
            + b" HTTP/1.1\r\nHost: "
            + host
            + b"\r\nConnection: close\r\n\r\n"
        )
        answers: list[bytes] = []
        takes_the_bounded_time(lambda: answers.append(read_all(sock)))
    head, _, text = answers[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"exit" in text
    assert not http.seen


def test_names_are_not_resolved(alone: Client, curl: Curl) -> None:
    """The fixture would find the error in the client's log."""
    curl.fails(97, "--socks5-hostname", f"127.0.0.1:{alone.port}", "http://site.test/")


def test_link_comes_in_time(world: World, echo_target: TcpTarget) -> None:
    """A request that waits is served as soon as the link is up."""
    port = free_port()
    client = world.client((world.identity("exit")[1], port), wait=False)
    client.says("no link to")
    with connect(client.port) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\x01" + echo_target.port.to_bytes(2) + b"early")
        assert read_exactly(sock, 2) == b"\x05\x00"
        world.exit(port=port)
        assert read_exactly(sock, 10)[:2] == b"\x05\x00"
        assert read_exactly(sock, 5) == b"early"


def test_the_same_failure_is_logged_once(world: World) -> None:
    client = world.client((world.identity("exit")[1], free_port()), {"wait_for_link": 0}, wait=False)
    client.says("no link to")
    for _ in range(3):
        with pytest.raises(Refused):
            through(client.port, 9)
    assert client.log.count("no link to") == 1


def test_application_gives_up_waiting(world: World, echo_target: TcpTarget) -> None:
    """Nothing is left of its request. (It may reach the target: an end before the reply can be a half-close.)"""
    port = free_port()
    client = world.client((world.identity("exit")[1], port), wait=False)
    with connect(client.port) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\x01" + echo_target.port.to_bytes(2))
        read_exactly(sock, 2)
        sock.shutdown(socket.SHUT_RDWR)
    exit = world.exit(port=port)
    client.wait_up()
    through(client.port, echo_target.port).close()
    until(lambda: exit.streams == client.streams == 0, "no stream is left")
