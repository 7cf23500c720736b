"""Small packets that leave together: the kernel cuts one send apart into datagrams (UDP_SEGMENT).

The network interface hands over a burst of packets in one wake-up. Those that are small, of one lane and one size are
sealed behind each other here and leave in one system call, at the end of the burst at the latest.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .batch import MAX_BATCH, UdpPeer
from .udp_socket import UdpSocket


class Outlet(NamedTuple):
    """The socket from which a lane sends, and the address to which. The lane's path only compares them."""

    socket: UdpSocket
    to: UdpPeer | None
    """None: the socket is connected."""


class TrainSender(Protocol):
    """The lane that has filled the train."""

    def push_train(self, data: memoryview, segment: int, outlet: Outlet, first: int) -> None:
        """Send `data`, datagrams of `segment` bytes each; only the last may be shorter. `first`: its counter."""


class PacketTrain:
    """One send that is being filled; the process has one. LaneCarriers fill it, and what feeds them flushes it."""

    __slots__ = ("buffer", "count", "end", "express", "first", "outlet", "segment", "sender")

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(MAX_BATCH))
        self.sender: TrainSender | None = None
        self.outlet: Outlet | None = None
        self.segment = 0
        self.express = 0
        """Whether they may all overtake, or none."""
        self.first = 0
        """The counter of the first datagram; the others follow. Flush before anything else is sealed."""
        self.end = 0
        """Bytes in `buffer`."""
        self.count = 0
        """Datagrams in `buffer`."""

    def flush(self) -> None:
        """Send what is held back, of whatever lane."""
        sender, outlet, end = self.sender, self.outlet, self.end
        self.sender = self.outlet = None
        self.end = self.count = 0
        if sender is not None and outlet is not None and end:
            sender.push_train(self.buffer[:end], self.segment, outlet, self.first)

    def forget(self, sender: TrainSender) -> None:
        """Drop what `sender` has put in."""
        if self.sender is sender:
            self.sender = None
