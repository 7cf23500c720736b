"""IP packets as an interface hands them over: one datagram, or one segment."""

from __future__ import annotations

from struct import pack

from tun.device.packets import TCP, UDP, checksum, pseudo_sum

HERE4, THERE4 = bytes((10, 0, 0, 1)), bytes((192, 0, 2, 9))
HERE6, THERE6 = bytes(15) + b"\1", bytes(15) + b"\2"


def udp(
    payload: bytes,
    *,
    version: int = 4,
    port: int = 443,
    number: int = 0,
    flags: int = 0x40,
    ttl: int = 64,
    tos: int = 0,
    summed: bool = True,
    protocol: int = UDP,
) -> bytes:
    length = 8 + len(payload)
    near, far = (HERE4, THERE4) if version == 4 else (HERE6, THERE6)
    head = pack(">HHHH", 5000, port, length, 0)
    pseudo = pseudo_sum(near, far, UDP, length)
    total = checksum(head + payload, pseudo) or 0xFFFF if summed else pseudo
    datagram = head[:6] + pack(">H", total) + payload
    if version == 6:
        return pack(">IHBB16s16s", 6 << 28 | tos << 20, length, protocol, ttl, near, far) + datagram
    ip = pack(">BBHHBBBBH4s4s", 0x45, tos, 20 + length, number, flags, 0, ttl, protocol, 0, near, far)
    return ip[:10] + pack(">H", checksum(ip)) + ip[12:] + datagram


def tcp(payload: bytes) -> bytes:
    segment = pack(">HHIIBBHHH", 1, 2, 3, 4, 20 << 2, 0x10, 9, 0, 0) + payload
    ip = pack(">BBHHBBBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0x40, 0, 64, TCP, 0, HERE4, THERE4)
    return ip[:10] + pack(">H", checksum(ip)) + ip[12:] + segment
