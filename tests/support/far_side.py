"""The internet for a test on one Mac: what a utun gives is answered here, pings and UDP, and remembered."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Self

from tun.device.packets import ICMP, ICMP6, UDP, checksum
from tun.macos.device import AF_INET, AF_INET6

_HEADS = {4: AF_INET.to_bytes(4), 6: AF_INET6.to_bytes(4)}
_SIZES = {4: 20, 6: 40}
_PROTOCOLS = {4: ICMP, 6: ICMP6}
_REQUESTS = {4: 8, 6: 128}
_REPLIES = {4: 0, 6: 129}
MAX_SEEN = 4096
"""Packets that are remembered."""


def answer(packet: bytes) -> bytes | None:
    """What a host at the packet's destination says: an echo reply, or the datagram back; None for anything else, and
    for fragments, options and extension headers."""
    version = packet[0] >> 4 if packet else 0
    size = _SIZES.get(version, 0)
    if not size or len(packet) < size + 8 or (version == 4 and packet[0] != 0x45):
        return None
    if version == 4 and int.from_bytes(packet[6:8]) & 0x3FFF:
        return None
    source, destination = (packet[12:16], packet[16:20]) if version == 4 else (packet[8:24], packet[24:40])
    protocol, body = packet[9] if version == 4 else packet[6], bytearray(packet[size:])
    if protocol == _PROTOCOLS[version] and body[0] == _REQUESTS[version]:
        body[0] = _REPLIES[version]
        place = 2
    elif protocol == UDP:
        body[0:4] = body[2:4] + body[0:2]
        place = 6
    else:
        return None
    body[place : place + 2] = bytes(2)
    pseudo = b"" if protocol == ICMP else destination + source + struct.pack("!II", len(body), protocol)
    # RFC 768: a checksum of 0 would say that there is none.
    body[place : place + 2] = (checksum(pseudo + bytes(body)) or 0xFFFF).to_bytes(2)
    if version == 6:
        return packet[:7] + b"\x40" + destination + source + bytes(body)
    head = packet[:8] + b"\x40" + packet[9:10] + bytes(2) + destination + source
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + bytes(body)


class FarSide:
    """Reads packets of a utun's socket on a thread, and answers. A context manager."""

    def __init__(self, fd: int, answer: Callable[[bytes], bytes | None] = answer) -> None:
        """`fd` stays its owner's, who closes it afterwards."""
        self.seen: list[bytes] = []
        """Each packet that came, from the IP header on."""
        self._fd = fd
        self._answer = answer
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, name="the internet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._fd, self._wake], [], [])
            if self._wake in ready:
                return
            packet = os.read(self._fd, 65_536)[4:]
            if len(self.seen) < MAX_SEEN:
                self.seen.append(packet)
            said = self._answer(packet)
            if said is not None:
                os.write(self._fd, _HEADS[said[0] >> 4] + said)
