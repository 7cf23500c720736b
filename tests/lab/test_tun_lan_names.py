"""Names of the LAN, asked of the LAN's own resolver past the tunnel: only those that the configuration lists."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import dns.message
import dns.query
import dns.rcode
import pytest

from tests.support.lab.hosts import CLIENT4, ROUTER_LAN4
from tests.support.lab.net import LONG
from tests.support.lab.stage import Stage, beside_the_link

LAN: Final = f"lan://{ROUTER_LAN4}"
SPLIT: Final = [f"{domain}={LAN}" for domain in ("lan", "fritz.box", "*", "77.168.192.in-addr.arpa")]
LISTED: Final = {
    ("nas.lan.", "A"): ["192.168.77.20"],
    ("fritz.box.", "A"): ["192.168.77.1"],
    ("printer.", "A"): ["192.168.77.30"],
    ("20.77.168.192.in-addr.arpa.", "PTR"): ["nas.lan."],
    ("big.lan.", "TXT"): [f'"{i:03}{"x" * 200}"' for i in range(20)],
}


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.resolver.dns.answers |= LISTED
        yield stage


def ask(stage: Stage, name: str, kind: str = "A", server: str = "8.8.8.8") -> list[str]:
    with stage.client.entered():
        answer, _ = dns.query.udp_with_fallback(dns.message.make_query(name, kind), server, timeout=LONG)
    return sorted(item.to_text() for rrset in answer.answer for item in rrset)


def test_listed_names_go_to_the_lan_and_others_do_not(stage: Stage) -> None:
    """Also where nothing else reaches the LAN."""
    stage.resolver.forget()
    settings = {"tun": {"dns": {"split": SPLIT}}}
    with stage.wire() as wire, stage.tunnel("--lan", "block", settings=settings):
        for (name, kind), values in LISTED.items():
            # Also where a program asks the LAN's resolver itself: it is the forwarder that answers.
            for server in ("8.8.8.8", ROUTER_LAN4):
                assert ask(stage, name, kind, server) == values
        for name in ("a.example.com.", "lan.example.com.", "two.labels.", "9.9.168.192.in-addr.arpa."):
            ask(stage, name, server=ROUTER_LAN4)
        assert {visit.source for visit in stage.resolver.visits} == {CLIENT4}
        assert {visit.what for visit in stage.resolver.visits} == {f"{name} {kind}" for name, kind in LISTED}
        # The opening is for the forwarder's own sockets: a program that chooses the device does not get through.
        with stage.socket(ROUTER_LAN4, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            with contextlib.suppress(PermissionError):
                sock.sendto(dns.message.make_query("mine.lan.", "A").to_wire(), (ROUTER_LAN4, 53))
        assert ask(stage, "a.example.com.") == ["192.0.2.7"]
    assert not any("mine" in visit.what for visit in stage.resolver.visits)
    assert {(packet.destination, packet.destination_port) for packet in beside_the_link(wire)} == {
        (ROUTER_LAN4, 53)
    }


def test_nothing_is_open_where_no_name_is_listed(stage: Stage) -> None:
    stage.resolver.forget()
    with stage.wire() as wire, stage.tunnel():
        assert ask(stage, "nas.lan.", server=ROUTER_LAN4) == []
        assert ROUTER_LAN4 not in stage.client.run(["nft", "list", "chain", "inet", "cryprq", "output"])
    assert not beside_the_link(wire)
    assert not stage.resolver.visits
