"""IP packets made by hand, as a capture shows canaries and others."""

from __future__ import annotations

import ipaddress
import struct

from tun.device.packets import ICMP, TCP, UDP
from tun.leaktest.canaries import Canary, CanaryTargets

TARGETS = CanaryTargets(dns=("192.0.2.53",), hosts=("192.0.2.1", "2001:db8::1"), domain="example.org")


def transport(protocol: int, source_port: int, port: int, payload: bytes) -> bytes:
    if protocol == TCP:
        return struct.pack("!HHIIBBHHH", source_port, port, 0, 0, 5 << 4, 2, 0, 0, 0) + payload
    if protocol == UDP:
        return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
    kind = 8 if protocol == ICMP else 128
    return bytes([kind]) + bytes(7) + payload


def packet(protocol: int, address: str, port: int, payload: bytes = b"", source_port: int = 40000) -> bytes:
    """An IP packet to `address`, from somewhere."""
    inner = transport(protocol, source_port, port, payload)
    to = ipaddress.ip_address(address)
    if to.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, protocol, 0)
        return head + bytes(4) + to.packed + inner
    return struct.pack("!IHBB", 6 << 28, len(inner), protocol, 64) + bytes(16) + to.packed + inner


def of(canary: Canary, source_port: int = 40000) -> bytes:
    return packet(canary.protocol, canary.address, canary.port, canary.payload, source_port)
