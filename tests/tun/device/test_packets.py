"""Parsing IP packets: what is valid, what is refused and as what; checksums and the answers we build."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.super_packets import A4, A6, B4, B6, naive_sum
from tun.device.packets import (
    ICMP,
    ICMP6,
    TCP,
    UDP,
    Drop,
    Packet,
    checksum,
    datagram,
    ones_sum,
    parse,
    prohibited,
    pseudo_sum,
)

ROUTER4, ROUTER6 = bytes([198, 18, 0, 1]), ipaddress.ip_address("fd63:7279:7071::1").packed
UDP_HEADER = struct.pack(">HHHH", 1234, 53, 8, 0)


def ipv4(payload: bytes, protocol: int, *, options: bytes = b"", fragment: int = 0) -> bytes:
    first = 0x45 + len(options) // 4
    total = 20 + len(options) + len(payload)
    return (
        struct.pack(">BBHHHBBH", first, 0, total, 7, fragment, 64, protocol, 0) + A4 + B4 + options + payload
    )


def ipv6(payload: bytes, protocol: int, *extensions: bytes) -> bytes:
    """`protocol` is that of the first header behind the fixed one."""
    rest = b"".join(extensions) + payload
    return struct.pack(">IHBB", 6 << 28, len(rest), protocol, 64) + A6 + B6 + rest


def tcp(flags: int = 0x18, *, sequence: int = 1000, acknowledged: int = 2000, data: bytes = b"") -> bytes:
    return struct.pack(">HHIIBBHHH", 1234, 443, sequence, acknowledged, 0x50, flags, 512, 0, 0) + data


def fragment6(following: int, offset: int, more: bool) -> bytes:
    return struct.pack(">BBHI", following, 0, offset | more, 99)


def read(packet: bytes, margin: int = 3) -> Packet | Drop:
    """Parse it with other bytes around it, so that a look outside shows."""
    around = b"\xa5" * margin
    return parse(memoryview(around + packet + around), margin, margin + len(packet))


def good(packet: bytes) -> Packet:
    parsed = read(packet)
    assert isinstance(parsed, Packet)
    return parsed


def test_the_common_packets() -> None:
    assert read(ipv4(tcp(), TCP)) == Packet(4, TCP, 20, A4, B4, 1234, 443, 0, False)
    assert read(ipv4(UDP_HEADER, UDP)) == Packet(4, UDP, 20, A4, B4, 1234, 53, 0, False)
    assert read(ipv6(tcp(), TCP)) == Packet(6, TCP, 40, A6, B6, 1234, 443, 0, False)
    assert read(ipv6(UDP_HEADER, UDP)) == Packet(6, UDP, 40, A6, B6, 1234, 53, 0, False)
    assert read(ipv4(bytes(8), ICMP)) == Packet(4, ICMP, 20, A4, B4, 0, 0, 0, False)
    assert read(ipv6(bytes(8), ICMP6)) == Packet(6, ICMP6, 40, A6, B6, 0, 0, 0, False)


def test_what_needs_the_slow_way() -> None:
    assert good(ipv4(tcp(), TCP, options=b"\x94\x04\0\0\x01\x01\x01\0")).transport == 28
    assert good(ipv4(b"", 99)) == Packet(4, 99, 20, A4, B4, 0, 0, 0, False)
    assert good(ipv6(b"", 59)) == Packet(6, 59, 40, A6, B6, 0, 0, 0, False)
    hop, routed, options = b"\x2b\0" + bytes(6), b"\x3c\0\x04\0" + bytes(4), b"\x06\x01" + bytes(14)
    assert good(ipv6(tcp(), 0, hop, routed, options)) == Packet(6, TCP, 72, A6, B6, 1234, 443, 0, False)
    authenticated = b"\x11\x04" + bytes(22)
    assert good(ipv6(UDP_HEADER, 51, authenticated)).transport == 64


def test_fragments_are_recognised() -> None:
    first = good(ipv4(UDP_HEADER + bytes(8), UDP, fragment=0x2000))
    assert (first.fragment, first.more, first.destination_port) == (0, True, 53)
    later = good(ipv4(UDP_HEADER, UDP, fragment=0x2003))
    assert (later.fragment, later.more, later.source_port, later.destination_port) == (24, True, 0, 0)
    last = good(ipv4(b"x", TCP, fragment=185))
    assert (last.fragment, last.more) == (1480, False)
    assert not good(ipv4(tcp(), TCP, fragment=0x4000)).more  # that is only "do not fragment"
    first = good(ipv6(UDP_HEADER, 44, fragment6(UDP, 0, True)))
    assert first == Packet(6, UDP, 48, A6, B6, 1234, 53, 0, True)
    later = good(ipv6(b"x", 44, fragment6(UDP, 1448, False)))
    assert later == Packet(6, UDP, 48, A6, B6, 0, 0, 1448, False)
    atomic = good(ipv6(tcp(), 44, fragment6(TCP, 0, False)))
    assert (atomic.fragment, atomic.more, atomic.destination_port) == (0, False, 443)


LOOSE = b"\x83\x07\x04" + B4 + b"\0"
CASES = {
    "nothing": (b"", Drop.SHORT),
    "one byte": (b"\x45", Drop.SHORT),
    "version 5": (b"\x55" + ipv4(tcp(), TCP)[1:], Drop.VERSION),
    "version 0": (bytes(64), Drop.VERSION),
    "v4 header of 16": (b"\x44" + ipv4(tcp(), TCP)[1:], Drop.HEADER),
    "v4 header past the end": (b"\x4f" + ipv4(b"", 99)[1:], Drop.HEADER),
    "v4 cut short": (ipv4(tcp(data=b"abc"), TCP)[:-1], Drop.LENGTH),
    "v4 with a tail": (ipv4(tcp(), TCP) + b"\0", Drop.LENGTH),
    "v4 option of length 0": (ipv4(tcp(), TCP, options=b"\x07\0\0\0"), Drop.OPTIONS),
    "v4 option past the end": (ipv4(tcp(), TCP, options=b"\x07\x05\0\0"), Drop.OPTIONS),
    "v4 option without length": (ipv4(tcp(), TCP, options=b"\x01\x01\x01\x07"), Drop.OPTIONS),
    "v4 source route": (ipv4(tcp(), TCP, options=LOOSE), Drop.SOURCE_ROUTE),
    "v4 strict source route": (ipv4(tcp(), TCP, options=b"\x89" + LOOSE[1:]), Drop.SOURCE_ROUTE),
    "v4 TCP of 19": (ipv4(tcp()[:19], TCP), Drop.TRANSPORT),
    "v4 TCP offset 4": (ipv4(tcp()[:12] + b"\x40" + tcp()[13:], TCP), Drop.TRANSPORT),
    "v4 TCP offset past the end": (ipv4(tcp()[:12] + b"\x60" + tcp()[13:], TCP), Drop.TRANSPORT),
    "v4 options, TCP offset past the end": (
        ipv4(tcp()[:12] + b"\x60" + tcp()[13:], TCP, options=bytes(4)),
        Drop.TRANSPORT,
    ),
    "v4 UDP of 7": (ipv4(UDP_HEADER[:7], UDP), Drop.TRANSPORT),
    "v4 UDP of 3": (ipv4(UDP_HEADER[:3], UDP), Drop.TRANSPORT),
    "v4 ICMP of 7": (ipv4(bytes(7), ICMP), Drop.TRANSPORT),
    "v4 TCP split in its header": (ipv4(tcp()[:16], TCP, fragment=0x2000), Drop.FRAGMENT),
    "v4 TCP overlapped in its header": (ipv4(bytes(16), TCP, fragment=0x0001), Drop.FRAGMENT),
    "v4 fragment not in eights": (ipv4(bytes(17), UDP, fragment=0x2001), Drop.FRAGMENT),
    "v4 fragment past 65535": (ipv4(bytes(16), UDP, fragment=0x1FFF), Drop.FRAGMENT),
    "v4 empty fragment": (ipv4(b"", UDP, fragment=0x2000), Drop.FRAGMENT),
    "v6 of 39": (ipv6(b"", 59)[:39], Drop.SHORT),
    "v6 cut short": (ipv6(tcp(data=b"abc"), TCP)[:-1], Drop.LENGTH),
    "v6 with a tail": (ipv6(tcp(), TCP) + b"\0", Drop.LENGTH),
    "v6 jumbo": (ipv6(b"", 0)[:40] + bytes(8), Drop.LENGTH),
    "v6 UDP of 7": (ipv6(UDP_HEADER[:7], UDP), Drop.TRANSPORT),
    "v6 TCP offset past the end": (ipv6(tcp()[:12] + b"\xf0" + tcp()[13:], TCP), Drop.TRANSPORT),
    "v6 extension without room": (ipv6(b"\x06\0\0\0", 60), Drop.EXTENSION),
    "v6 extension past the end": (ipv6(b"\x06\x01" + bytes(6), 60), Drop.EXTENSION),
    "v6 hop-by-hop second": (ipv6(tcp(), 60, b"\0\0" + bytes(6), b"\x06\0" + bytes(6)), Drop.EXTENSION),
    "v6 nine extensions": (
        ipv6(tcp(), 60, *[b"\x3c\0" + bytes(6)] * 8, b"\x06\0" + bytes(6)),
        Drop.EXTENSION,
    ),
    "v6 two fragment headers": (
        ipv6(tcp(), 44, fragment6(44, 0, False), fragment6(TCP, 0, False)),
        Drop.EXTENSION,
    ),
    "v6 routing with a segment left": (ipv6(tcp(), 43, b"\x06\0\x04\x01" + bytes(4)), Drop.SOURCE_ROUTE),
    "v6 first fragment without TCP": (ipv6(tcp()[:16], 44, fragment6(TCP, 0, True)), Drop.FRAGMENT),
    "v6 fragment not in eights": (ipv6(bytes(9), 44, fragment6(UDP, 8, True)), Drop.FRAGMENT),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused_and_as_what(name: str) -> None:
    packet, drop = CASES[name]
    assert read(packet) is drop


@pytest.mark.parametrize(
    "packet", [ipv4(tcp(), TCP), ipv6(UDP_HEADER, UDP), ipv6(tcp(), 60, b"\x06\0" + bytes(6))]
)
def test_every_cut_and_every_tail_is_refused(packet: bytes) -> None:
    good(packet)
    for length in range(len(packet)):
        assert isinstance(read(packet[:length]), Drop)
    assert read(packet + b"\0") is Drop.LENGTH


first_bytes = st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x6F, 0x00])
protocols = st.sampled_from([0, 1, 6, 17, 43, 44, 51, 58, 59, 60, 132, 200])


@given(first_bytes, protocols, st.booleans(), st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_a_cause(first: int, protocol: int, honest: bool, rest: bytes) -> None:
    packet = bytearray(bytes([first]) + rest)
    if first >> 4 == 4 and len(packet) >= 20:
        packet[9] = protocol
        if honest:
            packet[2:4] = len(packet).to_bytes(2)
    elif first >> 4 == 6 and len(packet) >= 40:
        packet[6] = protocol
        if honest:
            packet[4:6] = (len(packet) - 40).to_bytes(2)
    parsed = read(bytes(packet))
    if isinstance(parsed, Drop):
        return
    assert parsed.version == packet[0] >> 4
    assert len(parsed.source) == len(parsed.destination) == (4 if parsed.version == 4 else 16)
    assert parsed.transport <= len(packet)
    if parsed.source_port or parsed.destination_port:
        ports = packet[parsed.transport : parsed.transport + 4]
        assert struct.unpack(">HH", ports) == (parsed.source_port, parsed.destination_port)
        assert parsed.fragment == 0


@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_sums_are_those_of_the_rfc(data: bytes, initial: int) -> None:
    assert ones_sum(data) == naive_sum(data)
    assert checksum(data, initial) == ~naive_sum(data + bytes(len(data) & 1) + initial.to_bytes(2)) & 0xFFFF


def test_the_example_of_rfc_1071() -> None:
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@given(st.binary(min_size=16, max_size=16), st.integers(0, 65535))
def test_the_pseudo_header_is_that_of_rfc_8200(address: bytes, length: int) -> None:
    whole = address + B6 + struct.pack(">IHBB", length, 0, 0, TCP)
    assert pseudo_sum(address, B6, TCP, length) == naive_sum(whole)


def verified(packet: bytes) -> tuple[Packet, bytes]:
    """The packet and its payload behind the IP header, with every checksum looked at."""
    parsed = good(packet)
    payload = packet[parsed.transport :]
    if parsed.version == 4:
        assert naive_sum(packet[:20]) == 0xFFFF
    pseudo = parsed.source + parsed.destination + struct.pack(">IBBH", len(payload), 0, 0, parsed.protocol)
    assert naive_sum((b"" if parsed.protocol == ICMP else pseudo) + payload) == 0xFFFF
    return parsed, payload


def test_a_prohibition_quotes_what_did_not_pass() -> None:
    for packet, router, kind, code, bound in (
        (ipv4(tcp(data=bytes(1400)), TCP), ROUTER4, 3, 13, 576),
        (ipv6(tcp(data=bytes(1400)), TCP), ROUTER6, 1, 1, 1280),
    ):
        asked = good(packet)
        answer = prohibited(packet, 0, len(packet), asked, router)
        assert answer is not None
        parsed, message = verified(answer)
        assert (parsed.source, parsed.destination) == (router, asked.source)
        assert message[:2] == bytes([kind, code])
        assert message[4:8] == bytes(4)
        assert packet.startswith(message[8:])
        assert len(answer) == bound


def test_no_error_where_none_may_be_sent() -> None:
    def from_source(packet: bytes, source: bytes) -> bytes:
        at = 12 if packet[0] >> 4 == 4 else 8
        return packet[:at] + source + packet[at + len(source) :]

    def to(packet: bytes, destination: bytes) -> bytes:
        at = 16 if packet[0] >> 4 == 4 else 24
        return packet[:at] + destination + packet[at + len(destination) :]

    asked4, asked6 = ipv4(UDP_HEADER, UDP), ipv6(UDP_HEADER, UDP)
    silent = [
        ipv4(b"\x03" + bytes(31), ICMP),  # an error
        ipv6(b"\x01" + bytes(31), ICMP6),
        ipv6(b"\x89" + bytes(31), ICMP6),  # a redirect
        ipv4(UDP_HEADER, UDP, fragment=3),
        ipv6(UDP_HEADER, 44, fragment6(UDP, 8, False)),
        from_source(asked4, bytes(4)),
        from_source(asked6, bytes(16)),
        from_source(asked4, b"\xe0\0\0\1"),
        to(asked4, b"\xff\xff\xff\xff"),
        to(asked6, b"\xff\x02" + bytes(14)),
    ]
    for packet in silent:
        source = ROUTER4 if packet[0] >> 4 == 4 else ROUTER6
        assert prohibited(packet, 0, len(packet), good(packet), source) is None, packet.hex()
    echo = ipv4(b"\x08" + bytes(31), ICMP)
    assert prohibited(echo, 0, len(echo), good(echo), ROUTER4) is not None


def test_datagrams_parse() -> None:
    assert good(datagram(A4, B4, UDP, UDP_HEADER)).destination == B4
    assert good(datagram(A6, B6, UDP, UDP_HEADER)).destination == B6
