"""Listening sockets of a service manager: which are taken, and which are refused."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.passed_sockets import MOST_PASSED, PassedSockets
from cryprq_proxy.errors import ConfigError


class Manager:
    """Passes sockets on, in descriptors that follow each other."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.first = 700
        self.environment = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": "0",
            "LISTEN_FDNAMES": "a:b",
            "HOME": "/",
        }

    def give(self, *sockets: socket.socket | int) -> PassedSockets:
        for number, sock in enumerate(sockets):
            descriptor = sock if isinstance(sock, int) else sock.fileno()
            os.dup2(descriptor, self.first + number)
        environment = self.environment | {"LISTEN_FDS": str(len(sockets))}
        passed = PassedSockets.from_environment(environment, self.first)
        assert environment == {"HOME": "/"}, "no child process takes them"
        self._stack.callback(passed.close)
        return passed

    def has_left(self) -> bool:
        try:
            os.fstat(self.first)
        except OSError:
            return False
        return True


@pytest.fixture
def manager() -> Iterator[Manager]:
    with ExitStack() as stack:
        yield Manager(stack)


@pytest.fixture
def listening() -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1", **how: bool) -> socket.socket:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return stack.enter_context(socket.create_server((host, 0), family=family, **how))

        yield make


def address(sock: socket.socket) -> Destination:
    return Destination(*sock.getsockname()[:2])


def test_a_socket_is_taken_by_its_address(manager: Manager, listening: Callable[..., socket.socket]) -> None:
    one, two = listening(), listening()
    passed = manager.give(one, two)
    assert passed.take(Destination("127.0.0.1", 1)) is None
    assert passed.take(Destination("localhost", address(two).port)) is None
    taken = passed.take(address(two))
    assert taken is not None
    with taken, socket.create_connection(two.getsockname()):
        assert not taken.get_inheritable()
        taken.accept()[0].close()
    assert passed.take(address(two)) is None
    with pytest.raises(
        ConfigError, match=rf"a socket on {re.escape(str(address(one)))}, where nothing is to listen"
    ):
        passed.check_all_taken()
    taken = passed.take(address(one))
    assert taken is not None
    taken.close()
    passed.check_all_taken()


def test_ipv6(manager: Manager, listening: Callable[..., socket.socket]) -> None:
    passed = manager.give(sock := listening("::1"))
    taken = passed.take(Destination("::1", address(sock).port))
    assert taken is not None
    taken.close()


@pytest.mark.parametrize(
    "changes",
    [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "²"}],
    ids=str,
)
def test_what_is_meant_for_another_process_is_left_alone(manager: Manager, changes: dict[str, str]) -> None:
    environment = manager.environment | {"LISTEN_FDS": "1"} | changes
    PassedSockets.from_environment(environment, manager.first).check_all_taken()
    assert environment == {"HOME": "/"}


def test_a_number_of_sockets_has_a_bound(manager: Manager, listening: Callable[..., socket.socket]) -> None:
    sock = listening()
    for number in range(MOST_PASSED + 1):
        os.dup2(sock.fileno(), manager.first + number)
    manager.environment["LISTEN_FDS"] = str(10**9)
    passed = PassedSockets.from_environment(manager.environment, manager.first)
    assert len(passed._left) == MOST_PASSED
    passed.close()
    os.close(manager.first + MOST_PASSED)


def test_what_is_no_listening_tcp_socket_is_refused(
    manager: Manager, listening: Callable[..., socket.socket], tmp_path: Path
) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket() as not_listening,
        socket.socket(socket.AF_UNIX) as local,
        (tmp_path / "file").open("w") as file,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for wrong in (udp, not_listening, local):
            with pytest.raises(
                ConfigError, match="is no listening TCP socket; the socket unit needs ListenStream="
            ):
                manager.give(wrong)
            assert not manager.has_left()
        with pytest.raises(ConfigError, match="is not a socket"):
            manager.give(file.fileno())
        os.close(manager.first)
    with pytest.raises(ConfigError, match="BindIPv6Only=ipv6-only"):
        manager.give(listening("::", dualstack_ipv6=True))
    assert not manager.has_left()
