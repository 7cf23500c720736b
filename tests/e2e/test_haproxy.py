"""The exit behind a real HAProxy, set up as configs/haproxy.cfg says: whose address counts, and what has no header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.applications import read_exactly, through
from tests.support.background import Background
from tests.support.config_files import Settings
from tests.support.haproxy import HAPROXY, NOT_INSTALLED, PROXY, connect, in_front_of
from tests.support.load import Load, Talk
from tests.support.programs import Exit, World, until
from tests.support.proxy_headers import proxy_header
from tests.support.strangers import first_flight, silence
from tests.support.targets import TcpTarget

OTHER = "127.0.0.9"
RISE = 2
"""Checks after which a server counts as there again (`rise`)."""
PROMISED = 10.0
"""Seconds that a request waits for the link, as docs/applications.md says."""

pytestmark = pytest.mark.skipif(HAPROXY is None, reason=NOT_INSTALLED)


@pytest.fixture
def exit(world: World) -> Exit:
    return world.exit({"proxy_protocol": [PROXY], "limits": {"handshakes_per_minute": 30}})


@pytest.fixture
def haproxy(tmp_path: Path, exit: Exit) -> Iterator[int]:
    with in_front_of(tmp_path, exit) as haproxy:
        yield haproxy.port


def test_a_link_through_haproxy(world: World, exit: Exit, haproxy: int, echo_target: TcpTarget) -> None:
    client = world.client(exit, through=haproxy)
    exit.says(r"link up: \S+ from 127\.0\.0\.1,")
    with through(client.port, echo_target.port) as sock:
        for _ in range(20):
            block = os.urandom(100_000)
            sock.sendall(block)
            assert read_exactly(sock, len(block)) == block


def test_the_limits_are_about_the_client(world: World, tmp_path: Path) -> None:
    """Garbage from one address behind the proxy shuts that one out, and nobody else."""
    # Few, so that none comes back before the end.
    exit = world.exit({"proxy_protocol": [PROXY], "limits": {"handshakes_per_minute": 2}})
    with in_front_of(tmp_path, exit) as haproxy:
        for _ in range(2):
            with connect(haproxy.port, OTHER) as sock:
                sock.sendall(b"\xff" * 100)
                silence(sock)
        exit.says(rf"a handshake from {OTHER} failed")
        with connect(haproxy.port, OTHER) as sock:
            sock.sendall(first_flight(exit.peer_id))
            silence(sock)
        world.client(exit, through=haproxy.port)


def test_health_checks_count_for_the_proxy(world: World, tmp_path: Path) -> None:
    """HAProxy says LOCAL in them, and goes. They use up its own tokens, which clients do not need."""
    exit = world.exit({"proxy_protocol": [PROXY], "limits": {"handshakes_per_minute": 1}})
    with in_front_of(tmp_path, exit) as haproxy:
        until(lambda: exit.status()["refused"].get("too_many", 0), "the proxy has no token left")
        exit.says(rf"a handshake from {PROXY} failed")
        world.client(exit, through=haproxy.port)


def checks(exit: Exit) -> int:
    """How often HAProxy has looked whether it is there."""
    return sum(f"a handshake from {PROXY} failed" in line for line in exit.lines)


@pytest.mark.parametrize(
    ("flags", "restarts"), [((), 10), (("--overlap",), 4)], ids=["by a person", "by a manager"]
)
def test_planned_restarts_of_two_exits_refuse_nobody(
    flags: tuple[str, ...],
    restarts: int,
    world: World,
    tmp_path: Path,
    background: Background,
    echo_target: TcpTarget,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With one identity, in turn: new connections go to the other one while one is away. A manager starts the successor
    as soon as the main process has ended."""
    settings: Settings = {"proxy_protocol": [PROXY], "shutdown_grace": 60, "lane": {"enabled": False}}
    exits = [world.exit(settings, flags=flags) for _ in range(2)]
    with in_front_of(tmp_path, *exits) as haproxy:
        client = world.client(exits[0], through=haproxy.port)
        talk = Talk(through(client.port, echo_target.port))
        with Load(background, client.port, echo_target) as load:
            for number in range(restarts):
                [linked] = [index for index, exit in enumerate(exits) if exit.sessions]
                mark, answered, old = client.written, load.answered, exits[linked]
                old.process.terminate()
                client.says("link up", since=mark)
                until(lambda: load.answered > answered + 50, "new connections go on")  # noqa: B023
                old.says("released: ")
                if flags:
                    assert old.process.wait(PROMISED) == 0
                exits[linked] = world.exit(settings, port=old.port, flags=flags)
                if not number:
                    talk.goes_on()
                    talk.end()
                until(lambda: checks(exits[linked]) > RISE, "haproxy knows that it is back")  # noqa: B023
        with capsys.disabled():
            print(f"\n{restarts} restarts of one of two exits behind HAProxy, {flags or 'by hand'}: {load}")
        assert not load.wrong
        assert load.slowest < PROMISED


def test_without_a_header(exit: Exit) -> None:
    mark = exit.written
    with connect(exit.port, PROXY) as sock:
        sock.sendall(first_flight(exit.peer_id))
        silence(sock)
    exit.says(rf"a handshake from {PROXY} failed: a proxy sent no PROXY header of version 2", since=mark)


def test_a_header_from_somebody_else(exit: Exit) -> None:
    mark = exit.written
    with connect(exit.port, OTHER) as sock:
        sock.sendall(proxy_header("192.0.2.1") + first_flight(exit.peer_id))
        silence(sock)
    exit.says(rf"a handshake from {OTHER} failed", since=mark)
