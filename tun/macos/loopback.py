"""Packets that this Mac sends to the tunnel's own addresses, handed back to it.

Its kernel leads those to an IPv4 address of a point-to-point device into the device: only for IPv6 does it make a route
to lo0. So questions by TCP to the forwarder, and pings of the own address, would go to the exit, which drops them. They
are written back as they came, and the packet filter is asked a second time, as of all that comes in.

Not yet run on a Mac: a kernel that loops them back by itself never lets such a packet come here.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.lane.slices import Shape

from ..device.device import OnPacket
from ..device.offload import COMPLETE
from .device import Utun

_DESTINATION: Final = {4: slice(16, 20), 6: slice(24, 40)}
"""IP version -> where the destination stands in a packet (RFC 791, RFC 8200)."""


class Loopback:
    """Writes packets to addresses of `device` back into it, and hands all others to `then`. `packet` is an OnPacket."""

    def __init__(self, device: Utun, then: OnPacket) -> None:
        self._device = device
        self._then = then

    def packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        where = _DESTINATION[buffer[start] >> 4]
        if bytes(buffer[start + where.start : min(start + where.stop, end)]) in self._device.own:
            self._device.write(buffer, start, end, COMPLETE)
        else:
            self._then(buffer, start, end, shape)
