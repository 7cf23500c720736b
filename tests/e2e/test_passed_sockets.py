"""Socket activation: the listening socket stays with the service manager while the exit starts anew."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.support.applications import connect
from tests.support.programs import World, free_port


def test_connections_wait_while_no_exit_runs(world: World) -> None:
    """None is refused: a client that dials in between has its link as soon as the next exit is there."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as held, ExitStack() as stack:
        exit = world.exit(port=port, passed=(held,))
        client = world.client(exit)
        for _ in range(3):
            mark = client.written
            assert exit.stop() == 0
            for _ in range(5):
                stack.enter_context(connect(port))
            exit = world.exit(port=port, passed=(held,))
            client.says("link up", since=mark)
        assert "connection refused" not in client.log


def test_a_socket_that_the_configuration_does_not_name(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        exit = world.exit(passed=(held,), wait=False)
        assert exit.wait() == 2
        exit.says("the service manager passes a socket on 127.0.0.1:.*; add that address to `listen`")
        exit.may_complain = True
