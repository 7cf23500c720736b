"""System-wide mode beside the devices and networks around this machine.

Discovery on the LAN is sent as most programs send it: no interface is named. A capture on the outer interface tells
what reaches the LAN, one on the TUN device what enters the tunnel.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import EXIT4, SERVER4
from tests.support.lab.stage import TUN, Stage, beside_the_link

DISCOVERY = (
    ("239.255.255.250", 1900),  # SSDP
    ("224.0.0.251", 5353),  # mDNS
    ("255.255.255.255", 9999),
    ("192.168.77.255", 9999),
    ("ff02::fb", 5353),
    ("ff02::c", 1900),
    ("ff12::1234", 9999),  # the same scope, with the flag of an address that nobody has assigned
    ("ff05::c", 1900),
)
OTHER_CABLE = "172.30.9"


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def discover(stage: Stage, address: str, port: int) -> bool:
    """Send one datagram without naming an interface; whether the kernel took it."""
    with stage.socket(address, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.sendto(b"who is there?", (address, port))
        except OSError:
            return False
    return True


def destinations(capture: Capture) -> set[tuple[str, int]]:
    return {(packet.destination, packet.destination_port) for packet in capture.sent()}


def test_discovery_goes_out_on_the_lan_and_not_into_the_tunnel(stage: Stage) -> None:
    with stage.tunnel("--lan", "allow"):
        # After the TUN device: the kernel takes the oldest route for groups.
        stage.client.ip("link set eth0 multicast off")
        stage.client.ip("link set eth0 multicast on")
        with stage.wire() as wire, Capture(stage.client, TUN) as inside:
            taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
        assert stage.fetch(SERVER4) == EXIT4
    assert taken == [address for address, _ in DISCOVERY]
    assert destinations(wire) >= set(DISCOVERY)
    assert not destinations(inside) & set(DISCOVERY)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_discovery_is_refused_where_the_lan_is_blocked(stage: Stage, switch: str) -> None:
    with (
        stage.tunnel("--lan", "block", "--kill-switch", switch),
        stage.wire() as wire,
        Capture(stage.client, TUN) as inside,
    ):
        taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
    assert not taken
    assert not beside_the_link(wire)
    assert not destinations(inside) & set(DISCOVERY)


def test_a_second_network_of_a_container_is_no_guest(stage: Stage) -> None:
    """This host is a container on two networks: eth1 is a cable like eth0, and has no default route."""
    other = stage.lab.namespace("other")
    stage.lab.veth(stage.client, "eth1", other, "eth0")
    stage.lab.address(stage.client, "eth1", f"{OTHER_CABLE}.2/24")
    stage.lab.address(other, "eth0", f"{OTHER_CABLE}.1/24")
    try:
        assert stage.ping(f"{OTHER_CABLE}.1")
        with stage.tunnel("--lan", "block"), Capture(stage.client, "eth1") as wire:
            with stage.socket(SERVER4) as sock, suppress(OSError):
                sock.connect((f"{OTHER_CABLE}.1", 80))
            assert not stage.ping(f"{OTHER_CABLE}.1")
            assert stage.fetch(SERVER4) == EXIT4
        assert not beside_the_link(wire)
        with stage.tunnel("--lan", "allow"):
            assert stage.ping(f"{OTHER_CABLE}.1")
    finally:
        stage.client.ip("link del eth1")
