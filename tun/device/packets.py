"""IP packets: what a packet is and where it goes, whether it is whole, and the short answers to one that may not pass.

`parse` runs for every packet that crosses the link, on both sides, before anything else reads it. The common shapes
(IPv4 without options, IPv6 without extension headers) take one unpack and a few comparisons. The rest takes slower
functions that read at most 40 bytes of options or 8 extension headers. A packet that is not exactly what its own header
says is not repaired: `parse` returns the cause, which the caller counts. It never raises.

Header checksums are left to the kernel that gets the packet; it checks them anyway.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final, NamedTuple

type Buffer = bytes | bytearray | memoryview

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMP6: Final = 58

V4_HEADER: Final = 20
V6_HEADER: Final = 40
MAX_EXTENSIONS: Final = 8
"""IPv6 extension headers that are followed; real packets carry one or two."""


class Drop(StrEnum):
    """Why a packet or a run of slices goes no further: the key of a drop counter, its value the name in `status`."""

    VERSION = "not IPv4 nor IPv6"
    SHORT = "shorter than its headers"
    HEADER = "bad header length"
    LENGTH = "length field differs from length"
    OPTIONS = "bad IPv4 options"
    EXTENSION = "bad IPv6 extension headers"
    SOURCE_ROUTE = "source routing"
    FRAGMENT = "bad fragment"
    TRANSPORT = "bad TCP, UDP or ICMP header"
    OFFLOAD = "bad offload description"
    PARTIAL = "slices missing"
    FAMILY = "family header differs from version"
    REFUSED = "refused by the kernel"
    BUSY = "device queue full"
    QUEUE = "sent faster than the link takes it"


class Packet(NamedTuple):
    """One valid IP packet, as its headers describe it."""

    version: int
    """4 or 6."""
    protocol: int
    """The transport protocol: IPv6 extension headers are behind us."""
    transport: int
    """Bytes in front of the transport header (of the fragment's data, for a fragment that is not the first)."""
    source: bytes
    """4 or 16 bytes."""
    destination: bytes
    source_port: int
    """Of TCP, UDP and their relatives; 0 where there is none, as in a fragment that is not the first."""
    destination_port: int
    fragment: int
    """Offset of this fragment in the original, in bytes; 0 also where the packet is no fragment."""
    more: bool
    """More fragments follow."""


_V4: Final = struct.Struct(">BBHHHBBH4s4sHH")  # with the transport's two ports
_V4_BARE: Final = struct.Struct(">BBHHHBBH4s4s")
_V6: Final = struct.Struct(">IHBB16s16s")
_PORTS: Final = struct.Struct(">HH")
_FRAGMENT: Final = struct.Struct(">BBHI")
_ICMP: Final = struct.Struct(">BBHI")

_HOP_BY_HOP, _ROUTING, _FRAGMENTED, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS: Final = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENTED, _AUTHENTICATION, _DESTINATION})
_LEAST: Final = {ICMP: 8, TCP: 20, UDP: 8, 33: 12, ICMP6: 4, 132: 12, 136: 8}
"""Protocol -> the shortest header it may have. What is not listed is carried unread."""
# 33, 132, 136: DCCP, SCTP, UDP-Lite.
_WITH_PORTS: Final = frozenset({TCP, UDP, 33, 132, 136})

# A NamedTuple's own constructor takes three times as long.
_new = tuple.__new__


def parse(buffer: Buffer, start: int, end: int) -> Packet | Drop:
    """The packet in `buffer[start:end]` (RFC 791, RFC 8200), or why it is none.

    Its length fields must agree with `end - start` exactly. Source routes are refused, because what the destination
    field says would not be where the packet goes.
    """
    size = end - start
    if size < V4_HEADER:
        return Drop.SHORT
    version = buffer[start] >> 4
    if version == 6:
        return _parse6(buffer, start, size)
    if version != 4:
        return Drop.VERSION
    if size < 24:
        return _parse4(buffer, start, size)
    first, _, total, _, fragment, _, protocol, _, source, destination, near, far = _V4.unpack_from(
        buffer, start
    )
    if first != 0x45 or total != size or fragment & 0x3FFF:
        return _parse4(buffer, start, size)
    if protocol == TCP:
        if size < 40 or not 20 <= (buffer[start + 32] >> 4) * 4 <= size - V4_HEADER:
            return Drop.TRANSPORT
    elif size < V4_HEADER + _LEAST.get(protocol, 0):
        return Drop.TRANSPORT
    if protocol not in _WITH_PORTS:
        near = far = 0
    return _new(Packet, (4, protocol, V4_HEADER, source, destination, near, far, 0, False))


