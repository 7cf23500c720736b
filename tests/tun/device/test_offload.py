"""Super-packets: described, torn by loss and repaired, cut in software; against segments built by hand.

The oracle is `segments`: what a sender without offloads would have sent, with word-by-word checksums.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, TCP4, TCP6, UDP_GSO, Run, Shape
from tests.support.super_packets import (
    A4,
    B4,
    KINDS,
    PAYLOAD,
    Flow,
    built,
    naive_sum,
    segments,
    super_packet,
)
from tun.device.offload import (
    COMPLETE,
    MAX_SEGMENTS,
    UNSUMMED,
    VNET,
    VNET_SIZE,
    describe,
    fit,
    split,
    vnet_header,
)
from tun.device.packets import TCP, UDP, Drop, Packet, parse


def placed(packet: bytes) -> tuple[memoryview, int, int]:
    """A buffer with the packet behind the head-room, and other bytes behind it that nothing may touch."""
    return memoryview(bytearray(HEADROOM) + packet + b"\xa5" * 8), HEADROOM, HEADROOM + len(packet)


def cut(buffer: memoryview, start: int, end: int, shape: Shape) -> list[bytes]:
    packets = [bytes(buffer[low:high]) for low, high in split(buffer, start, end, shape)]
    assert buffer[end:] == b"\xa5" * 8
    return packets


def described(packet: bytes, head: tuple[int, int, int, int, int, int]) -> Shape | Drop:
    buffer, start, end = placed(bytes(packet))
    VNET.pack_into(buffer, start - VNET_SIZE, *head)
    return describe(buffer, start, end)


def summable(packet: bytes) -> bool:
    """Whether the transport checksum holds."""
    parsed = parse(packet, 0, len(packet))
    assert isinstance(parsed, Packet)
    rest = packet[parsed.transport :]
    pseudo = parsed.source + parsed.destination + struct.pack(">IBBH", len(rest), 0, 0, parsed.protocol)
    return naive_sum(pseudo + rest) == 0xFFFF


flows = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    payload=st.integers(2, 3000).map(lambda size: (PAYLOAD + PAYLOAD)[:size]),
    gso_size=st.integers(1, 600),
    identity=st.integers(0, 0xFFFF),
    sequence=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 255).map(lambda flags: flags & ~0x06),
    options=st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
).filter(lambda flow: 1 < flow.of <= MAX_SEGMENTS)


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_describe_reads_a_super_packet(version: int, protocol: int) -> None:
    flow = Flow(version, protocol, PAYLOAD, 1400)
    csum_offset = 16 if protocol == TCP else 6
    kind = flow.flags_and_type[1]
    for hdr_len in (0, flow.header, 9999):  # whatever it says
        head = 1, kind, hdr_len, 1400, flow.network, csum_offset
        assert described(super_packet(flow), head) == flow.shape
    one = Flow(version, protocol, PAYLOAD[:900], 1400)
    assert described(super_packet(one), (1, kind, 0, 1400, flow.network, csum_offset)) == UNSUMMED
    assert described(super_packet(one), (1, 0, 0, 0, flow.network, csum_offset)) == UNSUMMED
    assert described(super_packet(one), (0, 0, 0, 0, 0, 0)) == COMPLETE
    assert described(super_packet(one), (2, 0, 0, 0, 0, 0)) == COMPLETE  # checksum known to be good


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_describe_refuses_what_does_not_fit(version: int, protocol: int) -> None:
    flow = Flow(version, protocol, PAYLOAD, 1400)
    csum_offset = 16 if protocol == TCP else 6
    kind, other = flow.flags_and_type[1], {1: 4, 4: 1, 5: 1}[flow.flags_and_type[1]]
    good = (1, kind, 0, 1400, flow.network, csum_offset)
    packet = super_packet(flow)
    wrong = {
        "no checksum asked for": (0, *good[1:]),
        "another kind": (1, other, *good[2:]),
        "an unknown kind": (1, 3, *good[2:]),
        "with ECN": (1, kind | 0x80, *good[2:]),
        "gso_size 0": (*good[:3], 0, *good[4:]),
        "start elsewhere": (*good[:4], flow.network + 4, csum_offset),
        "start outside": (*good[:4], 60000, csum_offset),
        "offset elsewhere": (*good[:5], csum_offset + 2),
    }
    for name, head in wrong.items():
        assert described(packet, head) is Drop.OFFLOAD, name
    assert described(packet + b"\0", good) is Drop.OFFLOAD
    assert described(packet[:27], good) is Drop.SHORT
    assert described(b"", good) is Drop.SHORT
    if protocol == TCP:
        at = flow.network + 12
        assert described(packet[:at] + b"\x40" + packet[at + 1 :], good) is Drop.OFFLOAD
        assert described(packet[: at + 1] + b"\x12" + packet[at + 2 :], good) is Drop.OFFLOAD  # SYN


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_super_packet_with_bad_options_is_refused(protocol: int) -> None:
    """Else its segments would be no packets."""
    for options, good in ((b"\x01\x01\x01\x01", True), (b"\x03\x40\x06\x00", False)):
        flow = Flow(4, protocol, PAYLOAD, 1400)
        plain = super_packet(flow)
        packet = bytearray(plain[:20] + options + plain[20:])
        packet[0] = 0x46
        packet[2:4] = len(packet).to_bytes(2)
        if protocol == UDP:
            assert int.from_bytes(packet[28:30]) == len(packet) - 24
        shape = flow.shape._replace(header=flow.header + 4)
        csum_offset = 16 if protocol == TCP else 6
        assert described(bytes(packet), (1, flow.flags_and_type[1], 0, 1400, 24, csum_offset)) == (
            shape if good else Drop.OFFLOAD
        )
        buffer, start, end = placed(bytes(packet))
        assert fit(buffer, start, end, Run(shape, 0, flow.of, flow.of)) == (shape if good else Drop.OFFLOAD)


def test_describe_completes_a_checksum_that_lies_deeper() -> None:
    """As of TCP inside IPv4 inside IPv4: the other side would look for it in the outer packet."""
    inner = built(Flow(4, TCP, PAYLOAD[:700], 1400), 0, 1, False)
    fields = 0x45, 0, 20 + len(inner), 1, 0, 64, 4, 0
    packet = struct.pack(">BBHHHBBH", *fields) + A4 + B4 + inner
    buffer, start, end = placed(bytes(packet))
    VNET.pack_into(buffer, start - VNET_SIZE, 1, 0, 0, 0, 40, 16)
    assert describe(buffer, start, end) == COMPLETE
    assert summable(bytes(buffer[start + 20 : end]))


@given(flows)
def test_split_gives_the_segments_of_a_sender_without_offloads(flow: Flow) -> None:
    buffer, start, end = placed(super_packet(flow))
    packets = cut(buffer, start, end, flow.shape)
    assert packets == segments(flow)
    assert all(summable(packet) for packet in packets)
    assert b"".join(packet[flow.header :] for packet in packets) == flow.payload


@given(flows, st.data())
def test_a_run_becomes_the_super_packet_of_its_segments(flow: Flow, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, flow.of - 1))
    count = data.draw(st.integers(1, flow.of - first))
    payload = flow.payload[first * flow.gso_size : (first + count) * flow.gso_size]
    buffer, start, end = placed(super_packet(flow)[: flow.header] + payload)
    shape = fit(buffer, start, end, Run(flow.shape, first, count, flow.of))
    assert shape == (flow.shape if len(payload) > flow.gso_size else UNSUMMED)
    expected = built(flow, first, count, False)
    at = flow.network + (16 if flow.protocol == TCP else 6)  # 0 and 0xFFFF are the same sum
    assert bytes(buffer[start : start + at]) == expected[:at]
    assert bytes(buffer[start + at + 2 : end]) == expected[at + 2 :]
    assert (
        int.from_bytes(buffer[start + at : start + at + 2]) % 0xFFFF
        == int.from_bytes(expected[at : at + 2]) % 0xFFFF
    )
    assert isinstance(parse(buffer, start, end), Packet)
    assert isinstance(shape, Shape)
    assert cut(buffer, start, end, shape) == segments(flow)[first : first + count]


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_what_is_written_in_front_is_what_describe_reads(version: int, protocol: int) -> None:
    flow = Flow(version, protocol, PAYLOAD, 1400)
    for first, count in ((0, 4), (1, 2), (3, 1)):
        payload = flow.payload[first * 1400 : (first + count) * 1400]
        buffer, start, end = placed(super_packet(flow)[: flow.header] + payload)
        shape = fit(buffer, start, end, Run(flow.shape, first, count, flow.of))
        assert isinstance(shape, Shape)
        at = vnet_header(buffer, start, end, shape)
        assert at == start - VNET_SIZE
        bits, kind, hdr_len, gso_size, csum_start, csum_offset = VNET.unpack_from(buffer, at)
        assert (bits, csum_start, csum_offset) == (1, flow.network, 16 if protocol == TCP else 6)
        alone = count == 1
        assert (kind, gso_size, hdr_len) == (
            (0, 0, 0) if alone else (flow.flags_and_type[1], 1400, flow.header)
        )
        assert describe(buffer, start, end) == (UNSUMMED if alone else flow.shape)


def test_plain_packets_pass_as_they_are() -> None:
    for flow in (Flow(version, protocol, b"hello", 100) for version, protocol in KINDS):
        packet = built(flow, 0, 1, True)
        buffer, start, end = placed(bytes(packet))
        assert fit(buffer, start, end, Run(COMPLETE, 0, 1, 1)) == COMPLETE
        assert vnet_header(buffer, start, end, COMPLETE) == start - VNET_SIZE
        assert bytes(buffer[start - VNET_SIZE : start]) == bytes(VNET_SIZE)
        assert cut(buffer, start, end, COMPLETE) == [packet]
        buffer, start, end = placed(super_packet(flow))
        assert fit(buffer, start, end, Run(UNSUMMED, 0, 3, 3)) == UNSUMMED  # in smaller slices, all there
        assert cut(buffer, start, end, UNSUMMED) == [packet]
        assert fit(buffer, start, end, Run(UNSUMMED, 0, 2, 3)) is Drop.PARTIAL
        assert fit(buffer, start, end, Run(COMPLETE, 1, 2, 3)) is Drop.PARTIAL


def test_a_whole_super_packet_may_have_come_in_smaller_slices() -> None:
    flow = Flow(4, TCP, PAYLOAD, 1400)
    buffer, start, end = placed(super_packet(flow))
    assert fit(buffer, start, end, Run(flow.shape, 0, 9, 9)) == flow.shape


def test_behind_an_extension_header() -> None:
    """A destination options header between IPv6 and TCP."""
    flow = Flow(6, TCP, PAYLOAD, 1400)
    plain = super_packet(flow)
    packet = (
        plain[:4]
        + (len(plain) - 32).to_bytes(2)
        + b"\x3c"
        + plain[7:40]
        + b"\x06\0\x01\x04"
        + bytes(4)
        + plain[40:]
    )
    shape = Shape(flow.shape.flags, 1400, flow.header + 8)
    assert described(packet, (1, 4, 0, 1400, 48, 16)) == shape
    buffer, start, end = placed(packet[: shape.header + 2800])
    assert fit(buffer, start, end, Run(shape, 0, 2, 4)) == shape
    pieces = cut(buffer, start, end, shape)
    assert [len(piece) for piece in pieces] == [shape.header + 1400] * 2
    assert all(summable(piece) for piece in pieces)
    buffer, start, end = placed(bytes(packet))
    assert VNET.unpack_from(buffer, vnet_header(buffer, start, end, shape))[4] == 48


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_what_a_hostile_peer_may_claim(version: int, protocol: int) -> None:
    flow = Flow(version, protocol, PAYLOAD, 1400)
    packet = super_packet(flow)
    flags, _, header = flow.shape
    of = flow.of

    def fitted(bytes_: bytes, run: Run) -> Shape | Drop:
        buffer, start, end = placed(bytes_)
        return fit(buffer, start, end, run)

    whole = Run(flow.shape, 0, of, of)
    assert fitted(packet, whole) == flow.shape
    other = NEEDS_CSUM | (UDP_GSO if protocol == TCP else TCP4)
    for shape in (
        Shape(flags & ~NEEDS_CSUM, 1400, header),
        Shape(flags | 8, 1400, header),
        Shape(other, 1400, header),
        Shape(flags ^ (TCP4 | TCP6) if protocol == TCP else other, 1400, header),
        Shape(flags, 0, header),
        Shape(flags, 1400, 0),
        Shape(flags, 1400, header - 4),
        Shape(flags, 1400, header + 4),
        Shape(flags, 1400, len(packet)),
        Shape(flags, 1400, 65535),
        Shape(flags, 1, header),  # 5,120 segments
    ):
        assert fitted(packet, Run(shape, 0, of, of)) is Drop.OFFLOAD, shape
    assert fitted(packet[:-1], whole) is Drop.LENGTH
    assert fitted(packet + b"\0", whole) is Drop.LENGTH
    assert fitted(packet[:10], whole) is Drop.SHORT
    assert fitted(b"", whole) is Drop.SHORT
    for first, count, total in ((-1, 2, 4), (0, 0, 4), (3, 2, 4), (4, 1, 4), (0, 5, 4)):
        assert fitted(packet, Run(flow.shape, first, count, total)) is Drop.OFFLOAD
    part = packet[: header + 2800]
    assert fitted(part, Run(flow.shape, 1, 2, of)) == flow.shape
    for first, count, total in ((1, 1, of), (1, 3, of), (1, 2, of + 1), (2, 2, of), (1, 2, 3)):
        assert fitted(part, Run(flow.shape, first, count, total)) is Drop.LENGTH
    if version == 4:
        assert fitted(packet[:6] + b"\x20\0" + packet[8:], whole) is Drop.OFFLOAD  # a fragment
        assert fitted(b"\x44" + packet[1:], whole) is Drop.OFFLOAD
    assert isinstance(fitted(b"\x50" + packet[1:], whole), Drop)
    if protocol == UDP:
        at = flow.network + 4
        assert fitted(packet[:at] + b"\0\x09" + packet[at + 2 :], whole) is Drop.LENGTH
    assert fitted(packet[:20], Run(UNSUMMED, 0, 1, 1)) is Drop.SHORT
    nowhere = bytearray(packet)
    nowhere[9 if version == 4 else 6] = 50
    assert fitted(bytes(nowhere), Run(UNSUMMED, 0, 1, 1)) is Drop.OFFLOAD


@given(
    st.binary(max_size=200),
    st.sampled_from([0x45, 0x46, 0x60]),
    st.sampled_from([TCP, UDP, 60]),
    st.builds(
        Run,
        st.builds(Shape, st.integers(0, 15), st.integers(0, 300), st.integers(0, 100)),
        st.integers(0, 3),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
)
def test_any_run_fits_or_has_a_cause(rest: bytes, first: int, protocol: int, run: Run) -> None:
    packet = bytearray(bytes([first]) + rest)
    if len(packet) >= 44:
        total = len(packet) if first >> 4 == 4 else len(packet) - 40
        at = 2 if first >> 4 == 4 else 4
        packet[at : at + 2] = total.to_bytes(2)
        packet[9 if first >> 4 == 4 else 6] = protocol
    buffer, start, end = placed(bytes(packet))
    shape = fit(buffer, start, end, run)
    if isinstance(shape, Shape):
        pieces = cut(buffer, start, end, shape)
        assert len(pieces) <= MAX_SEGMENTS
