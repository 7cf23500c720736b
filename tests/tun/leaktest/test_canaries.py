"""What a leak test sends."""

from __future__ import annotations

import dns.message

from tests.support.canary_packets import TARGETS, of
from tun.device.packets import ICMP, ICMP6, TCP, UDP
from tun.leaktest.canaries import TOKEN_SIZE, CanaryTargets, canaries, find_tokens
from tun.leaktest.system import SNAP


def test_each_canary_is_its_own() -> None:
    made = canaries(TARGETS)
    kinds = {(canary.name, canary.protocol, canary.address, canary.port) for canary in made}
    assert kinds == {
        ("DNS over UDP", UDP, "192.0.2.53", 53),
        ("DNS over TCP", TCP, "192.0.2.53", 53),
        ("DNS over TLS", TCP, "192.0.2.53", 853),
        *(("TCP", TCP, address, 443) for address in TARGETS.hosts),
        *(("QUIC", UDP, address, 443) for address in TARGETS.hosts),
        *(("STUN", UDP, address, 3478) for address in TARGETS.hosts),
        ("ping", ICMP, "192.0.2.1", 0),
        ("ping", ICMP6, "2001:db8::1", 0),
    }
    assert len({canary.token for canary in made}) == len(made)
    for canary in made:
        assert list(find_tokens(canary.payload)) == [canary.token]
        assert len(canary.token) == TOKEN_SIZE
        assert len(of(canary)) < SNAP


def test_dns_canaries_are_questions() -> None:
    over_udp, over_tcp, _ = canaries(CanaryTargets(dns=("192.0.2.53",), hosts=(), domain="example.org"))
    assert len(over_tcp.payload) == 2 + int.from_bytes(over_tcp.payload[:2])
    for wire, token in ((over_udp.payload, over_udp.token), (over_tcp.payload[2:], over_tcp.token)):
        question = dns.message.from_wire(wire).question[0]
        assert question.name.to_text() == f"{token.decode()}.example.org."


def test_canaries_bound_to_interfaces() -> None:
    made = canaries(CanaryTargets(dns=(), hosts=("192.0.2.1",), devices=("eth0", "wlan0")))
    assert [canary.device for canary in made] == [""] * 4 + ["eth0"] * 4 + ["wlan0"] * 4
    assert made[4].target == "192.0.2.1:443 on eth0"
