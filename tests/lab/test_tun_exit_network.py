"""The exit's network interface among other programs: what they take away opens nothing, and comes back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import pytest

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import EXIT4, EXIT6
from tests.support.lab.net import until
from tests.support.lab.stage import Stage

DEVICE: Final = "cryprq-exit0"
PAGE_PORT: Final = 9000


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def exit_addresses(stage: Stage) -> list[IPv4Address | IPv6Address]:
    """The exit's own inside the tunnel."""
    listed = json.loads(stage.hosts.exit.ip(f"-j addr show dev {DEVICE}"))
    return [ip_address(found["local"]) for found in listed[0]["addr_info"]]


def test_without_the_table_nothing_more_of_the_exit_is_reached(stage: Stage) -> None:
    """The judge is the exit's device: what the kernel does not get there, no filter needs to refuse."""
    exit = stage.hosts.exit
    web = exit.popen([sys.executable, "-m", "http.server", str(PAGE_PORT), "--bind", "::"])
    until(
        lambda: bool(exit.attempt(["ss", "-Hltn", f"sport = {PAGE_PORT}"]).stdout),
        "the exit's page is served",
    )
    with stage.tunnel(), Capture(exit, DEVICE) as device:
        own = exit_addresses(stage)
        others = [address + 100 for address in own]
        broadcast = ip_address(int(own[0]) | 0x3FFF)
        for address in (*own, *others, broadcast, ip_address(EXIT4), ip_address(EXIT6)):
            exit.run(["nft", "flush", "ruleset"])
            host = f"[{address}]" if address.version == 6 else str(address)
            done = stage.client.attempt(["curl", "-s", "--max-time", "2", f"http://{host}:{PAGE_PORT}/"])
            assert done.returncode == 7, (address, done.stdout)
        exit.run(["nft", "flush", "ruleset"])
        assert all(stage.ping(str(address)) for address in own)
        assert not any(stage.ping(str(address)) for address in others)
    web.kill()
    written = {(p.protocol, p.destination) for p in device.packets if not p.sent}
    pings = {("icmp" if address.version == 4 else "icmpv6", str(address)) for address in own}
    assert written == pings