def _parse4(buffer: Buffer, start: int, size: int) -> Packet | Drop:
    """The rarer IPv4 packets: with options, a fragment, without payload, or not valid."""
    first, _, total, _, fragment, _, protocol, _, source, destination = _V4_BARE.unpack_from(buffer, start)
    header = (first & 0x0F) * 4
    if header < V4_HEADER or header > size:
        return Drop.HEADER
    if total != size:
        return Drop.LENGTH
    if header > V4_HEADER:
        fault = _options(buffer, start + V4_HEADER, start + header)
        if fault is not None:
            return fault
    offset, more = (fragment & 0x1FFF) * 8, bool(fragment & 0x2000)
    return _finish(buffer, start, size, (4, protocol, header, source, destination), offset, more)


def _options(buffer: Buffer, at: int, end: int) -> Drop | None:
    """Walk the IPv4 options (RFC 791 section 3.1); None if they are in order."""
    while at < end:
        kind = buffer[at]
        if kind == 0:
            return None
        if kind == 1:
            at += 1
            continue
        if kind in (131, 137):
            return Drop.SOURCE_ROUTE
        if at + 2 > end or buffer[at + 1] < 2 or at + buffer[at + 1] > end:
            return Drop.OPTIONS
        at += buffer[at + 1]
    return None


