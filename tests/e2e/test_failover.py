"""Several exits as real processes: one is killed, stopped in its tracks or shut down under load, and others take over.

Which exit a connection goes through is asked of the exits themselves.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from cryprq_proxy.process.control import query
from tests.support.applications import Refused, UdpApplication, read_exactly, through
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho


class Exits:
    """Two exits, called first and second in the order of preference, and a client of both."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.first = world.exit(identity="exit")
        self.second = world.exit(identity="other")
        tables = [
            {"name": name, "priority": priority, "peer": f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}"}
            for priority, (name, exit) in enumerate([("first", self.first), ("second", self.second)], 1)
        ]
        self.client: Client = world.client(None, {"exit": tables, **settings}, wait=False)
        until(lambda: self.healthy() == ["first", "second"], "both links are up")
        until(lambda: self.active() == "first", "the preferred one is active")

    def healthy(self) -> list[str]:
        return [exit["name"] for exit in self.client.status()["exits"] if exit["healthy"]]

    def active(self) -> str:
        [name] = [exit["name"] for exit in self.client.status()["exits"] if exit["active"]]
        return str(name)

    def goes_through(self, exit: Exit, target: TcpTarget) -> None:
        """A new connection, of which `exit` and no other knows."""
        before = exit.streams
        with through(self.client.port, target.port) as sock:
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
            assert exit.streams == before + 1


def load(stack: ExitStack, client: Client, http: HttpTarget) -> None:
    """Downloads under way."""
    for _ in range(4):
        sock = stack.enter_context(through(client.port, http.port))
        sock.sendall(b"GET /bytes?size=1000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        read_exactly(sock, 100_000)


def test_the_active_exit_is_killed(world: World, http: HttpTarget, echo_target: TcpTarget) -> None:
    """The first connection after it succeeds, and those that are waiting at that moment too."""
    exits = Exits(world)
    with ExitStack() as stack:
        load(stack, exits.client, http)
        exits.goes_through(exits.first, echo_target)
        with ThreadPoolExecutor(4) as pool:
            exits.first.process.kill()
            list(pool.map(lambda _: through(exits.client.port, echo_target.port).close(), range(8)))
        exits.first.wait()
        until(lambda: exits.second.streams == 0, "those have ended")
        exits.goes_through(exits.second, echo_target)
        assert exits.active() == "second"


def test_the_active_exit_falls_silent_and_comes_back(
    world: World, echo_target: TcpTarget, http: HttpTarget
) -> None:
    exits = Exits(world, failback=1)
    with ExitStack() as stack:
        load(stack, exits.client, http)
        old = stack.enter_context(through(exits.client.port, echo_target.port))
        mark = exits.client.written
        os.kill(exits.first.pid, signal.SIGSTOP)
        try:
            exits.goes_through(exits.second, echo_target)  # asked of the silent one first
            exits.client.says("exit first does not answer", since=mark)
        finally:
            os.kill(exits.first.pid, signal.SIGCONT)
        exits.client.says("new connections go through exit first", since=mark)
        old.sendall(b"still here")
        assert read_exactly(old, 10) == b"still here", "it never left its exit"
        exits.goes_through(exits.first, echo_target)


def test_the_active_exit_shuts_down(world: World, echo_target: TcpTarget) -> None:
    """It lets its streams end, and what it refuses meanwhile goes to the other one."""
    exits = Exits(world)
    exits.first.process.send_signal(signal.SIGTERM)
    exits.first.says("stopping")
    exits.goes_through(exits.second, echo_target)
    assert exits.first.wait() == 0


def test_datagrams_move_too(world: World, udp_echo: UdpEcho) -> None:
    """The association lives on, with another outer port."""
    exits = Exits(world)
    with closing(UdpApplication(exits.client.port)) as application:
        for name, exit in (("first", exits.first), ("second", exits.second)):
            until(lambda name=name: exits.active() == name, "the way is clear")  # type: ignore[misc]
            application.send(b"ping", udp_echo.port)
            assert application.receive()[1] == b"ping"
            assert exit.streams == 1
            if exit is exits.first:
                exit.kill()


def test_a_person_chooses(world: World, echo_target: TcpTarget) -> None:
    exits = Exits(world, wait_for_link=0.5)
    query(exits.client.control, "exit", argument="second")
    exits.goes_through(exits.second, echo_target)
    exits.second.kill()
    with pytest.raises(Refused) as refusal:
        through(exits.client.port, echo_target.port)
    assert refusal.value.code == 3, "no other exit than the one that was chosen"
    query(exits.client.control, "exit", argument="auto")
    exits.goes_through(exits.first, echo_target)


def test_a_rule_names_an_exit(world: World, echo_target: TcpTarget) -> None:
    rule = {"to": "exit:second", "ports": [echo_target.port]}
    exits = Exits(world, wait_for_link=0.5, rule=[rule])
    exits.goes_through(exits.second, echo_target)
    row = next(row for row in _while_open(exits, echo_target) if row["protocol"] == "tcp")
    assert (row["to"], row["exit"], row["rule"]) == ("exit:second", "second", "rule 1")
    exits.second.kill()
    accepted = echo_target.accepted
    with pytest.raises(Refused) as refusal:
        through(exits.client.port, echo_target.port)
    assert refusal.value.code == 3
    assert echo_target.accepted == accepted, "it never goes elsewhere"


def _while_open(exits: Exits, target: TcpTarget) -> list[dict[str, object]]:
    with through(exits.client.port, target.port):
        rows = query(exits.client.control, "streams")["streams"]
        assert isinstance(rows, list)
        return rows
