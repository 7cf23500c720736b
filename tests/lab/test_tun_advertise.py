"""System-wide mode, and an exit that says where it is reached itself: only what was let out before is dialled.

The exit has two addresses, as one that stands behind a load balancer has. The carrier at the first one is cut by the
router.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.config_files import Settings
from tests.support.lab.capture import Capture
from tests.support.lab.flows import Flow, lane_is
from tests.support.lab.hosts import EXIT4, SERVER4, ThreeHosts
from tests.support.lab.links import PORT, Links, Role
from tests.support.lab.net import until
from tests.support.lab.server import FarServer
from tests.support.lab.stage import beside_the_link

OWN4 = "5.75.10.3"
"""Where the exit is reached itself."""
QUIET: Settings = {"log_level": "info"}


@pytest.fixture
def hosts(three_hosts: ThreeHosts, server: FarServer, links: Links) -> ThreeHosts:
    """With the exit running."""
    three_hosts.exit.ip(f"addr add {OWN4}/24 dev eth0")
    listen = (f"{EXIT4}:{PORT}", f"{OWN4}:{PORT}")
    links.exit(three_hosts.exit, {**QUIET, "advertise": f"{OWN4}:{PORT}"}, listen=listen)
    return three_hosts


@contextmanager
def cut(hosts: ThreeHosts) -> Iterator[None]:
    """Carriers through the exit's first address end, and no new one gets through."""
    rule = f"ip {{}} {EXIT4} tcp {{}} {PORT} reject with tcp reset;"
    chain = f"type filter hook forward priority 0; {rule.format('daddr', 'dport')} {rule.format('saddr', 'sport')}"
    hosts.router.nft(f"table inet cut {{ chain f {{ {chain} }}; }}")
    try:
        yield
    finally:
        hosts.router.nft("delete table inet cut")


def start(hosts: ThreeHosts, links: Links, *endpoints: str) -> Role:
    peer = links.identity("exit")[1]
    peers = [f"cryprq://{peer}@{endpoint}:{PORT}" for endpoint in endpoints]
    client = links.client(hosts.client, settings={**QUIET, "peer": peers})
    until(
        lambda: links.status()["carrier"]["address"] == f"{EXIT4}:{PORT}",
        "the exit is reached at its first address",
    )
    lane_is(links, True)
    return client


def test_an_address_that_the_configuration_names_is_dialled(hosts: ThreeHosts, links: Links) -> None:
    """And the lane follows."""
    with Capture(hosts.client, "eth0") as wire:
        client = start(hosts, links, EXIT4, OWN4)
        mark = client.written
        with Flow(hosts.client, SERVER4) as flow:
            flow.moves()
            with cut(hosts):
                client.says(
                    f"link resumed: exit \\S+ \\({OWN4}:{PORT}\\), the exit advertises it", since=mark
                )
                until(
                    lambda: links.status()["packets"]["lane"]["peer"] == f"{OWN4}:{PORT}", "the lane follows"
                )
                lane_is(links, True)
                flow.moves()
            assert flow.finish()
    assert not beside_the_link(wire, (EXIT4, OWN4))


def test_an_address_that_nothing_names_stays_shut(hosts: ThreeHosts, links: Links) -> None:
    """No packet goes there, the kill switch has no opening, and the session goes on at the configured address."""
    with Capture(hosts.client, "eth0") as wire:
        client = start(hosts, links, EXIT4)
        mark = client.written
        with Flow(hosts.client, SERVER4) as flow:
            flow.moves()
            with cut(hosts):
                client.says("no link to ", since=mark)
                assert links.status()["tun"]["exits"] == [[EXIT4, PORT]]
                assert OWN4 not in hosts.client.run(["nft", "list", "ruleset"])
            client.says(f"link resumed: exit \\S+ \\({EXIT4}:{PORT}\\)", since=mark)
            flow.moves()
            assert flow.finish()
    assert not [packet for packet in wire.packets if OWN4 in (packet.source, packet.destination)]
    assert not beside_the_link(wire, (EXIT4,))
