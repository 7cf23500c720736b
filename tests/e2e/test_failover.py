"""Several exits as real processes: one is killed, stopped in its tracks or shut down under load, and others take over.

Which exit a connection goes through is asked of the exits themselves.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Final

import pytest

from cryprq_proxy.process.control import query
from tests.support.applications import Refused, UdpApplication, read_exactly, through
from tests.support.programs import Client, World, until
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho
from tests.support.two_exits import TwoExits

DOWNLOADS: Final = 4


def load(stack: ExitStack, client: Client, http: HttpTarget) -> None:
    """Downloads under way."""
    for _ in range(DOWNLOADS):
        sock = stack.enter_context(through(client.port, http.port))
        sock.sendall(b"GET /bytes?size=1000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        read_exactly(sock, 100_000)


def test_the_active_exit_is_killed(world: World, http: HttpTarget, echo_target: TcpTarget) -> None:
    """The first connection after it succeeds, and those that are waiting at that moment too."""
    exits = TwoExits(world)
    with ExitStack() as stack:
        load(stack, exits.client, http)
        exits.goes_through(exits.first, echo_target)
        with ThreadPoolExecutor(4) as pool:
            exits.first.process.kill()
            list(pool.map(lambda _: through(exits.client.port, echo_target.port).close(), range(8)))
        exits.first.wait()
        # Those that were answered early come to the other exit later than their application has gone.
        until(
            lambda: exits.client.streams <= DOWNLOADS and exits.second.streams == 0, "the others have ended"
        )
        exits.goes_through(exits.second, echo_target)
        assert exits.active() == "second"


@pytest.mark.parametrize("connect", ["exact", "learned"])
def test_the_active_exit_falls_silent_and_comes_back(
    world: World, echo_target: TcpTarget, http: HttpTarget, connect: str
) -> None:
    exits = TwoExits(world, failback=1, connect=connect)
    with ExitStack() as stack:
        load(stack, exits.client, http)
        old = stack.enter_context(through(exits.client.port, echo_target.port))
        mark = exits.client.written
        os.kill(exits.first.pid, signal.SIGSTOP)
        try:
            if connect == "learned":
                # Answered at once: what it has sent may have arrived, so it is no one's to send again but its own.
                with through(exits.client.port, echo_target.port) as sock:
                    sock.sendall(b"once")
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)
            exits.goes_through(
                exits.second, echo_target
            )  # asked of the silent one first, if that is not yet left
            exits.client.says("exit first does not answer", since=mark)
        finally:
            os.kill(exits.first.pid, signal.SIGCONT)
        exits.client.says("new connections go through exit first", since=mark)
        old.sendall(b"still here")
        assert read_exactly(old, 10) == b"still here", "it never left its exit"
        exits.goes_through(exits.first, echo_target)


def test_the_active_exit_shuts_down(world: World, echo_target: TcpTarget) -> None:
    """It lets its streams end, and what it refuses meanwhile goes to the other one."""
    exits = TwoExits(world)
    exits.first.process.send_signal(signal.SIGTERM)
    exits.first.says("stopping")
    exits.goes_through(exits.second, echo_target)
    assert exits.first.wait() == 0


def test_datagrams_move_too(world: World, udp_echo: UdpEcho) -> None:
    """The association lives on, with another outer port."""
    exits = TwoExits(world)
    with closing(UdpApplication(exits.client.port)) as application:
        for name, exit in (("first", exits.first), ("second", exits.second)):
            until(lambda name=name: exits.active() == name, "the way is clear")  # type: ignore[misc]
            application.send(b"ping", udp_echo.port)
            assert application.receive()[1] == b"ping"
            assert exit.streams == 1
            if exit is exits.first:
                exit.kill()


def test_a_person_chooses(world: World, echo_target: TcpTarget) -> None:
    exits = TwoExits(world, wait_for_link=0.5)
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
    exits = TwoExits(world, wait_for_link=0.5, rule=[rule])
    exits.goes_through(exits.second, echo_target)
    row = next(row for row in _while_open(exits, echo_target) if row["protocol"] == "tcp")
    assert (row["to"], row["exit"], row["rule"]) == ("exit:second", "second", "rule 1")
    exits.second.kill()
    accepted = echo_target.accepted
    with pytest.raises(Refused) as refusal:
        through(exits.client.port, echo_target.port)
    assert refusal.value.code == 3
    assert echo_target.accepted == accepted, "it never goes elsewhere"


def _while_open(exits: TwoExits, target: TcpTarget) -> list[dict[str, object]]:
    with through(exits.client.port, target.port):
        rows = query(exits.client.control, "streams")["streams"]
        assert isinstance(rows, list)
        return rows
