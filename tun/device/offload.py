"""What the kernel's offloads leave undone in a packet, told to the far side, and given back to the far kernel.

A TUN with vnet_hdr hands out super-packets: one header and up to 57,344 bytes of payload that stand for many TCP
segments or UDP datagrams (GSO), with nothing but the pseudo-header's sum where the checksum belongs. A virtio_net_hdr
in front of each says so. The packets cross the link as they are, unfinished, and the far kernel takes them unfinished:

    read      [virtio_net_hdr][packet]  --describe-->  Shape  --> link
    link  --> Run --fit--> packet whose headers agree with its bytes --> policy --vnet_header--> write
                                                                   \\--split--> plain packets, one write each

`fit` also repairs what a loss tore: when only some slices of a super-packet came, they are a smaller super-packet, and
its sequence number, lengths and flags change accordingly. `split` does in software what the kernel would have done,
for devices that know no offloads. Everything works in place in the one buffer that holds the packet.

The far side is authenticated but not trusted: after `fit`, the description that the kernel gets fits the packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from cryprq_proxy.lane.slices import NEEDS_CSUM, TCP4, TCP6, UDP_GSO, Run, Shape
from tun.device.packets import TCP, UDP, V4_HEADER, V6_HEADER, Drop, checksum, ones_sum, parse

# struct virtio_net_hdr { u8 flags, gso_type; u16 hdr_len, gso_size, csum_start, csum_offset; }, native byte order
VNET: Final = struct.Struct("=BBHHHH")
GSO_MAX_SIZE: Final = 57_344
GSO_MAX_SEGS: Final = 40
"""Caps of a super-packet, so that with the lane's own bytes it fits one UDP GSO send."""
VNET_SIZE: Final = VNET.size

COMPLETE: Final = Shape(0, 0, 0)
"""A plain packet with nothing left to do."""
UNSUMMED: Final = Shape(NEEDS_CSUM, 0, 0)
"""A plain packet whose transport checksum still lacks the transport's bytes."""

MAX_SEGMENTS: Final = 128
"""Segments that one super-packet may ask the kernel to make. Ours are capped at 40. Without a bound, a hostile peer
could turn one packet into 57,000 segments of one byte."""

# Super-packets are never summed.
_TCP4, _TCP6, _UDP_GSO = NEEDS_CSUM | TCP4, NEEDS_CSUM | TCP6, NEEDS_CSUM | UDP_GSO
# Shape.flags -> VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6, _UDP_L4
_GSO_TYPE: Final = {_TCP4: 1, _TCP6: 4, _UDP_GSO: 5}
_FLAGS: Final = {kind: flags for flags, kind in _GSO_TYPE.items()}
_CSUM_OFFSET: Final = {TCP: 16, UDP: 6}
_VNET_NEEDS_CSUM: Final = 1
_NOTHING: Final = bytes(VNET_SIZE)

_FIN, _SYN, _RST, _PSH, _CWR = 0x01, 0x02, 0x04, 0x08, 0x80

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


def describe(buffer: memoryview, start: int, end: int) -> Shape | Drop:
    """The shape of the packet in `buffer[start:end]`, just read with its virtio_net_hdr in front of `start`.

    The header's `hdr_len` is not used: on forwarded packets it is wrong. A checksum that the other side would not find
    by parsing the packet (that of a packet inside of a packet, for instance) is completed here.
    """
    bits, kind, _, gso_size, csum_start, csum_offset = VNET.unpack_from(buffer, start - VNET_SIZE)
    if not bits & _VNET_NEEDS_CSUM:
        return Drop.OFFLOAD if kind else COMPLETE
    size = end - start
    if size < V4_HEADER + 8:
        return Drop.SHORT
    if csum_start + csum_offset + 2 > size:
        return Drop.OFFLOAD
    transport, protocol = _transport(buffer, start, end)
    found = transport == csum_start and _CSUM_OFFSET.get(protocol) == csum_offset
    if not kind:
        if found:
            return UNSUMMED
        complete(buffer, start, end, csum_start, csum_offset)
        return COMPLETE
    # With the ECN bit set it is none of ours.
    flags = _FLAGS.get(kind)
    if flags is None or not found or not gso_size or _total(buffer, start) != size:
        return Drop.OFFLOAD
    header = _header(buffer, start, size, flags, transport, protocol)
    if not header:
        return Drop.OFFLOAD
    return Shape(flags, gso_size, header) if size - header > gso_size else UNSUMMED


