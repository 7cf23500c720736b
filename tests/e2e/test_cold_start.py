"""A request that is made as soon as the client listens, by real processes: it leaves before the exit's verdict."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.applications import Refused, read_exactly, through
from tests.support.programs import Client, World
from tests.support.targets import TcpTarget


def talk(client: Client, target: TcpTarget) -> None:
    client.says("ready: ")
    with through(client.port, target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"


@pytest.mark.parametrize("connect", ["exact", "learned", "eager"])
def test_the_first_request_is_served(world: World, echo_target: TcpTarget, connect: str) -> None:
    exit = world.exit()
    for _ in range(3):
        client = world.client(exit, {"connect": connect}, wait=False)
        talk(client, echo_target)
        client.stop()
    assert echo_target.accepted == 3


def test_a_request_outlives_refusals(world: World, echo_target: TcpTarget) -> None:
    """It is sent to an exit that refuses the client again and again, serves nothing of it, and then lets it in."""
    authorized = world.directory / "authorized"
    authorized.write_text("")
    exit = world.exit({"authorized": str(authorized)}, clients=())
    client = world.client(exit, {"wait_for_link": 30}, wait=False)
    peer_id = world.identity("client")[1]
    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(talk, client, echo_target)
        mark = exit.written
        for _ in range(2):
            exit.says(f"refused {peer_id}", since=mark)
            mark = exit.written
        assert not echo_target.accepted and not talking.done()
        authorized.write_text(f"{peer_id} laptop\n")
        exit.reload()
        talking.result()
    assert echo_target.accepted == 1


def test_a_request_waits_no_longer_than_it_may(world: World, echo_target: TcpTarget) -> None:
    exit = world.exit(clients=())
    client = world.client(exit, {"wait_for_link": 1.0}, wait=False)
    with pytest.raises(Refused):
        talk(client, echo_target)
    assert not echo_target.accepted
