"""Packets as a capture shows them: with options, extension headers, fragments, cut off, or none at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.canary_packets import TARGETS, of, packet
from tun.device.packets import ICMP, TCP, UDP
from tun.leaktest.canaries import Canary, canaries
from tun.leaktest.packets import parse_packet
from tun.leaktest.report import render
from tun.leaktest.watch import Watch


def test_ipv4_options_and_fragments() -> None:
    plain = packet(UDP, "192.0.2.1", 53, b"payload", 1234)
    seen = parse_packet(plain)
    assert seen == (UDP, bytes([192, 0, 2, 1]), 1234, 53)
    optioned = bytes([0x47]) + plain[1:20] + bytes(8) + plain[20:]
    assert parse_packet(optioned) == seen
    later = plain[:6] + b"\x00\x10" + plain[8:]
    assert parse_packet(later) == (UDP, bytes([192, 0, 2, 1]), 0, 0)


def test_ipv6_extension_headers() -> None:
    plain = packet(TCP, "2001:db8::1", 443, b"payload", 1234)
    seen = parse_packet(plain)
    assert seen is not None
    assert seen[2:] == (1234, 443)

    def extended(*headers: tuple[int, bytes]) -> bytes:
        """Each header: its number, and its bytes behind the next header's number."""
        numbers = [number for number, _ in headers] + [TCP]
        chain = b"".join(
            bytes([following]) + body for following, (_, body) in zip(numbers[1:], headers, strict=True)
        )
        return plain[:6] + bytes([numbers[0]]) + plain[7:40] + chain + plain[40:]

    assert parse_packet(extended((0, bytes(7)), (60, b"\x01" + bytes(14)), (44, bytes(7)))) == seen
    later = parse_packet(extended((44, b"\x00\x00\x10\x00\x00\x00\x00")))
    assert later is not None
    assert later[2:] == (0, 0)
    endless = parse_packet(extended(*[(0, bytes(7))] * 20))
    assert endless is not None
    assert endless.port == 0


@pytest.mark.parametrize("canary", canaries(TARGETS), ids=lambda canary: f"{canary.name} {canary.address}")
def test_cut_packets(canary: Canary) -> None:
    """Cut anywhere, a packet is what it was, or nothing."""
    whole = of(canary)
    seen = parse_packet(whole)
    assert seen is not None
    ports = (20 if seen.protocol == ICMP or len(seen.destination) == 4 else 40) + 4
    for end in range(len(whole)):
        assert parse_packet(whole[:end]) == (None if end < ports else seen)


@given(
    st.sampled_from(
        [b"", b"\x45" + bytes(5) + b"\x00\x00\x40\x06", b"\x4f", b"\x60" + bytes(5) + b"\x2c", b"\x60"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_are_a_packet_or_none(head: bytes, tail: bytes) -> None:
    (canary, *_) = sent = canaries(TARGETS)
    data = head + tail
    seen = parse_packet(data)
    if seen is not None:
        assert len(seen.destination) in (4, 16)
    watching = Watch(sent, tunnel="cryprq0")
    watching.frame("eth0", data)
    assert watching.report().other_packets <= 1
    watching.frame("eth0", data + canary.token)
    report = watching.report()
    assert len(report.leaks) == 1
    render(report)
