"""Which packets may overtake others: tun/device/urgent.py."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.slices import EXPRESS, HEADROOM, UDP_GSO, Shape
from tests.support.udp_packets import tcp, udp
from tun.device.offload import COMPLETE, UNSUMMED
from tun.device.packets import ICMP, checksum
from tun.device.urgent import MAX_FLOWS, MAX_URGENT, Urgency

HEADERS = 28
FULL = MAX_URGENT - HEADERS


def looked(urgency: Urgency, packet: bytes, shape: Shape = COMPLETE) -> Shape | None:
    buffer = memoryview(bytearray(HEADROOM) + packet)
    return urgency.look(buffer, HEADROOM, len(buffer), shape)


def other(protocol: int) -> bytes:
    """An IPv4 packet of another protocol than TCP and UDP, with 8 bytes."""
    ip = pack(">BBHHBBBBHII", 0x45, 0, 28, 0, 0x40, 0, 64, protocol, 0, 1, 2)
    return ip[:10] + pack(">H", checksum(ip)) + ip[12:] + bytes(8)


ESP = 50


@pytest.mark.parametrize("shape", [COMPLETE, UNSUMMED])
@pytest.mark.parametrize(
    ("packet", "urgent"),
    [
        (tcp(b""), False),
        (tcp(b"x"), False),
        (udp(b"x" * FULL), True),
        (udp(b"x" * (FULL + 1)), False),
        (udp(b"x" * 100, version=6), True),
        (udp(b"x" * 100, flags=0x20), False),
        (other(ICMP), True),
        (other(ESP), False),
        (udp(b"x")[:20], False),
        (b"\x45", False),
        (b"", False),
    ],
)
def test_small_whole_packets_of_icmp_and_udp(packet: bytes, urgent: bool, shape: Shape) -> None:
    assert looked(Urgency(), packet, shape) == (Shape(shape.flags | EXPRESS, 0, 0) if urgent else None)


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_with_larger_datagrams_keeps_its_order(version: int) -> None:
    urgency = Urgency()
    assert looked(urgency, udp(b"x" * 60, version=version)), "nothing larger came before it"
    assert not looked(urgency, udp(b"x" * 1200, version=version))
    assert not looked(urgency, udp(b"x" * 60, version=version))
    assert looked(urgency, udp(b"x" * 60, version=version, port=53)), "another flow"


def test_a_super_packet_is_a_larger_one() -> None:
    urgency = Urgency()
    assert not looked(urgency, udp(b"x" * 200), Shape(UDP_GSO, 100, HEADERS))
    assert not looked(urgency, udp(b"x" * 60))


def test_the_flows_that_are_known_are_bounded() -> None:
    """Those that have sent something large last are known."""
    urgency = Urgency()
    for port in range(1, 3 * MAX_FLOWS + 1):
        assert not looked(urgency, udp(b"x" * 300, port=port))
        assert not looked(urgency, udp(b"x" * 300, port=1))
        assert len(urgency._newer) <= MAX_FLOWS and len(urgency._older) <= MAX_FLOWS
    for port in (1, 2 * MAX_FLOWS + 1, 3 * MAX_FLOWS):
        assert not looked(urgency, udp(b"x" * 60, port=port))
    assert looked(urgency, udp(b"x" * 60, port=2)), "long ago"


@dataclass(frozen=True)
class Sent:
    port: int
    size: int


@given(st.lists(st.builds(Sent, st.integers(1, 3), st.sampled_from((1, 200, 300, 1200))), max_size=40))
def test_no_datagram_passes_a_larger_one_of_its_flow(sent: list[Sent]) -> None:
    """Whatever waits and whatever is urgent."""
    urgency = Urgency()
    waiting: list[tuple[int, Sent]] = []
    for number, each in enumerate(sent):
        if looked(urgency, udp(b"x" * each.size, port=each.port)):
            assert not any(before.port == each.port for _, before in waiting)
        else:
            waiting.append((number, each))
    assert all(
        each.size > FULL or any(s.port == each.port and s.size > FULL for s in sent[:n])
        for n, each in waiting
    )
