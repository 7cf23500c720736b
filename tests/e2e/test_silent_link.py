"""A network that swallows everything and says nothing: a request notices it, long before the keepalive would."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.applications import Refused, read_exactly, through
from tests.support.cutter import Cutter
from tests.support.programs import Client, World, until
from tests.support.targets import TcpTarget

QUIET = {"keepalive": 300}
"""Nothing but a request finds out, in the time of a test."""


def silent(world: World, forwarder: Cutter, port: int, wait: float) -> Client:
    """A client whose link has been quiet for a while, and is dead now."""
    client = world.client(
        (world.identity("exit")[1], port), {**QUIET, "wait_for_link": wait}, through=forwarder.port
    )
    until(lambda: client.session["epoch_age"] > 2.5, "nothing was said on the link for more than a second")
    forwarder.stall()
    return client


def test_a_request_goes_on_when_the_network_is_back(
    world: World, cutter: Callable[[int], Cutter], echo_target: TcpTarget
) -> None:
    exit = world.exit(QUIET)
    forwarder = cutter(exit.port)
    client = silent(world, forwarder, exit.port, 30)
    with ThreadPoolExecutor(1) as pool:
        mark = client.written
        request = pool.submit(through, client.port, echo_target.port)
        client.says("link down: the peer has not answered in time", since=mark)
        forwarder.release()
        client.says("link resumed", since=mark)
        with request.result() as sock:
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
    assert echo_target.accepted == 1


def test_a_request_fails_in_the_promised_time_when_it_is_not(
    world: World, cutter: Callable[[int], Cutter], echo_target: TcpTarget
) -> None:
    exit = world.exit(QUIET)
    forwarder = cutter(exit.port)
    client = silent(world, forwarder, exit.port, 4)
    with pytest.raises(Refused) as refusal:
        through(client.port, echo_target.port)
    assert refusal.value.code == 3
    assert echo_target.accepted == 0
