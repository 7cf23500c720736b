"""Connections from outside, as the kernel lists them."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.settings import tunnel_settings
from tun.firewall.inbound import DEFAULT_PORTS, MOST, InboundConnection, cut_connections
from tun.linux.firewall.open_connections import connections, observe
from tun.routing.lan import Lan

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0016 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 024DA8C0:0016 020A4B05:C351 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   3: 024DA8C0:C352 020A4B05:01BB 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   4: 024DA8C0:0016 020A4B05:C353 06 00000000:00000000 00:00000000 00000000     0        0 1 1
   5: 0000000000000000FFFF0000024DA8C0:0016 0000000000000000FFFF0000020A4B05:C354 01 00 00 00 00
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is of a little-endian machine")
def test_established_connections_of_listening_ports() -> None:
    local, remote = ip_address("192.168.77.2"), ip_address("5.75.10.2")
    assert connections(TCP.splitlines(), DEFAULT_PORTS) == {
        InboundConnection(local, 22, remote, 0xC351),
        InboundConnection(local, 22, remote, 0xC354),
    }


def test_the_sessions_of_a_service_that_has_ended() -> None:
    """Its listener is gone. A mount by NFS comes from a port below 1024 too, but goes to one that no client has."""
    lines = ["0: 024DA8C0:0016 020A4B05:C351 01", "1: 024DA8C0:03E9 020A4B05:0801 01", TCP.splitlines()[4]]
    assert {one.local_port for one in connections(lines, DEFAULT_PORTS)} == {22}


@given(
    st.lists(
        st.text()
        | st.from_regex(r"\w{1,3}: [0-9A-F]{0,34}:\w{0,5} [0-9A-F]{8}:[0-9A-F]{4} 0[1A] ", fullmatch=True)
    )
)
def test_strange_lines_are_passed_over(lines: list[str]) -> None:
    """Nothing is raised, whatever a future kernel writes."""
    assert isinstance(connections(lines, DEFAULT_PORTS), frozenset)


def test_this_machine_can_be_observed() -> None:
    low, high = observe().ephemeral
    assert 0 < low <= high < 65536


def test_a_flood_of_connections_is_bounded() -> None:
    """What an attacker opens from outside does not make the filter's set larger than MOST."""
    lines = ["0: 024DA8C0:0016 00000000:0000 0A"]
    lines += [f"{number}: 024DA8C0:0016 020A4B05:{number:04X} 01" for number in range(1, MOST + 10)]
    assert len(connections(lines, DEFAULT_PORTS)) == MOST


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, ["203.0.113.9"]),
        ({"lan": False}, ["192.168.77.9", "203.0.113.9"]),
        ({"keep_inbound": True}, []),
        ({"exclude": (ip_network("203.0.113.0/24"),)}, []),
        ({"include": (ip_network("198.51.100.0/24"),)}, []),
        ({"include": (ip_network("203.0.113.0/24"),), "lan": False}, ["192.168.77.9", "203.0.113.9"]),
    ],
)
def test_which_connections_a_start_ends(settings: dict[str, Any], ends: list[str]) -> None:
    own = ip_address("192.168.77.2")
    remotes = ("192.168.77.2", "192.168.77.9", "172.17.0.2", "203.0.113.9")
    found = [InboundConnection(own, 22, ip_address(remote), 50000) for remote in remotes]
    guests = (ip_network("172.17.0.0/16"),)
    lan = Lan((ip_network("192.168.77.0/24"), *guests), guests)
    assert list(map(str, cut_connections(tunnel_settings(**settings), lan, found))) == ends
