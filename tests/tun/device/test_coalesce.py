"""Joining UDP packets to super-packets: tun/device/coalesce.py, with `split` as its inverse."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.slices import EXPRESS, HEADROOM, NEEDS_CSUM, UDP_GSO, Run, Shape
from tests.support.udp_packets import udp
from tun.device.coalesce import MIN_PAYLOAD, UdpJoiner
from tun.device.offload import COMPLETE, GSO_MAX_SEGS, GSO_MAX_SIZE, UNSUMMED, fit, split
from tun.device.packets import TCP, UDP, Packet, parse, pseudo_sum


class Link:
    """What the joiner sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Shape]] = []
        self.joiner = UdpJoiner(self.send)

    def send(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        self.sent.append((bytes(buffer[start:end]), shape))
        buffer[start - HEADROOM : end] = bytes(HEADROOM + end - start)  # it is ours to overwrite

    def feed(self, *packets: bytes, shape: Shape = COMPLETE) -> None:
        for packet in packets:
            buffer = memoryview(bytearray(HEADROOM) + packet)
            self.joiner.packet(buffer, HEADROOM, len(buffer), shape)

    def arrived(self) -> list[bytes]:
        """The packets at the far side."""
        found = []
        for packet, shape in self.sent:
            if not shape.gso_size:
                found.append(packet)
                continue
            buffer = memoryview(bytearray(HEADROOM) + packet)
            count = -(-(len(packet) - shape.header) // shape.gso_size)
            fitted = fit(buffer, HEADROOM, len(buffer), Run(shape, 0, count, count))
            assert fitted == shape
            found += [bytes(buffer[low:high]) for low, high in split(buffer, HEADROOM, len(buffer), shape)]
        return found


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("summed", [True, False])
def test_equal_packets_become_one(version: int, summed: bool) -> None:
    link = Link()
    payloads = [bytes((number,)) * 1200 for number in range(5)]
    link.feed(
        *(udp(payload, version=version, summed=summed) for payload in payloads),
        shape=COMPLETE if summed else UNSUMMED,
    )
    assert not link.sent
    link.joiner.flush()
    [(packet, shape)] = link.sent
    assert shape == Shape(NEEDS_CSUM | UDP_GSO, 1200, 28 if version == 4 else 48)
    parsed = parse(packet, 0, len(packet))
    assert isinstance(parsed, Packet)
    # A kernel completes the checksum from the sum of the pseudo-header of the whole.
    pseudo = pseudo_sum(parsed.source, parsed.destination, UDP, len(packet) - parsed.transport)
    assert int.from_bytes(packet[parsed.transport + 6 : parsed.transport + 8]) == pseudo
    arrived = link.arrived()
    # With DF set an id means nothing, and segmentation counts it up.
    assert [packet[shape.header :] for packet in arrived] == payloads
    expected = [udp(payload, version=version, number=n) for n, payload in enumerate(payloads)]
    assert arrived == expected


def test_one_packet_alone_stays_as_it_is() -> None:
    link = Link()
    packet = udp(b"x" * 500, number=77)
    link.feed(packet)
    link.joiner.flush()
    link.joiner.flush()
    assert link.sent == [(packet, COMPLETE)]


def test_what_may_overtake_keeps_its_mark() -> None:
    link, shape = Link(), Shape(COMPLETE.flags | EXPRESS, 0, 0)
    link.feed(udp(b"x" * 100), shape=shape)
    assert link.sent == [(udp(b"x" * 100), shape)]


BASE = udp(b"a" * 600)
OTHERS = {
    "port": udp(b"b" * 600, port=444),
    "length": udp(b"b" * 599),
    "ttl": udp(b"b" * 600, ttl=63),
    "tos": udp(b"b" * 600, tos=4),
    "version": udp(b"b" * 600, version=6),
    "fragments": udp(b"b" * 600, flags=0),
    "protocol": udp(b"b" * 600, protocol=TCP),
    "small": udp(b"b" * (MIN_PAYLOAD - 1)),
    "options": b"\x46" + BASE[1:20] + bytes(4) + BASE[20:],
    "tiny": BASE[:20],
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_what_differs_is_not_joined_and_nothing_overtakes(other: bytes) -> None:
    link = Link()
    link.feed(BASE, other, BASE)
    link.joiner.flush()
    assert [packet for packet, _ in link.sent] == [BASE, other, BASE]


def test_unequal_shapes_are_not_joined() -> None:
    link = Link()
    bare = udp(b"b" * 600, summed=False)
    link.feed(BASE)
    link.feed(bare, shape=UNSUMMED)
    link.joiner.flush()
    assert link.sent == [(BASE, COMPLETE), (bare, UNSUMMED)]


def test_a_wrong_or_missing_checksum_stays_what_it_is() -> None:
    link = Link()
    wrong = BASE[:-1] + b"b"
    missing = BASE[:26] + bytes(2) + BASE[28:]
    link.feed(BASE, wrong, missing, missing)
    link.joiner.flush()
    assert link.sent == [(packet, COMPLETE) for packet in (BASE, wrong, missing, missing)]


@pytest.mark.parametrize(
    ("numbers", "joined"), [((9, 10, 11), 1), ((65535, 0), 1), ((9, 11), 2), ((9, 9), 2)]
)
def test_ids_that_matter_count_up(numbers: tuple[int, ...], joined: int) -> None:
    link = Link()
    packets = [udp(b"x" * 600, number=number, flags=0) for number in numbers]
    link.feed(*packets)
    link.joiner.flush()
    assert len(link.sent) == joined
    assert link.arrived() == packets


@pytest.mark.parametrize("size", [300, 1300, 2000])
def test_super_packets_are_bounded(size: int) -> None:
    link = Link()
    packets = [udp(b"x" * size, number=number, flags=0) for number in range(100)]
    link.feed(*packets)
    link.joiner.flush()
    for packet, shape in link.sent:
        assert len(packet) <= GSO_MAX_SIZE
        assert (len(packet) - shape.header) // shape.gso_size <= GSO_MAX_SEGS
    assert link.arrived() == packets


@given(
    st.lists(
        st.tuples(st.sampled_from([4, 6]), st.sampled_from([300, 301]), st.integers(1, 2), st.booleans()),
        max_size=30,
    )
)
def test_whatever_comes_arrives_in_order(flows: list[tuple[int, int, int, bool]]) -> None:
    link = Link()
    packets = []
    for number, (version, size, port, flush) in enumerate(flows):
        packet = udp(bytes((number,)) * size, version=version, port=port, flags=0, number=number)
        packets.append(packet)
        link.feed(packet)
        if flush:
            link.joiner.flush()
    link.joiner.flush()
    assert link.arrived() == packets


def test_a_checksum_that_sums_to_nothing() -> None:
    """Zero is sent as all ones (RFC 768); both mean the same to the sum."""
    for filler in range(65_536):
        packet = udp(pack(">H", filler) + b"x" * 598)
        if packet[26:28] == b"\xff\xff":
            break
    link = Link()
    link.feed(packet, packet)
    link.joiner.flush()
    assert len(link.sent) == 1
    assert [each[28:] for each in link.arrived()] == [packet[28:]] * 2
