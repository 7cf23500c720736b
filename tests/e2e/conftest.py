"""The fixtures of the end-to-end tests: real processes, real sockets, only 127.0.0.1 and ::1.

`world` is a test's own set of processes; `pair` is one that the tests of a module share, as long as they do it no
harm. Both check at their end that every process ended with 0 on SIGTERM and had no error in its log.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.applications import Curl
from tests.support.background import Background
from tests.support.browser import NOT_INSTALLED, find
from tests.support.cutter import Cutter
from tests.support.pac_site import Site
from tests.support.programs import Client, Exit, World
from tests.support.targets import HttpTarget, Manner, TcpTarget, UdpEcho, echo, has_ipv6


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from _world(tmp_path)


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from _world(tmp_path_factory.mktemp("shared"))


def _world(directory: Path) -> Iterator[World]:
    world = World(directory)
    wrong = ["the processes were not ended"]
    try:
        yield world
    finally:
        wrong = world.close()
    assert not wrong, "\n\n".join(wrong)


@pytest.fixture(scope="module")
def pair(shared_world: World) -> tuple[Exit, Client]:
    """An exit that lets through to private targets, and its client, for all tests of the module."""
    return shared_world.pair()


@pytest.fixture(scope="module")
def exit(pair: tuple[Exit, Client]) -> Exit:
    return pair[0]


@pytest.fixture(scope="module")
def client(pair: tuple[Exit, Client]) -> Client:
    return pair[1]


@pytest.fixture
def cutter(background: Background) -> Iterator[Callable[[int], Cutter]]:
    """Makes forwarders to a port."""
    made: list[Cutter] = []

    def make(target: int) -> Cutter:
        made.append(Cutter(background, target))
        return made[-1]

    yield make
    for forwarder in made:
        forwarder.close()


@pytest.fixture(scope="module")
def http(background: Background) -> Iterator[HttpTarget]:
    target = HttpTarget(background)
    yield target
    target.close()


@pytest.fixture
def serve(background: Background) -> Iterator[Callable[[Manner], TcpTarget]]:
    """Makes TCP targets."""
    made: list[TcpTarget] = []

    def make(manner: Manner) -> TcpTarget:
        made.append(TcpTarget(background, manner))
        return made[-1]

    yield make
    for target in made:
        target.close()


@pytest.fixture
def echo_target(serve: Callable[[Manner], TcpTarget]) -> TcpTarget:
    return serve(echo)


@pytest.fixture
def udp_echo(background: Background) -> Iterator[UdpEcho]:
    target = UdpEcho(background)
    yield target
    target.close()


@pytest.fixture
def udp_echo6(background: Background, ipv6: None) -> Iterator[UdpEcho]:
    target = UdpEcho(background, "::1")
    yield target
    target.close()


@pytest.fixture(scope="session")
def ipv6() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no ::1")


@pytest.fixture
def curl(tmp_path: Path) -> Curl:
    path = shutil.which("curl")
    if path is None:
        pytest.skip("curl is not installed; on Debian: apt-get install curl")
    return Curl(path, tmp_path)


@pytest.fixture
def site(background: Background) -> Iterator[Site]:
    if find() is None:
        pytest.skip(NOT_INSTALLED)
    site = Site(background)
    yield site
    site.close()
