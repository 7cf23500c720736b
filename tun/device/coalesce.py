"""Joining UDP packets of one flow to a super-packet, before they cross the link.

A kernel joins the TCP segments that come in (GRO), and hands over UDP packets one by one, those of QUIC downloads for
instance. A packet costs some 20 us on either side of the link, and a few inside of a super-packet. So equal packets
that follow each other within a wake-up are joined here, by copying, and cut apart by the far kernel (USO) or `split`.

Packets are joined where a kernel would join them: same addresses, ports, lengths, TTL, TOS and flow label, no options
or fragments, IPv4 ids that do not matter (DF, RFC 6864) or count up. A complete checksum is checked first, since the
joined packet gets a new one.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cryprq_proxy.lane.slices import HEADROOM, MAX_PACKET, NEEDS_CSUM, UDP_GSO, Shape

from .device import OnPacket
from .offload import COMPLETE, GSO_MAX_SEGS, GSO_MAX_SIZE
from .packets import UDP, checksum, ones_sum, pseudo_sum

MIN_PAYLOAD: Final = 256
"""Smaller datagrams are sent as they are: voice and games, where each is alone in its wake-up."""
_UDP_HEADER: Final = 8
# Everything but the IPv4 id (2nd), the header checksum (4th) and the UDP checksum (last).
_V4: Final = Struct(">4sH4s2s14sH")
_V6: Final = Struct(">46sH")
_U16: Final = Struct(">H")
_DF: Final = 0x40

type _Key = tuple[bytes, bytes, bytes] | bytes


class UdpJoiner:
    """Stands between a device and the link: `packet` is the device's OnPacket, `flush` its end of a wake-up."""

    def __init__(self, send: OnPacket) -> None:
        self._send = send
        self._buffer = memoryview(bytearray(HEADROOM + MAX_PACKET))
        self._key: _Key | None = None
        self._shape = COMPLETE
        self._header = self._payload = self._count = self._end = self._id = 0

    def packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        """Take or send the packet in buffer[start:end]."""
        key: _Key | None = None
        if not shape.gso_size:
            first = buffer[start]
            if first == 0x45:
                if end - start >= 28 + MIN_PAYLOAD and buffer[start + 9] == UDP:
                    one, number, two, _, three, summed = _V4.unpack_from(buffer, start)
                    # Neither a fragment nor one to be made.
                    if two[0] & ~_DF == 0 and not two[1] and (shape.flags or summed):
                        key, header = (one, two, three), 28
            elif first >> 4 == 6 and end - start >= 48 + MIN_PAYLOAD and buffer[start + 6] == UDP:
                key, summed = _V6.unpack_from(buffer, start)
                number, header = 0, 48
        if key is None:
            self.flush()
            self._send(buffer, start, end, shape)
            return
        payload = end - start - header
        size = HEADROOM + header + payload
        follows = (
            key == self._key
            and shape == self._shape
            and self._count < GSO_MAX_SEGS
            and self._end + payload - HEADROOM <= GSO_MAX_SIZE
            and (header == 48 or buffer[start + 6] & _DF or number == (self._id + self._count) & 0xFFFF)
        )
        if not follows:
            self.flush()
        if shape == COMPLETE and not _sums(buffer, start, end, header):
            self.flush()
            self._send(buffer, start, end, shape)
        elif not follows:
            self._key, self._shape, self._header, self._payload, self._id = (
                key,
                shape,
                header,
                payload,
                number,
            )
            self._buffer[HEADROOM:size] = buffer[start:end]
            self._count, self._end = 1, size
        else:
            self._buffer[self._end : self._end + payload] = buffer[start + header : end]
            self._end += payload
            self._count += 1

    def flush(self) -> None:
        """Send what has been joined."""
        count, self._count, self._key = self._count, 0, None
        if count == 1:
            self._send(self._buffer, HEADROOM, self._end, self._shape)
        elif count:
            self._finish()
            shape = Shape(NEEDS_CSUM | UDP_GSO, self._payload, self._header)
            self._send(self._buffer, HEADROOM, self._end, shape)

    def _finish(self) -> None:
        """Give the first packet's headers the length of all."""
        buffer, transport = self._buffer, HEADROOM + self._header - _UDP_HEADER
        length = self._end - transport
        if self._header == 28:
            _U16.pack_into(buffer, HEADROOM + 2, self._end - HEADROOM)
            _U16.pack_into(buffer, HEADROOM + 10, 0)
            _U16.pack_into(buffer, HEADROOM + 10, checksum(buffer[HEADROOM:transport]))
            addresses = bytes(buffer[HEADROOM + 12 : transport])
        else:
            _U16.pack_into(buffer, HEADROOM + 4, length)
            addresses = bytes(buffer[HEADROOM + 8 : transport])
        half = len(addresses) // 2
        _U16.pack_into(buffer, transport + 4, length)
        _U16.pack_into(buffer, transport + 6, pseudo_sum(addresses[:half], addresses[half:], UDP, length))


def _sums(buffer: memoryview, start: int, end: int, header: int) -> bool:
    """Whether the UDP checksum is right (RFC 768; RFC 8200 section 8.1)."""
    transport = start + header - _UDP_HEADER
    addresses = bytes(buffer[start + (12 if header == 28 else 8) : transport])
    half = len(addresses) // 2
    pseudo = pseudo_sum(addresses[:half], addresses[half:], UDP, end - transport)
    return (pseudo + ones_sum(buffer[transport:end])) % 0xFFFF == 0
