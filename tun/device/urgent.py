"""Which packets of the interface may overtake others: pings, and datagrams of flows that send small ones only.

A voice call, a game or a DNS question shall not wait behind a download. But a flow that sends large datagrams too
depends on their order: to a sender of QUIC a packet that three later ones have passed is lost (RFC 9002 section 6.1.1).

    up to MAX_URGENT bytes, ICMP or UDP, whole -> has its flow sent larger ones lately?   yes: in its place   no: urgent

TCP never overtakes: its data would pass earlier data. Nor does anything else whose flows this module does not know.
The flows with larger datagrams are kept in two halves. When the newer one is full, the older one is forgotten.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.lane.slices import EXPRESS, NEEDS_CSUM, Shape

from .packets import ICMP, ICMP6, UDP, V4_HEADER, Drop, parse

MAX_URGENT: Final = 256
"""Bytes of a packet that may overtake. A larger one may be part of a transfer."""
MAX_FLOWS: Final = 512
"""Flows with larger datagrams in each of the two halves."""
_URGENT: Final = {flags: Shape(flags | EXPRESS, 0, 0) for flags in (0, NEEDS_CSUM)}
_V4, _V6 = (9, 12, 24), (6, 8, 44)
"""Where the protocol stands in a header without options, and addresses with ports from where to where."""


class Urgency:
    """Knows the flows of one interface. `look` at every packet, in the order in which they came."""

    __slots__ = ("_newer", "_older")

    def __init__(self) -> None:
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()

    def look(self, buffer: memoryview, start: int, end: int, shape: Shape) -> Shape | None:
        """The shape of the packet in `buffer[start:end]`, marked, if it may overtake; None if it keeps its place."""
        size = end - start
        if size < V4_HEADER:
            return None
        protocol_at, flow_at, flow_end = _V4 if buffer[start] >> 4 == 4 else _V6
        protocol = buffer[start + protocol_at]
        if protocol == UDP and size >= flow_end:
            flow = bytes(buffer[start + flow_at : start + flow_end])
            if shape.gso_size or size > MAX_URGENT:
                self._remember(flow)
                return None
            if flow in self._newer or flow in self._older:
                return None
        elif (protocol != ICMP and protocol != ICMP6) or size > MAX_URGENT:
            return None
        packet = parse(buffer, start, end)
        whole = not isinstance(packet, Drop) and not packet.fragment and not packet.more
        return _URGENT.get(shape.flags) if whole else None

    def _remember(self, flow: bytes) -> None:
        if flow not in self._newer:
            if len(self._newer) >= MAX_FLOWS:
                self._newer, self._older = set(), self._newer
            self._newer.add(flow)
