"""ACK filtering: of acknowledgements of one TCP flow that wait together, the last one says it all.

RFC 3449 section 5.2.1. A receiver acknowledges each super-packet. Every acknowledgement costs this side a seal, the far
side an open and a write to its device, and the sender's kernel a packet that tells it less than the next one. So one
that waits here gives its place to a later one that acknowledges more:

    waiting: [ack 100] [data of others] [ack 300]   ->   [ack 300] [data of others]

Nothing else changes its place, and no two packets of the flow change theirs: every packet of up to MAX_ACK bytes is
looked at, and one that is no plain acknowledgement stands between those before and after it. Larger ones hold data,
with which the sequence number moves on.

What never goes: a duplicate and what it repeats (RFC 5681 counts them); what carries data, SACK blocks or any option
but timestamps, or a flag besides ACK, so also what an ECN receiver says; fragments, and packets with IP options or
extension headers. Checksums are not looked at: one that is wrong costs an acknowledgement, as a lost one does.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from .packets import TCP

LEAST_ACK: Final = 40
MAX_ACK: Final = 100
"""Bytes of a TCP packet without data: IPv6 header, TCP header, and 40 of options."""
MAX_FLOWS: Final = 256
"""Flows whose last acknowledgement is known; beyond that all are forgotten, and some more acknowledgements sent."""

# Version to TOS, length, fragment, protocol; addresses and ports; sequence, acknowledgement, header length and flags,
# window.
_V4: Final = Struct(">HH2xHxB2x12sIIHH")
# Version to flow label, length, next header, and the same.
_V6: Final = Struct(">IHBx36sIIHH")
_V4_ACK, _V6_ACK = 40, 60
_STAMPS: Final = Struct(">III")
_BARE, _STAMPED = 0x5010, 0x8010
"""Header length and flags: ACK alone, without options or with 12 bytes of them."""
_NOP_NOP_STAMPS: Final = 0x0101080A
"""Before the two timestamps, as RFC 7323 appendix A has it."""
_DF: Final = 0x4000
_FIXED: Final = -1
_HALF: Final = 1 << 31
_MASK: Final = (1 << 32) - 1

type _Last = tuple[tuple[int, int, int], int, int, int, int, int]
"""What must be equal; acknowledgement, window, timestamp and its echo; place, or _FIXED if it gives that to none."""


class AckFilter:
    """Finds the places of small packets in a queue. A place is a number that counts up from packet to packet."""

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        self._flows: dict[bytes, _Last] = {}

    def place(self, buffer: memoryview, start: int, end: int, first: int, behind: int) -> int:
        """Where the packet in `buffer[start:end]` goes, one of LEAST_ACK to MAX_ACK bytes that stands for itself alone:
        `behind` all others, or to the place of the one that it makes needless, `first` or later."""
        size = end - start
        if buffer[start] == 0x45:
            head, length, fragment, protocol, flow, sequence, ack, kind, window = _V4.unpack_from(
                buffer, start
            )
            bare, whole = _V4_ACK, length == size and not fragment & ~_DF
        elif buffer[start] >> 4 == 6 and size >= _V6_ACK:
            head, length, protocol, flow, sequence, ack, kind, window = _V6.unpack_from(buffer, start)
            bare, whole = _V6_ACK, length == size - 40
        else:
            return behind
        if protocol != TCP:
            return behind
        stamp = echo = 0
        plain = whole and kind == _BARE and size == bare
        if whole and kind == _STAMPED and size == bare + _STAMPS.size:
            options, stamp, echo = _STAMPS.unpack_from(buffer, start + bare)
            plain = options == _NOP_NOP_STAMPS
        same = head, sequence, size
        place = behind
        flows = self._flows
        last = flows.get(flow)
        if last is None:
            if len(flows) >= MAX_FLOWS:
                flows.clear()
        elif plain:
            before, acked, room, stamped, echoed, waits = last
            if not 0 < (ack - acked) & _MASK < _HALF or window < room:
                plain = False
            elif (
                waits >= first
                and before == same
                and (stamp - stamped) & _MASK < _HALF
                and (echo - echoed) & _MASK < _HALF
            ):
                place = waits
        flows[flow] = same, ack, window, stamp, echo, place if plain else _FIXED
        return place
