"""Packets as a capture shows them: what of them tells a canary and the link from anything else."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

from ..device.packets import ICMP, ICMP6, TCP, UDP


class CapturedPacket(NamedTuple):
    """What of an IP packet matters here."""

    protocol: int
    destination: bytes
    """Packed, 4 or 16 bytes."""
    source_port: int
    port: int
    """0 for what has no ports, and for fragments but the first. An ICMP message has its type in `source_port`."""

    def __str__(self) -> str:
        """For people: protocol and destination."""
        name = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMP6: "ICMPv6"}.get(
            self.protocol, f"protocol {self.protocol}"
        )
        address = ipaddress.ip_address(self.destination)
        if not self.port:
            return f"{name} to {address}"
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"{name} to {host}:{self.port}"


_EXTENSIONS: Final = frozenset({0, 43, 60})
"""IPv6: hop-by-hop, routing, destination options, all of one layout (RFC 8200 section 4)."""
_FRAGMENT: Final = 44
_MAX_EXTENSIONS: Final = 8
_PORTS: Final = struct.Struct("!HH")


def parse_packet(data: bytes) -> CapturedPacket | None:
    """The packet in `data`, which begins with the IP header and may be cut off behind the headers. Raises nothing."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        start = (data[0] & 0x0F) * 4
        later = bool(int.from_bytes(data[6:8]) & 0x1FFF)
        return _transport(data, start, data[9], data[16:20], later) if start >= 20 else None
    if version != 6 or len(data) < 40:
        return None
    protocol, start, later = data[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS and protocol != _FRAGMENT:
            break
        if len(data) < start + 8:
            return None
        if protocol == _FRAGMENT:
            later = later or bool(int.from_bytes(data[start + 2 : start + 4]) & 0xFFF8)
            size = 8
        else:
            size = (data[start + 1] + 1) * 8
        protocol, start = data[start], start + size
        if later:
            break
    return _transport(data, start, protocol, data[24:40], later)


def _transport(
    data: bytes, start: int, protocol: int, destination: bytes, later: bool
) -> CapturedPacket | None:
    if later or protocol not in (TCP, UDP, ICMP, ICMP6):
        return CapturedPacket(protocol, destination, 0, 0)
    if len(data) < start + _PORTS.size:
        return None
    if protocol in (ICMP, ICMP6):
        return CapturedPacket(protocol, destination, data[start], 0)
    return CapturedPacket(protocol, destination, *_PORTS.unpack_from(data, start))