def fit(buffer: memoryview, start: int, end: int, run: Run) -> Shape | Drop:  # noqa: C901  the data path
    """Make a run of slices from the peer a packet whose headers say what it is, and return its shape.

    A run that is not whole has its headers rewritten in place: lengths, the IPv4 id and checksum, the TCP sequence
    number and flags, and the pseudo-header's sum. Do this before `parse`, which would refuse the old lengths. The
    shape that comes back is safe to give to a device; the addresses and ports are still anybody's.
    """
    (flags, gso_size, header), first, count, of = run
    whole = not first and count == of
    size = end - start
    if flags in (0, NEEDS_CSUM):
        if not whole:
            return Drop.PARTIAL
        if not flags:
            return COMPLETE
        if size < V4_HEADER + 8:
            return Drop.SHORT
        transport, protocol = _transport(buffer, start, end)
        return UNSUMMED if transport and transport + _CSUM_OFFSET[protocol] + 2 <= size else Drop.OFFLOAD
    if flags not in _GSO_TYPE or gso_size <= 0 or header <= 0 or first < 0 or not 0 < count <= of - first:
        return Drop.OFFLOAD
    if size < V4_HEADER + 8:
        return Drop.SHORT
    payload = size - header
    if not 0 < payload <= gso_size * MAX_SEGMENTS:
        return Drop.OFFLOAD
    total = _total(buffer, start)
    if not whole:
        behind = total - header - first * gso_size
        if -(-(total - header) // gso_size) != of or payload != min(behind, count * gso_size):
            return Drop.LENGTH
        _set_total(buffer, start, size)
    elif total != size:
        return Drop.LENGTH
    transport, protocol = _transport(buffer, start, end)
    if _header(buffer, start, size, flags, transport, protocol) != header:
        return Drop.OFFLOAD
    if not whole:
        _renumber(buffer, start, size, transport, run)
    elif protocol == UDP and _U16.unpack_from(buffer, start + transport + 4)[0] != size - transport:
        return Drop.LENGTH
    return Shape(flags, gso_size, header) if payload > gso_size else UNSUMMED


def vnet_header(buffer: memoryview, start: int, end: int, shape: Shape) -> int:
    """Write the virtio_net_hdr of a packet whose shape `describe` or `fit` gave, and return where it begins."""
    flags, gso_size, header = shape
    at = start - VNET_SIZE
    if not flags:
        buffer[at:start] = _NOTHING
        return at
    transport, protocol = _transport(buffer, start, end)
    kind = _GSO_TYPE.get(flags, 0)
    VNET.pack_into(buffer, at, _VNET_NEEDS_CSUM, kind, header, gso_size, transport, _CSUM_OFFSET[protocol])
    return at


def split(buffer: memoryview, start: int, end: int, shape: Shape) -> Iterator[tuple[int, int]]:
    """Software segmentation: (start, end) in `buffer` of each complete packet that the shape stands for, in order.

    For shapes from `describe` or `fit`. Each packet is valid until the next one is asked for: no payload moves, and
    the headers of a segment are written over the end of the one before it, which has gone by then. So the first packet
    begins at `start`, a device's own header fits in front of each, and the buffer's content is used up.
    """
    flags, gso_size, header = shape
    if not flags:
        yield start, end
        return
    transport, protocol = _transport(buffer, start, end)
    offset = _CSUM_OFFSET[protocol]
    if flags == NEEDS_CSUM:
        complete(buffer, start, end, transport, offset)
        yield start, end
        return
    headers = bytes(buffer[start : start + header])
    count = -(-(end - start - header) // gso_size)
    for index in range(count):
        at = start + index * gso_size
        stop = min(at + header + gso_size, end)
        buffer[at : at + header] = headers
        _set_total(buffer, at, stop - at)
        _renumber(buffer, at, stop - at, transport, Run(shape, index, 1, count))
        complete(buffer, at, stop, transport, offset)
        yield at, stop


def complete(buffer: memoryview, start: int, end: int, csum_start: int, csum_offset: int) -> None:
    """Finish a checksum: what stands in its field already is the sum of the pseudo-header.

    A result of 0 is written as 0xFFFF: RFC 768 wants that for UDP, and elsewhere the two mean the same (RFC 1071).
    """
    at = start + csum_start
    _U16.pack_into(buffer, at + csum_offset, checksum(buffer[at:end]) or 0xFFFF)


def _transport(buffer: memoryview, start: int, end: int) -> tuple[int, int]:
    """Where the TCP or UDP header of a packet of at least 20 bytes begins, and which it is; (0, 0) if there is none."""
    first = buffer[start]
    if first == 0x45:
        protocol = buffer[start + 9]
        whole = not buffer[start + 6] & 0x3F | buffer[start + 7]
        return (V4_HEADER, protocol) if whole and protocol in _CSUM_OFFSET else (0, 0)
    if first >> 4 == 6 and end - start > V6_HEADER:
        protocol = buffer[start + 6]
        if protocol in _CSUM_OFFSET:
            return V6_HEADER, protocol
    # With options or extension headers, which must be in order.
    packet = parse(buffer, start, end)
    if isinstance(packet, Drop) or packet.protocol not in _CSUM_OFFSET or packet.fragment | packet.more:
        return 0, 0
    return packet.transport, packet.protocol


def _header(buffer: memoryview, start: int, size: int, flags: int, transport: int, protocol: int) -> int:
    """Bytes in front of the payload of a super-packet, or 0 if its headers cannot be those of one of this kind."""
    if flags == _UDP_GSO:
        return transport + 8 if protocol == UDP and transport + 8 < size else 0
    if protocol != TCP or transport + 20 >= size or buffer[start] >> 4 != (4 if flags == _TCP4 else 6):
        return 0
    length = (buffer[start + transport + 12] >> 4) * 4
    if length < 20 or transport + length >= size or buffer[start + transport + 13] & (_SYN | _RST):
        return 0
    return transport + length


def _total(buffer: memoryview, start: int) -> int:
    """The length of the whole packet by its own header; the version is one of the two, or nothing depends on it."""
    if buffer[start] >> 4 == 4:
        return int(_U16.unpack_from(buffer, start + 2)[0])
    return int(_U16.unpack_from(buffer, start + 4)[0]) + V6_HEADER


def _set_total(buffer: memoryview, start: int, size: int) -> None:
    if buffer[start] >> 4 == 4:
        _U16.pack_into(buffer, start + 2, size)
    elif size >= V6_HEADER:
        _U16.pack_into(buffer, start + 4, size - V6_HEADER)


def _renumber(buffer: memoryview, start: int, size: int, transport: int, run: Run) -> None:
    """Give the headers of a super-packet the numbers of a run of its segments, `size` bytes with the headers."""
    shape, first, count, of = run
    if buffer[start] >> 4 == 4:
        identity = _U16.unpack_from(buffer, start + 4)[0] + first
        _U16.pack_into(buffer, start + 4, identity & 0xFFFF)
        _U16.pack_into(buffer, start + 10, 0)
        _U16.pack_into(buffer, start + 10, checksum(buffer[start : start + transport]))
        addresses = buffer[start + 12 : start + 20]
    else:
        addresses = buffer[start + 8 : start + 40]
    at, length = start + transport, size - transport
    if shape.flags == _UDP_GSO:
        protocol = UDP
        _U16.pack_into(buffer, at + 4, length)
    else:
        protocol = TCP
        sequence = _U32.unpack_from(buffer, at + 4)[0] + first * shape.gso_size
        _U32.pack_into(buffer, at + 4, sequence & 0xFFFFFFFF)
        if first + count < of:
            buffer[at + 13] &= ~(_FIN | _PSH) & 0xFF
        if first:
            buffer[at + 13] &= ~_CWR & 0xFF
    pseudo = (ones_sum(addresses) + protocol + length) % 0xFFFF
    _U16.pack_into(buffer, at + _CSUM_OFFSET[protocol], pseudo)
