"""Slices: the pieces in which an IP packet, or a super-packet, crosses the datagram lane.

    SLICE 0x01 | flags u8 | index u8 | count u8 | gso_size u16 | header u16 | headers, `header` bytes | payload

A super-packet is one that the kernel cuts into segments of `gso_size` payload bytes as late as possible (TSO, USO).
Each slice carries the super-packet's own headers unchanged and, if the path allows it, the payload of exactly one
segment: a lost datagram costs one segment, and all others remain usable.

If a segment or a plain packet is too large for the path, the pieces are smaller. Such a *split* group is usable only
as a whole; `Assembly` keeps the parts of a few groups that come in separate receives.

A packet in memory is (buffer, start, end) with HEADROOM bytes in front that its holder may overwrite. Neither side
copies a payload: see sealing.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

NEEDS_CSUM: Final = 0x01
"""Flag: the transport checksum field holds only the sum of the pseudo-header, not inverted."""
PLAIN: Final = 0x00
"""Kinds, bits 1 and 2 of the flags: one packet."""
TCP4: Final = 0x02
TCP6: Final = 0x04
UDP_GSO: Final = 0x06
KIND_MASK: Final = 0x06
FLAGS_MASK: Final = NEEDS_CSUM | KIND_MASK

EXPRESS: Final = 0x08
"""Flag, not in the slice header: a whole packet that may overtake earlier ones (opening.EXPRESS_KIND)."""

MIN_HEADER: Final = {TCP4: 40, TCP6: 60, UDP_GSO: 28}
"""Kind -> smallest number of header bytes of such a super-packet."""

HEADROOM: Final = 64
"""Bytes in front of every packet in memory that may be overwritten."""
SLICE_HEADER: Final = struct.Struct("!BBBBHH")
SLICE_SIZE: Final = SLICE_HEADER.size
MAX_SLICES: Final = 255
"""Largest number of slices of one packet: `index` and `count` are bytes."""
MAX_PACKET: Final = 65_535
ASSEMBLED_GROUPS: Final = 8
ASSEMBLED_BYTES: Final = 128 * 1024
MAX_VIEWS: Final = 32_768
"""Views of buffers that are kept, 6 MB of them."""

_LENGTH: Final = struct.Struct("!H").unpack_from


class Shape(NamedTuple):
    """What is known of a packet besides its bytes."""

    flags: int
    """NEEDS_CSUM, and PLAIN, TCP4, TCP6 or UDP_GSO."""
    gso_size: int
    """Payload bytes per segment; 0 for a plain packet."""
    header: int
    """Bytes of IP and transport headers in front of the payload; 0 for a plain packet."""


class Run(NamedTuple):
    """Consecutive slices of one packet, in a buffer: the headers once, then their payloads in one piece."""

    shape: Shape
    first: int
    """Index of the first slice that is present."""
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed here
    """How many are present."""
    of: int
    """How many the sender made. `first == 0 and count == of`: the packet is whole. Else it is a super-packet whose
    slices have exactly `gso_size` bytes (the last may have fewer): the payload begins at `first * gso_size`."""


class LaneSink(Protocol):
    """Receives what `open_batch` opens. Buffers are valid during the call only."""

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """Slices of a packet: headers and payload at buffer[start:end], after HEADROOM bytes for overwriting."""

    def stream(
        self,
        stream: int,
        offset: int,
        buffer: memoryview,
        start: int,
        end: int,
        first: int,
        count: int,
        ask: bool,
    ) -> None:
        """Bytes of a stream from `offset` on stand at buffer[start:end]. They came in `count` datagrams with counters
        from `first` on, of which the last may ask for an acknowledgement at once. The receiver says whether these count
        as received: what it has no room for must come again."""

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        """Frames of the session, in one datagram; else as `stream`."""

    def message(self, kind: int, body: memoryview, size: int) -> None:
        """Another message, without its type byte; `size`: bytes of its whole UDP payload. Ignore unknown kinds."""

    def opened(self, first: int, last: int) -> None:
        """All else that was authentic, malformed or not, has the counters `first` to `last`. Called once for a train
        that holds nothing else, after what is in it."""


@dataclass(slots=True)
class Drops:
    """Numbers of dropped datagrams, one for each cause."""

    length: int = 0
    """Too short or too long."""
    unknown: int = 0
    """Of an unknown kind, or with an index that is not in use."""
    replay: int = 0
    tag: int = 0
    """Did not authenticate."""
    malformed: int = 0
    """Authentic, with invalid fields."""
    disagreement: int = 0
    """Authentic slices whose sizes do not fit each other or the packet's own length."""
    unsent: int = 0
    """Packets (not datagrams) for which there was no key, or that did not fit into 255 slices."""


