"""What a BPF device of macOS gives to its reader: records of captured packets, and in each what lies below IP.

Written from bpf(4) and Apple's net/bpf.h, not yet run on a Mac. A record is a header, the packet as the interface has
it, and padding to 4 bytes:

    seconds u32, microseconds u32, captured u32, length u32, header's size u16, compression u8, flags u8, more ...

With BIOCSEXTHDR the flags say in which direction the packet went. Before macOS 11 they were one field of two bytes,
whose lower one stood where compression stands now; we ask for no compression, so either byte may have the flag.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

DLT_NULL: Final = 0
DLT_EN10MB: Final = 1
DLT_PPP: Final = 9
DLT_RAW: Final = 12
DLT_LOOP: Final = 108
DLT_IEEE1394: Final = 138
"""Numbers of net/bpf.h: what stands in front of the IP header. An IP interface without a frame of its own (utun, gif)
is DLT_NULL: 4 bytes with the address family."""
_HEADER: Final = struct.Struct("=IIIIHBB")
_OUTGOING: Final = 1
_ALIGNMENT: Final = 4
"""BPF_WORDALIGN."""
_SIZES: Final = {DLT_NULL: 4, DLT_RAW: 0, DLT_LOOP: 4, DLT_PPP: 4, DLT_EN10MB: 14, DLT_IEEE1394: 18}
"""Bytes in front of the IP header, without VLAN tags."""
LINK_SIZE: Final = 32
"""Bytes captured for what stands in front of the IP header, with VLAN tags."""
_VLAN: Final = (b"\x81\x00", b"\x88\xa8")
_MAX_TAGS: Final = 2


class Records(NamedTuple):
    """What one read gives."""

    outgoing: list[bytes]
    """The packets that leave, with what the link puts in front, cut or not."""
    damaged: bool
    """Whether the rest could not be read: nobody knows how many packets that were."""


def parse_records(data: bytes) -> Records:
    """Read what one read of a BPF device gave. Raises nothing."""
    outgoing: list[bytes] = []
    start = 0
    # The last record may come without its padding.
    while start < len(data):
        if len(data) - start < _HEADER.size:
            return Records(outgoing, damaged=True)
        _, _, captured, length, size, before, flags = _HEADER.unpack_from(data, start)
        end = start + size + captured
        if size < _HEADER.size or captured > length or end > len(data):
            return Records(outgoing, damaged=True)
        if (before | flags) & _OUTGOING:
            outgoing.append(data[start + size : end])
        start = end + -(size + captured) % _ALIGNMENT
    return Records(outgoing, damaged=False)


def is_known(link: int) -> bool:
    """Whether `network_packet` reads what an interface of this type has."""
    return link in _SIZES


def network_packet(link: int, frame: bytes) -> bytes:
    """What of a captured frame follows its link header: an IP packet, ARP, or nothing. Raises KeyError for a link that
    is not known."""
    size = _SIZES[link]
    if link == DLT_EN10MB:
        for _ in range(_MAX_TAGS):
            if frame[size - 2 : size] in _VLAN:
                size += 4
    return frame[size:]
