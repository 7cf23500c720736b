"""Frames, encoded and as they decode: one of each kind byte by byte, and any small one for hypothesis."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import LaneUse, StreamProtocol

NAME = Destination("example.com", 443)
V4 = Destination("192.0.2.1", 80)
V6 = Destination("2001:db8::1", 65535)
NOWHERE = Destination("0.0.0.0", 0)
LONGEST_NAME = Destination(".".join(["a" * 63] * 3 + ["b" * 61]), 1)

STREAMS = st.integers(1, wire.MAX_STREAM)
SERIALS = st.integers(0, 2**32 - 1)
NUMBERS = st.integers(0, 2**64 - 1)
OFFSETS = st.integers(0, wire.MAX_OFFSET)
DESTINATIONS = st.sampled_from([NAME, V4, V6, LONGEST_NAME])
REASONS = st.sampled_from(StreamReason)

NETWORKS: list[IPNetwork] = [
    *(IPv4Network(text) for text in ("0.0.0.0/0", "192.168.77.0/24", "255.255.255.255/32", "10.0.0.0/8")),
    *(IPv6Network(text) for text in ("::/0", "fd00::/8", "::fffe:0:0/95", "::1/128")),
]
"""Prefixes at the edges of how TAKEN tells IPv4 from IPv6."""

type Expected = tuple[int, int, Any]


class Worked(NamedTuple):
    """One frame of docs/protocol.md, section "Worked example"."""

    name: str
    shown: str
    encoded: bytes
    decoded: Expected


WORKED = [
    Worked(
        "OPEN, stream 1, TCP, example.com:443",
        "010000000101030b6578616d706c652e636f6d01bb",
        wire.encode_open(1, StreamProtocol.TCP, NAME),
        (wire.OPEN, 1, (StreamProtocol.TCP, NAME)),
    ),
    Worked(
        "OPEN, stream 2, TCP, [2001:db8::1]:22",
        "0100000002010420010db80000000000000000000000010016",
        wire.encode_open(2, StreamProtocol.TCP, Destination("2001:db8::1", 22)),
        (wire.OPEN, 2, (StreamProtocol.TCP, Destination("2001:db8::1", 22))),
    ),
    Worked(
        "OPEN, stream 3, UDP",
        "01000000030201000000000000",
        wire.encode_open(3, StreamProtocol.UDP, NOWHERE),
        (wire.OPEN, 3, (StreamProtocol.UDP, NOWHERE)),
    ),
    Worked(
        "OPEN, stream 4, RESOLVER",
        "01000000040301000000000000",
        wire.encode_open(4, StreamProtocol.RESOLVER, NOWHERE),
        (wire.OPEN, 4, (StreamProtocol.RESOLVER, NOWHERE)),
    ),
    Worked(
        "OPEN, stream 5, REPORT",
        "01000000050401000000000000",
        wire.encode_open(5, StreamProtocol.REPORT, NOWHERE),
        (wire.OPEN, 5, (StreamProtocol.REPORT, NOWHERE)),
    ),
    Worked("OPENED, stream 1", "0200000001", wire.encode_opened(1), (wire.OPENED, 1, None)),
    Worked(
        "REFUSED, stream 2, CONNECTION_REFUSED",
        "030000000204",
        wire.encode_refused(2, StreamReason.CONNECTION_REFUSED),
        (wire.REFUSED, 2, StreamReason.CONNECTION_REFUSED),
    ),
    Worked(
        'DATA, stream 1, offset 0, "hello"',
        "0400000001000000000000000068656c6c6f",
        wire.encode_data_header(wire.DATA, 1, 0) + b"hello",
        (wire.DATA, 1, (0, b"hello")),
    ),
    Worked(
        'DATA, stream 1, offset 65,536, "bye"',
        "04000000010000000000010000627965",
        wire.encode_data_header(wire.DATA, 1, 65_536) + b"bye",
        (wire.DATA, 1, (65_536, b"bye")),
    ),
    Worked(
        "FIN, stream 1, final offset 65,539",
        "11000000010000000000010003",
        wire.encode_fin(1, 65_539),
        (wire.FIN, 1, 65_539),
    ),
    Worked(
        "RESET, stream 1, CANCELLED, final offset 5",
        "05000000010b0000000000000005",
        wire.encode_reset(1, StreamReason.CANCELLED, 5),
        (wire.RESET, 1, (StreamReason.CANCELLED, 5)),
    ),
    Worked(
        "WINDOW, stream 1, 131,072 bytes in all",
        "06000000010000000000020000",
        wire.encode_window(1, 131_072),
        (wire.WINDOW, 1, 131_072),
    ),
    Worked(
        "WINDOW, all streams, 268,435,456 bytes in all",
        "06000000000000000010000000",
        wire.encode_window(0, 268_435_456),
        (wire.WINDOW, 0, 268_435_456),
    ),
    Worked(
        "STREAMS, 20,000 in all",
        "070000000000004e20",
        wire.encode_number(wire.STREAMS, 20_000),
        (wire.STREAMS, 0, 20_000),
    ),
    Worked(
        "REKEY, epoch 1, part 0, 1234",
        "08000000010000021234",
        wire.encode_part(wire.REKEY, 1, 0, b"\x12\x34"),
        (wire.REKEY, 0, (1, 0, b"\x12\x34")),
    ),
    Worked(
        "REKEY_ANSWER, epoch 1, part 2, 5678",
        "09000000010200025678",
        wire.encode_part(wire.REKEY_ANSWER, 1, 2, b"\x56\x78"),
        (wire.REKEY_ANSWER, 0, (1, 2, b"\x56\x78")),
    ),
    Worked(
        "REKEY_PLEASE, epoch 1",
        "0a00000001",
        wire.encode_epoch(wire.REKEY_PLEASE, 1),
        (wire.REKEY_PLEASE, 0, 1),
    ),
    Worked(
        "LANE, epoch 1, index 2,712,847,316, from a client that is set to TCP",
        "0b00000001a1b2c3d401",
        wire.encode_lane(1, 2_712_847_316, LaneUse.TCP),
        (wire.LANE, 0, (1, 2_712_847_316, LaneUse.TCP)),
    ),
    Worked(
        "NETWORK, serial 1, 100.96.7.9, no IPv6",
        "0c000000016460070900000000000000000000000000000000",
        wire.encode_network(1, bytes((100, 96, 7, 9)), bytes(16)),
        (wire.NETWORK, 0, (1, bytes((100, 96, 7, 9)), bytes(16))),
    ),
    Worked(
        "TAKEN, serial 1, 10.0.0.0/8",
        "0d00000001016800000000000000000000ffff0a000000",
        wire.encode_taken(1, [IPv4Network("10.0.0.0/8")]),
        (wire.TAKEN, 0, (1, (IPv4Network("10.0.0.0/8"),))),
    ),
    Worked("GOAWAY", "0e", wire.encode_bare(wire.GOAWAY), (wire.GOAWAY, 0, None)),
    Worked(
        "PREFER, serial 2, path 3",
        "0f0000000200000003",
        wire.encode_prefer(2, 3),
        (wire.PREFER, 0, (2, 3)),
    ),
    Worked(
        "ABANDON, path 2, 1,000 records",
        "100000000200000000000003e8",
        wire.encode_records(wire.ABANDON, 2, 1_000),
        (wire.ABANDON, 0, (2, 1_000)),
    ),
    Worked(
        "ACK, path 0, 3 records",
        "20000000000000000000000003",
        wire.encode_records(wire.ACK, 0, 3),
        (wire.ACK, 0, (0, 3)),
    ),
    Worked("PING, token 7", "210000000000000007", wire.encode_number(wire.PING, 7), (wire.PING, 0, 7)),
    Worked("PONG, token 7", "220000000000000007", wire.encode_number(wire.PONG, 7), (wire.PONG, 0, 7)),
    Worked("SWITCH, epoch 1", "2300000001", wire.encode_epoch(wire.SWITCH, 1), (wire.SWITCH, 0, 1)),
    Worked(
        "DATAGRAM, stream 3, 192.0.2.53:53, payload 1234",
        "2400000003000201c000023500351234",
        wire.encode_datagram(3, Destination("192.0.2.53", 53), b"\x12\x34"),
        (wire.DATAGRAM, 3, (Destination("192.0.2.53", 53), b"\x12\x34")),
    ),
    Worked(
        "PACKET, plain, packet 4500",
        "25000000000000024500",
        wire.encode_packet(0, 0, 0, b"\x45\x00"),
        (wire.PACKET, 0, (0, 0, 0, b"\x45\x00")),
    ),
    Worked(
        "ADVERTISE, 203.0.113.7:4433",
        "2601cb0071071151",
        wire.encode_advertise(Destination("203.0.113.7", 4433)),
        (wire.ADVERTISE, 0, Destination("203.0.113.7", 4433)),
    ),
    Worked(
        "ADVERTISE, [2001:db8::7]:4433",
        "260420010db80000000000000000000000071151",
        wire.encode_advertise(Destination("2001:db8::7", 4433)),
        (wire.ADVERTISE, 0, Destination("2001:db8::7", 4433)),
    ),
    Worked(
        "CLOSE, SHUTTING_DOWN",
        "2708",
        wire.encode_close(CloseReason.SHUTTING_DOWN),
        (wire.CLOSE, 0, CloseReason.SHUTTING_DOWN),
    ),
    Worked("ACCEPT", "28", wire.encode_bare(wire.ACCEPT), (wire.ACCEPT, 0, None)),
    Worked("NO_SESSION", "29", wire.encode_bare(wire.NO_SESSION), (wire.NO_SESSION, 0, None)),
    Worked(
        "JOINED, proof 00 01 ... 1f",
        "2a000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        wire.encode_joined(bytes(range(32))),
        (wire.JOINED, 0, bytes(range(32))),
    ),
]
"""At least one frame of each kind. The bytes were put together by hand from the layouts in docs/protocol.md."""

SMALL_FRAMES = st.one_of(
    st.builds(
        lambda stream, protocol, destination: (
            wire.encode_open(stream, protocol, destination),
            (wire.OPEN, stream, (protocol, destination)),
        ),
        STREAMS,
        st.sampled_from(StreamProtocol),
        DESTINATIONS,
    ),
    st.builds(lambda stream: (wire.encode_opened(stream), (wire.OPENED, stream, None)), STREAMS),
    st.builds(
        lambda stream, reason: (wire.encode_refused(stream, reason), (wire.REFUSED, stream, reason)),
        STREAMS,
        REASONS,
    ),
    st.builds(
        lambda stream, reason, final: (
            wire.encode_reset(stream, reason, final),
            (wire.RESET, stream, (reason, final)),
        ),
        STREAMS,
        REASONS,
        OFFSETS,
    ),
    st.builds(
        lambda stream, final: (wire.encode_fin(stream, final), (wire.FIN, stream, final)), STREAMS, OFFSETS
    ),
    st.builds(
        lambda stream, limit: (wire.encode_window(stream, limit), (wire.WINDOW, stream, limit)),
        SERIALS,
        NUMBERS,
    ),
    st.builds(
        lambda kind, value: (wire.encode_number(kind, value), (kind, 0, value)),
        st.sampled_from([wire.STREAMS, wire.PING, wire.PONG]),
        NUMBERS,
    ),
    st.builds(
        lambda kind, epoch, part, data: (
            wire.encode_part(kind, epoch, part, data),
            (kind, 0, (epoch, part, data)),
        ),
        st.sampled_from([wire.REKEY, wire.REKEY_ANSWER]),
        SERIALS,
        st.integers(0, wire.PARTS - 1),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda stream, destination, payload: (
            wire.encode_datagram(stream, destination, payload),
            (wire.DATAGRAM, stream, (destination, payload)),
        ),
        STREAMS,
        DESTINATIONS,
        st.binary(max_size=40),
    ),
    st.builds(
        lambda kind, epoch: (wire.encode_epoch(kind, epoch), (kind, 0, epoch)),
        st.sampled_from([wire.REKEY_PLEASE, wire.SWITCH]),
        SERIALS,
    ),
    st.builds(
        lambda epoch, index, use: (wire.encode_lane(epoch, index, use), (wire.LANE, 0, (epoch, index, use))),
        SERIALS,
        SERIALS,
        st.sampled_from(LaneUse),
    ),
    st.builds(
        lambda serial, path: (wire.encode_prefer(serial, path), (wire.PREFER, 0, (serial, path))),
        SERIALS,
        SERIALS,
    ),
    st.builds(
        lambda kind, path, records: (wire.encode_records(kind, path, records), (kind, 0, (path, records))),
        st.sampled_from([wire.ACK, wire.ABANDON]),
        SERIALS,
        NUMBERS,
    ),
    st.builds(
        lambda serial, ipv4, ipv6: (
            wire.encode_network(serial, ipv4, ipv6),
            (wire.NETWORK, 0, (serial, ipv4, ipv6)),
        ),
        SERIALS,
        st.binary(min_size=4, max_size=4),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(
        lambda serial, networks: (
            wire.encode_taken(serial, networks),
            (wire.TAKEN, 0, (serial, tuple(networks))),
        ),
        SERIALS,
        st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=wire.MAX_TAKEN),
    ),
    st.builds(
        lambda flags, segment, header, packet: (
            wire.encode_packet(flags, segment, header, packet),
            (wire.PACKET, 0, (flags, segment, header, packet)),
        ),
        st.integers(0, 255),
        st.integers(0, 65_535),
        st.integers(0, 65_535),
        st.binary(min_size=1, max_size=40),
    ),
    st.builds(
        lambda address: (wire.encode_advertise(address), (wire.ADVERTISE, 0, address)),
        st.sampled_from([V4, V6]),
    ),
    st.builds(
        lambda kind: (wire.encode_bare(kind), (kind, 0, None)),
        st.sampled_from([wire.GOAWAY, wire.ACCEPT, wire.NO_SESSION]),
    ),
    st.builds(
        lambda reason: (wire.encode_close(reason), (wire.CLOSE, 0, reason)), st.sampled_from(CloseReason)
    ),
    st.builds(
        lambda proof: (wire.encode_joined(proof), (wire.JOINED, 0, proof)),
        st.binary(min_size=32, max_size=32),
    ),
)
"""All kinds but DATA, which takes the rest of its record."""
