"""Questions that programs send to servers of their own choice, answered where their packets come out of the device.

Where the packet filter cannot bring such a question to the forwarder's sockets, as on macOS, it enters the tunnel's
device like any other packet. So each UDP packet to port 53 is taken out of the stream, whichever server it is for; the
forwarder answers, and the answer goes back into the device with the asked address as its source. All other packets pass
untouched, as do fragments, which hold no whole question.

The kernel has made these packets, so their checksums are not looked at: it may leave them to the device.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.lane.slices import Shape

from ..device.device import START, OnPacket, PacketDevice
from ..device.offload import COMPLETE
from ..device.packets import UDP, Drop, Packet, checksum, datagram, parse, pseudo_sum
from . import codes
from .forwarder import Forwarder
from .query import Query, error_reply

PORT: Final = 53
MAX_OPEN: Final = 256
"""Questions that wait for the forwarder; a further one is refused."""
_HEADER: Final = struct.Struct(">HHHH")
_PORT_BYTES: Final = PORT.to_bytes(2)
_PLAIN4: Final = 0x45
"""First byte of an IPv4 packet without options."""
_EXTENSIONS: Final = frozenset({0, 43, 44, 51, 60})
_MULTICAST: Final = {4: range(224, 256), 6: range(255, 256)}
"""IP version -> first bytes of addresses that no answer may come from."""


class PacketDnsServer:
    """Answers questions among the packets of `device`, and hands all others to `then`. `packet` is an OnPacket."""

    def __init__(self, forwarder: Forwarder, device: PacketDevice, then: OnPacket) -> None:
        self._forwarder = forwarder
        self._device = device
        self._then = then
        self._open: set[asyncio.Task[None]] = set()

    def packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        if not _may_ask(buffer, start, end) or not self._asked(buffer, start, end):
            self._then(buffer, start, end, shape)

    def _asked(self, buffer: memoryview, start: int, end: int) -> bool:
        """Whether it was a question; then it is answered, now or later."""
        packet = parse(buffer, start, end)
        if isinstance(packet, Drop) or not _is_question(packet):
            return False
        at = start + packet.transport
        length = _HEADER.unpack_from(buffer, at)[2]
        if not _HEADER.size <= length <= end - at:
            return False
        found = self._forwarder.consider(bytes(buffer[at + _HEADER.size : at + length]), tcp=False)
        if isinstance(found, Query):
            self._resolve(found, packet)
        elif found is not None:
            self._answer(found, packet)
        return True

    def _resolve(self, query: Query, packet: Packet) -> None:
        if len(self._open) >= MAX_OPEN:
            self._forwarder.counters.overload += 1
            self._answer(error_reply(query, codes.SERVFAIL), packet)
            return
        task = spawn(self._resolved(query, packet), "dns packet")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _resolved(self, query: Query, packet: Packet) -> None:
        self._answer(await self._forwarder.resolve(query, tcp=False), packet)

    def _answer(self, reply: bytes, packet: Packet) -> None:
        answer = answer_to(packet, reply)
        buffer = memoryview(bytearray(START + len(answer)))
        buffer[START:] = answer
        try:
            self._device.write(buffer, START, len(buffer), COMPLETE)
        except ValueError:
            # The device is closed: nobody waits any more.
            return


def answer_to(packet: Packet, reply: bytes) -> bytes:
    """The IP packet with `reply` to the question in `packet`: from where it was asked, to who asked."""
    length = _HEADER.size + len(reply)
    here, there = packet.destination, packet.source
    head = _HEADER.pack(packet.destination_port, packet.source_port, length, 0)
    # A sum of 0 would say that there is none (RFC 768).
    summed = checksum(head + reply, pseudo_sum(here, there, UDP, length)) or 0xFFFF
    return datagram(here, there, UDP, head[:6] + summed.to_bytes(2) + reply)


def _may_ask(buffer: memoryview, start: int, end: int) -> bool:
    """False for most packets, from a few bytes; what is True is looked at closely."""
    if end - start < 28:
        return False
    first = buffer[start]
    if first == _PLAIN4:
        return buffer[start + 9] == UDP and buffer[start + 22 : start + 24] == _PORT_BYTES
    if first >> 4 == 6:
        following = buffer[start + 6]
        return (
            following == UDP and buffer[start + 42 : start + 44] == _PORT_BYTES
        ) or following in _EXTENSIONS
    return True


def _is_question(packet: Packet) -> bool:
    return (
        packet.protocol == UDP
        and packet.destination_port == PORT
        and not packet.fragment
        and not packet.more
        and packet.destination[0] not in _MULTICAST[packet.version]
        and packet.source[0] not in _MULTICAST[packet.version]
        and any(packet.source)
    )
