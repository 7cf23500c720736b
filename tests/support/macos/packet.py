"""IP packets as programs send them: written by hand, and read again."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import pack, unpack_from
from typing import NamedTuple

from tests.support.macos.pf_model import PfPacket
from tun.device.packets import ICMP, TCP, UDP, checksum, pseudo_sum

ICMP6 = 58
_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp6", 2: "igmp"}
_LETTERS = "FSRPAUEW"


class End(NamedTuple):
    address: str
    port: int = 0


def wrap(protocol: int, source: str, destination: str, payload: bytes) -> bytes:
    """An IP packet; `payload` is complete, its checksum too."""
    near, far = ip_address(source), ip_address(destination)
    if near.version == 6:
        return pack(">IHBB", 6 << 28, len(payload), protocol, 64) + near.packed + far.packed + payload
    head = (
        pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0) + near.packed + far.packed
    )
    return head[:10] + pack(">H", checksum(head)) + head[12:] + payload


def _summed(protocol: int, source: str, destination: str, payload: bytes, at: int) -> bytes:
    """With its checksum at this offset, where 0 stands."""
    near, far = ip_address(source).packed, ip_address(destination).packed
    total = checksum(payload, pseudo_sum(near, far, protocol, len(payload))) or 0xFFFF
    return payload[:at] + pack(">H", total) + payload[at + 2 :]


def udp(source: End, destination: End, payload: bytes = b"") -> bytes:
    head = pack(">HHHH", source.port, destination.port, 8 + len(payload), 0)
    body = _summed(UDP, source.address, destination.address, head + payload, 6)
    return wrap(UDP, source.address, destination.address, body)


def tcp(
    source: End, destination: End, flags: str = "S", number: int = 0, expected: int = 0, payload: bytes = b""
) -> bytes:
    bits = sum(1 << _LETTERS.index(letter) for letter in flags)
    head = pack(">HHIIBBHHH", source.port, destination.port, number, expected, 5 << 4, bits, 65535, 0, 0)
    body = _summed(TCP, source.address, destination.address, head + payload, 16)
    return wrap(TCP, source.address, destination.address, body)


def ping(source: str, destination: str, number: int = 1) -> bytes:
    """An echo request."""
    if ip_address(source).version == 6:
        body = _summed(ICMP6, source, destination, pack(">BBHHH", 128, 0, 0, 7, number), 2)
        return wrap(ICMP6, source, destination, body)
    body = pack(">BBHHH", 8, 0, 0, 7, number)
    return wrap(ICMP, source, destination, body[:2] + pack(">H", checksum(body)) + body[4:])


def payload_of(packet: bytes) -> bytes:
    """What a UDP datagram or a TCP segment carries."""
    at = _head(packet)
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    return packet[at + 8 :] if protocol == UDP else packet[at + (packet[at + 12] >> 4) * 4 :]


def numbers_of(packet: bytes) -> tuple[int, int]:
    """Sequence and acknowledgement number of a TCP segment."""
    number, expected = unpack_from(">II", packet, _head(packet) + 4)
    return number, expected


def read_packet(packet: bytes) -> PfPacket:
    """As pf sees it, with neither direction nor interface."""
    at, four = _head(packet), packet[0] >> 4 == 4
    protocol = packet[9] if four else packet[6]
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    if four:
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    else:
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    seen = PfPacket("", "", source, destination, _NAMES.get(protocol, str(protocol)))
    ports = unpack_from(">HH", packet, at) if protocol in (TCP, UDP) else (0, 0)
    flags = (
        "".join(letter for bit, letter in enumerate(_LETTERS) if packet[at + 13] >> bit & 1)
        if protocol == TCP
        else ""
    )
    kind = packet[at] if protocol in (ICMP, ICMP6) else 0
    return PfPacket(
        seen.direction,
        seen.interface,
        source,
        destination,
        seen.proto,
        source_port=ports[0],
        destination_port=ports[1],
        flags=flags,
        icmp_type=kind,
    )


def _head(packet: bytes) -> int:
    return (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
