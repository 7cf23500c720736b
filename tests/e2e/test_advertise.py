"""Two exits with one identity behind HAProxy: a session whose carrier is lost goes on at the exit that has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.applications import read_exactly, through
from tests.support.haproxy import HAPROXY, NOT_INSTALLED, PROXY, HAProxy, in_front_of
from tests.support.programs import Client, Exit, World, free_port
from tests.support.targets import TcpTarget

STREAMS = 10
BLOCK = 1 << 16
PROMPTLY = 5.0
"""Seconds in which a client tells its applications that an exit is gone."""

pytestmark = pytest.mark.skipif(HAPROXY is None, reason=NOT_INSTALLED)


class Talks:
    """Streams of one client. Each byte that is sent comes back once, in order."""

    def __init__(self, client: Client, target: TcpTarget, stack: ExitStack) -> None:
        self.socks = [stack.enter_context(through(client.port, target.port)) for _ in range(STREAMS)]
        self._missing = [b""] * STREAMS
        self.go_on()

    def say(self) -> None:
        """Send on all; the answers are under way when this returns."""
        for number, sock in enumerate(self.socks):
            data = os.urandom(BLOCK)
            sock.sendall(data)
            self._missing[number] += data

    def hear(self) -> None:
        """All answers that are missing, and nothing else."""
        for number, sock in enumerate(self.socks):
            assert read_exactly(sock, len(self._missing[number])) == self._missing[number]
            self._missing[number] = b""

    def go_on(self) -> None:
        self.say()
        self.hear()

    def are_reset(self) -> None:
        """Soon, and not by an end that could be taken for a regular one."""
        for sock in self.socks:
            sock.settimeout(PROMPTLY)
            with pytest.raises(ConnectionResetError):
                while sock.recv(BLOCK):
                    pass


class Place:
    """HAProxy in front of two exits, and a client at each of them."""

    def __init__(self, world: World, stack: ExitStack, *, advertise: bool) -> None:
        exits = [self._exit(world, advertise) for _ in range(2)]
        self.haproxy: HAProxy = stack.enter_context(in_front_of(world.directory, *exits))
        self.clients = [
            world.client(exits[0], through=self.haproxy.port, identity=identity)
            for identity in ("client", "other")
        ]
        self.exits = [self._home(world, exits, identity) for identity in ("client", "other")]
        """That of each client."""
        assert self.exits[0] is not self.exits[1]

    @staticmethod
    def _exit(world: World, advertise: bool) -> Exit:
        port = free_port()
        settings: dict[str, Any] = {"proxy_protocol": [PROXY], "lane": {"enabled": False}}
        if advertise:
            settings["advertise"] = f"127.0.0.1:{port}"
        return world.exit(settings, port=port, clients=("client", "other"))

    @staticmethod
    def _home(world: World, exits: list[Exit], identity: str) -> Exit:
        _, peer_id = world.identity(identity)
        [home] = [exit for exit in exits if any(s["peer_id"] == peer_id for s in exit.sessions)]
        return home

    def talks(self, target: TcpTarget, stack: ExitStack) -> list[Talks]:
        return [Talks(client, target, stack) for client in self.clients]

    def cut(self) -> None:
        """End all carriers. HAProxy leads to the second exit only when it is back."""
        self.haproxy.kill()
        self.haproxy.lead_to(self.exits[1])
        self.haproxy.start()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_streams_go_on_at_their_exit_when_all_carriers_are_cut(
    world: World, stack: ExitStack, echo_target: TcpTarget
) -> None:
    place = Place(world, stack, advertise=True)
    talks = place.talks(echo_target, stack)
    marks = [client.written for client in place.clients]
    for talk in talks:
        talk.say()
    place.cut()
    for client, exit, mark in zip(place.clients, place.exits, marks, strict=True):
        where = rf"\(127\.0\.0\.1:{exit.port}\), the exit advertises it for the session"
        client.says(f"link resumed: .*{where}", since=mark)
    for talk in talks:
        talk.hear()
        talk.go_on()
    assert [client.log.count("link up") for client in place.clients] == [1, 1]
    assert [exit.streams for exit in place.exits] == [STREAMS, STREAMS]


def test_streams_are_lost_at_another_exit(world: World, stack: ExitStack, echo_target: TcpTarget) -> None:
    """Where the exits advertise nothing. The other session goes on: HAProxy leads to its exit."""
    place = Place(world, stack, advertise=False)
    lost, kept = place.talks(echo_target, stack)
    place.cut()
    place.clients[0].says(f"the exit no longer has the session: its {STREAMS} streams end")
    lost.are_reset()
    kept.go_on()


def test_an_exit_is_killed(world: World, stack: ExitStack, echo_target: TcpTarget) -> None:
    """Its streams end at once, new ones go to the other exit, and those of the other exit do not notice."""
    place = Place(world, stack, advertise=True)
    lost, kept = place.talks(echo_target, stack)
    mark = place.clients[0].written
    kept.say()
    place.exits[0].kill()
    lost.are_reset()
    kept.hear()
    place.clients[0].says("link up", since=mark)
    new = Talks(place.clients[0], echo_target, stack)
    for _ in range(3):
        kept.go_on()
        new.go_on()
    assert place.exits[1].streams == 2 * STREAMS
    assert place.clients[1].log.count("link down") == 0
