"""The fixtures of the lab: skipped with a reason where no namespaces can be made.

At the end of the run, the machine's own network must be what it was at the start.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence

import pytest

from tests.support.lab.hosts import ThreeHosts
from tests.support.lab.hosts import three_hosts as make_three_hosts
from tests.support.lab.links import Links
from tests.support.lab.net import Lab, missing
from tests.support.lab.server import FarServer
from tests.support.lab.snapshot import snapshot
from tests.support.lab.stage import Stage


def _machine() -> str:
    def run(command: Sequence[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return snapshot(run)


@pytest.fixture(scope="session")
def namespaces() -> Iterator[None]:
    """Namespaces can be made, and afterwards nothing of the machine's own network is changed."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    before = _machine()
    yield
    assert _machine() == before


@pytest.fixture
def lab(namespaces: None) -> Iterator[Lab]:
    """Makes hosts, and removes them after the test."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def three_hosts(lab: Lab) -> ThreeHosts:
    """client, router, exit and server, with nothing running: see hosts.py."""
    return make_three_hosts(lab)


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    """One for all tests of a module; a module whose tests need more has its own."""
    with Stage() as stage:
        yield stage


@pytest.fixture
def server(lab: Lab, three_hosts: ThreeHosts) -> FarServer:
    """The far server with all its services, on the server of `three_hosts`. Ends with the lab."""
    return FarServer(lab, three_hosts.server)


@pytest.fixture
def links(lab: Lab) -> Iterator[Links]:
    """Starts the program inside hosts. At the end nothing may have failed: exit codes, tracebacks, error lines."""
    links = Links(lab.directory / "links")
    wrong = ["the processes were not ended"]
    try:
        yield links
    finally:
        wrong = links.close()
    assert not wrong, "\n\n".join(wrong)