def total_length(buffer: memoryview, start: int, kind: int) -> int:
    """The size in bytes of the packet at `start`, from its IP header (RFC 791 section 3.1, RFC 8200 section 3); -1 if
    the version does not match the kind. `buffer` must hold at least 28 bytes of it."""
    version = buffer[start] >> 4
    if version == 4 and kind != TCP6:
        length: int = _LENGTH(buffer, start + 2)[0]
        return length
    if version == 6 and kind != TCP4:
        length = _LENGTH(buffer, start + 4)[0]
        return length + 40
    return -1


class Rows:
    """Views of equal pieces of a buffer, made once.

    A view costs 0.1 us and a slice needs five of them, two thirds of the time of its encryption. The data path cuts
    the same buffers at the same places again and again, so views are kept: at most MAX_VIEWS, then all are dropped.
    """

    __slots__ = ("_kept", "_rows")

    def __init__(self) -> None:
        self._kept = 0
        # An entry keeps its buffer alive: no other object gets the same id.
        self._rows: dict[tuple[int, int, int, int], tuple[memoryview, list[memoryview]]] = {}

    def row(self, buffer: memoryview, at: int, step: int, size: int, count: int) -> list[memoryview]:
        """At least `count` views of `size` bytes: the first at `at`, each `step` bytes (may be negative) after the one
        before. Pass the same memoryview object each time; do not change the list."""
        key = (id(buffer), at, step, size)
        entry = self._rows.get(key)
        if entry is None:
            entry = self._rows[key] = (buffer, [])
        views = entry[1]
        if len(views) < count:
            self._kept += count - len(views)
            if self._kept > MAX_VIEWS:
                self._rows.clear()  # this row too, after its present use
                self._kept = 0
            for begin in range(at + step * len(views), at + step * count, step):
                views.append(buffer[begin : begin + size])
        return views


@lru_cache(512)
def spaced(layout: str, count: int, gap: int) -> struct.Struct:
    """A Struct of `count` times the same fields with `gap` bytes between them: one call instead of `count`."""
    return struct.Struct("!" + f"{layout}{gap}x" * (count - 1) + layout)


class _SplitPacket:
    __slots__ = ("count", "parts", "present", "shape", "size")

    def __init__(self, shape: Shape, count: int) -> None:
        self.shape = shape
        self.count = count
        self.parts: dict[int, bytes] = {}
        """First index -> headers and payload."""
        self.present = 0
        self.size = 0


class Assembly:
    """Split groups of which some parts came. Bounded: the oldest group is dropped first."""

    __slots__ = ("_groups", "_size", "given_up")

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int], _SplitPacket] = {}
        self._size = 0
        self.given_up = 0
        """Number of groups dropped before they were complete."""

    def add(self, key: tuple[int, int], run: Run, data: memoryview) -> bytearray | None:
        """Add a part (headers, payloads) of the group `key`. Returns the whole packet, after HEADROOM bytes, if this is
        the last part, else None. Parts that contradict each other drop the group.

        The caller makes sure that no slice comes twice (the replay window does).
        """
        shape, first, count, of = run
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _SplitPacket(shape, of)
        elif group.shape != shape or group.count != of:
            self._drop(key)
            return None
        group.parts[first] = bytes(data)
        group.present += count
        group.size += len(data)
        self._size += len(data)
        if group.present < of:
            while len(self._groups) > ASSEMBLED_GROUPS or self._size > ASSEMBLED_BYTES:
                self._drop(next(iter(self._groups)))
            return None
        del self._groups[key]
        self._size -= group.size
        header = shape.header
        parts = [group.parts[first] for first in sorted(group.parts)]
        packet = bytearray(HEADROOM) + parts[0]
        for part in parts[1:]:
            packet += memoryview(part)[header:]
        size = len(packet) - HEADROOM
        whole = size <= MAX_PACKET and (
            not header or total_length(memoryview(packet), HEADROOM, shape.flags & KIND_MASK) == size
        )
        if whole:
            return packet
        self.given_up += 1
        return None

    def forget(self, index: int) -> None:
        """Give up the groups whose key begins with `index`."""
        for key in [key for key in self._groups if key[0] == index]:
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        self._size -= self._groups.pop(key).size
        self.given_up += 1
