"""Super-packets and the segments that a sender without offloads would have sent, with word-by-word checksums."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from cryprq_proxy.lane.slices import NEEDS_CSUM, TCP4, TCP6, UDP_GSO, Shape
from tun.device.packets import TCP, UDP

A4, B4 = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 7])
A6, B6 = (ipaddress.ip_address(text).packed for text in ("2001:db8::1", "2001:db8:ffff::7"))
KINDS = [(4, TCP), (6, TCP), (4, UDP), (6, UDP)]
PAYLOAD = bytes(range(256)) * 20
GSO = {(4, TCP): (NEEDS_CSUM | TCP4, 1), (6, TCP): (NEEDS_CSUM | TCP6, 4)}
GSO |= {(version, UDP): (NEEDS_CSUM | UDP_GSO, 5) for version in (4, 6)}
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def naive_sum(data: bytes) -> int:
    """RFC 1071 as it is written, word by word."""
    total = 0
    for high, low in zip(data[::2], data[1::2] + (b"\0" if len(data) & 1 else b""), strict=True):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Flow(NamedTuple):
    """What all segments of a super-packet have in common, and how it is cut."""

    version: int
    protocol: int
    payload: bytes
    gso_size: int
    identity: int = 65534
    sequence: int = 0xFFFFFF00
    flags: int = CWR | ACK | PSH | FIN
    options: bytes = b"\x01\x01\x08\x0a" + bytes(8)

    @property
    def flags_and_type(self) -> tuple[int, int]:
        return GSO[self.version, self.protocol]

    @property
    def network(self) -> int:
        return 20 if self.version == 4 else 40

    @property
    def header(self) -> int:
        return self.network + (20 + len(self.options) if self.protocol == TCP else 8)

    @property
    def of(self) -> int:
        return -(-len(self.payload) // self.gso_size)

    @property
    def shape(self) -> Shape:
        return Shape(self.flags_and_type[0], self.gso_size, self.header)


def built(flow: Flow, first: int, count: int, summed: bool) -> bytes:
    """Segments `first` to `first + count` of the flow as one packet; `summed`: with a full transport checksum."""
    data = flow.payload[first * flow.gso_size : (first + count) * flow.gso_size]
    if flow.protocol == TCP:
        flags = flow.flags
        if first:
            flags &= ~CWR
        if first + count < flow.of:
            flags &= ~(PSH | FIN)
        sequence = (flow.sequence + first * flow.gso_size) % 2**32
        offset = (20 + len(flow.options)) << 2
        transport = (
            struct.pack(">HHIIBBHHH", 4000, 443, sequence, 77, offset, flags, 512, 0, 0) + flow.options
        )
        field = 16
    else:
        transport = struct.pack(">HHHH", 4000, 443, 8 + len(data), 0)
        field = 6
    source, destination = (A4, B4) if flow.version == 4 else (A6, B6)
    length = len(transport) + len(data)
    partial = naive_sum(source + destination + struct.pack(">IBBH", length, 0, 0, flow.protocol))
    if summed:
        partial = ~naive_sum(transport + data + bytes(len(data) & 1) + partial.to_bytes(2)) & 0xFFFF or 0xFFFF
    transport = transport[:field] + partial.to_bytes(2) + transport[field + 2 :]
    if flow.version == 6:
        return struct.pack(">IHBB", 6 << 28, length, flow.protocol, 63) + A6 + B6 + transport + data
    fields = 0x45, 0, 20 + length, (flow.identity + first) % 2**16, 0x4000, 63, flow.protocol
    zero = struct.pack(">BBHHHBBH4s4s", *fields, 0, A4, B4)
    return struct.pack(">BBHHHBBH4s4s", *fields, ~naive_sum(zero) & 0xFFFF, A4, B4) + transport + data


def segments(flow: Flow) -> list[bytes]:
    return [built(flow, index, 1, True) for index in range(flow.of)]


def super_packet(flow: Flow) -> bytes:
    return built(flow, 0, flow.of, False)