def _parse6(buffer: Buffer, start: int, size: int) -> Packet | Drop:  # noqa: C901  a walk along headers
    if size < V6_HEADER:
        return Drop.SHORT
    _, length, protocol, _, source, destination = _V6.unpack_from(buffer, start)
    if length != size - V6_HEADER:
        return Drop.LENGTH
    if protocol not in _EXTENSIONS:
        return _finish(buffer, start, size, (6, protocol, V6_HEADER, source, destination), 0, False)
    at, offset, more, fragmented = V6_HEADER, 0, False, False
    for _ in range(MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            return _finish(buffer, start, size, (6, protocol, at, source, destination), offset, more)
        if size < at + 8:
            return Drop.EXTENSION
        this, protocol, count = protocol, buffer[start + at], buffer[start + at + 1]
        if this == _FRAGMENTED:
            field = _FRAGMENT.unpack_from(buffer, start + at)[2]
            if fragmented:
                return Drop.EXTENSION
            offset, more, fragmented = field & 0xFFF8, bool(field & 1), True
            at += 8
            if offset:
                return _finish(buffer, start, size, (6, protocol, at, source, destination), offset, more)
            continue
        if this == _HOP_BY_HOP and at != V6_HEADER:
            return Drop.EXTENSION
        # Segments left.
        if this == _ROUTING and buffer[start + at + 3]:
            return Drop.SOURCE_ROUTE
        at += (count + 2) * 4 if this == _AUTHENTICATION else (count + 1) * 8
        if at > size:
            return Drop.EXTENSION
    return Drop.EXTENSION


def _finish(
    buffer: Buffer, start: int, size: int, known: tuple[int, int, int, bytes, bytes], offset: int, more: bool
) -> Packet | Drop:
    """Read what follows the IP headers of any version: fragment, transport header, ports."""
    _, protocol, transport, _, _ = known
    length = size - transport
    if (more or offset) and _bad_fragment(protocol, length, offset, more):
        return Drop.FRAGMENT
    if offset:
        return _new(Packet, (*known, 0, 0, offset, more))
    if length < _LEAST.get(protocol, 0):
        return Drop.FRAGMENT if more else Drop.TRANSPORT
    if protocol == TCP and not 20 <= (buffer[start + transport + 12] >> 4) * 4 <= length:
        return Drop.FRAGMENT if more else Drop.TRANSPORT
    ports = _PORTS.unpack_from(buffer, start + transport) if protocol in _WITH_PORTS else (0, 0)
    return _new(Packet, (*known, *ports, 0, more))


def _bad_fragment(protocol: int, length: int, offset: int, more: bool) -> bool:
    """Fragments that only an attack makes: they overlap a TCP header (RFC 3128), overflow or do not fit together."""
    return (
        length == 0
        or (more and length % 8 != 0)
        or offset + length > 0xFFFF
        or (protocol == TCP and 0 < offset < 20)
    )


# Checksums (RFC 1071). One big integer modulo 0xFFFF is the folded sum of its 16-bit words, and the fastest in
# plain Python: 2 us for 1,400 bytes on an idle core, where a sum over unpacked words takes five times that.


def ones_sum(data: Buffer) -> int:
    """The ones' complement sum of the 16-bit words of `data`, folded to 16 bits and not inverted."""
    number = int.from_bytes(data)
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF or (0xFFFF if number else 0)


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The sum of the pseudo-header of TCP, UDP or ICMPv6: RFC 9293 section 3.1 and RFC 8200 section 8.1.

    `length` counts the transport header and what follows it. Folded, not inverted: so it stands in the checksum field
    of a packet that leaves the rest of the work to an offload.
    """
    return (int.from_bytes(source + destination) + protocol + length) % 0xFFFF or 0xFFFF


def checksum(data: Buffer, initial: int = 0) -> int:
    """The Internet checksum of `data`, 16 bits, ready for its field; `initial` is a sum to go on from."""
    total = ones_sum(data) + initial
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


# The answer of the exit to a packet that its policy refuses: programs fail at once and not by a time-out.


def prohibited(buffer: Buffer, start: int, end: int, packet: Packet, source: bytes) -> bytes | None:
    """The ICMP error that tells the sender of `packet` that a policy forbids it (RFC 1812 section 5.2.7.1, RFC 4443
    section 3.1, code 1); `source` is the address we answer from.

    None where no error may be sent: RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e).
    """
    if not _answerable(buffer, start, packet):
        return None
    kind, code = (3, 13) if packet.version == 4 else (1, 1)
    message = bytearray(_ICMP.pack(kind, code, 0, 0))
    message += buffer[start : min(end, start + _QUOTED[packet.version])]
    protocol = ICMP if packet.version == 4 else ICMP6
    initial = 0 if packet.version == 4 else pseudo_sum(source, packet.source, ICMP6, len(message))
    message[2:4] = checksum(message, initial).to_bytes(2)
    return datagram(source, packet.source, protocol, message)


def datagram(source: bytes, destination: bytes, protocol: int, payload: Buffer) -> bytes:
    """An IP packet without options, hop limit 64, version by the length of the addresses."""
    if len(source) == 16:
        return _V6.pack(6 << 28, len(payload), protocol, 64, source, destination) + payload
    fields = (0x45, 0, V4_HEADER + len(payload), 0, 0x4000, 64, protocol)
    header = _V4_BARE.pack(
        *fields, checksum(_V4_BARE.pack(*fields, 0, source, destination)), source, destination
    )
    return header + payload


_MULTICAST: Final = {4: range(224, 256), 6: range(255, 256)}
"""IP version -> first bytes of multicast addresses; the IPv4 broadcast address is among them."""
_ICMP_ERRORS: Final = frozenset({3, 4, 5, 11, 12})
_QUOTED: Final = {4: 576 - V4_HEADER - 8, 6: 1280 - V6_HEADER - 8}
"""Bytes of the packet that an error quotes: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)."""


def _answerable(buffer: Buffer, start: int, packet: Packet) -> bool:
    """Whether an error may be sent. Errors about errors, later fragments and multicast would multiply."""
    multicast = _MULTICAST[packet.version]
    if packet.destination[0] in multicast or packet.source[0] in multicast or not any(packet.source):
        return False
    if packet.fragment:
        return False
    kind = buffer[start + packet.transport] if packet.protocol in (ICMP, ICMP6) else 0
    if packet.protocol == ICMP:
        return kind not in _ICMP_ERRORS
    return packet.protocol != ICMP6 or (kind >= 128 and kind != 137)
