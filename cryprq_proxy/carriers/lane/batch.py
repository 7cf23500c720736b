"""What moves between a UDP socket and the lanes: batches, their sender, and what became of one that was sent."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from ...status import OffloadStatus

MAX_SEGMENTS: Final = 64
"""Datagrams in one send; newer kernels take 128."""
MAX_BATCH: Final = 65_507
"""Bytes in one send: 65,535 without the headers of IPv4 and UDP."""
RECEIVE_SIZE: Final = 65_536

type SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module has it, for IPv4 and IPv6; the host is a literal."""


class Sent(Enum):
    """What became of a batch."""

    OK = "ok"
    FULL = "the socket's queue is full"
    """What was not taken is dropped."""
    TOO_BIG = "larger than the device takes"
    """`segment` must become smaller; nothing of this size went out."""
    UNREACHABLE = "no route, or the socket's own address is gone"
    """A connected socket that stays like this is to be made anew: its local address never changes."""
    FAILED = "refused"
    """By a filter, or by the other side (ICMP)."""


class UdpOffload(NamedTuple):
    """What sockets may use, and why not the rest (one sentence part for `status`; empty if all is in use)."""

    gso: bool
    gro: bool
    reason: str = ""

    def status(self) -> OffloadStatus:
        return OffloadStatus(gso=self.gso, gro=self.gro, reason=self.reason)


class UdpPeer(NamedTuple):
    """Where a batch came from; answers go to it. Opaque to the layers above: compared, never looked into."""

    address: SocketAddress
    local: bytes = b""
    """Control data that makes answers leave from the address that the batch came to; empty if the socket has one."""

    def __str__(self) -> str:
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Batch(NamedTuple):
    """Datagrams of one sender: `data[:size]`. `data` is the buffer that was received into, the very object."""

    data: memoryview
    size: int
    segment: int
    """Size of each datagram but the last, at least 1."""
    peer: UdpPeer
    marked: bool = False
    """Whether a router has marked them for congestion: the kernel joins only datagrams with equal marks."""
