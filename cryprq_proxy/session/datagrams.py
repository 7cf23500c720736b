"""Datagrams and packets: what a session carries without a promise.

They leave by the datagram lane where it is up, else as frames on the carrier. There they wait in a queue that is
bounded in bytes and in time, and lose the oldest first: a late datagram is worth less than the one behind it.

`BasePacketLink` is the session's view of the packet link: the lane and the receiver of packets (carriers/lane/).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..address import Destination
from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher
from ..errors import CloseReason, PeerError
from .writer import RecordWriter

SECONDS: Final = 0.02
"""How long a frame may wait after it was first passed over."""
_NEVER: Final = float("inf")


class DatagramQueue:
    """Frames of at most `bound` bytes together; one frame always has a place. `bytes` wait, `dropped` frames did not
    get away."""

    __slots__ = ("_bound", "_frames", "bytes", "dropped")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._frames: deque[tuple[float, bytes]] = deque()
        """With the time at which each was first passed over; until then _NEVER."""
        self.bytes = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, frame: bytes) -> None:
        self._frames.append((_NEVER, frame))
        self.bytes += len(frame)
        while self.bytes > self._bound and len(self._frames) > 1:
            self._pop()
            self.dropped += 1

    def write(self, writer: RecordWriter, until: int, now: float) -> None:
        """Move frames to `writer` until it stands at `until` bytes."""
        while self._frames and writer.position < until:
            passed_over, frame = self._pop()
            if now - passed_over <= SECONDS:
                writer.add(frame)
            else:
                self.dropped += 1
        for index in range(len(self._frames) - 1, -1, -1):
            passed_over, frame = self._frames[index]
            if passed_over != _NEVER:
                break
            self._frames[index] = (now, frame)

    def clear(self) -> None:
        self.dropped += len(self._frames)
        self._frames.clear()
        self.bytes = 0

    def _pop(self) -> tuple[float, bytes]:
        entry = self._frames.popleft()
        self.bytes -= len(entry[1])
        return entry


class BasePacketLink:
    """What a session calls of the packet link beside it: this one has neither a lane nor packets.

    Only the methods that say so may raise, and only PeerError.
    """

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        """From now on the peer knows these secrets too. `number` counts from 0 with each carrier."""

    def announced(self, number: int, index: int) -> None:
        """The peer awaits datagrams of that epoch under `index`. Raises PeerError where no lane was agreed on."""
        raise _unwanted("lane")

    def datagrams(self) -> int:
        """Datagrams sealed or opened with the newest secrets: too many of them call for a rotation."""
        return 0

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        """Whether the lane took it."""
        return False

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        """A PACKET frame. Raises PeerError where packets were not agreed on."""
        raise _unwanted("packet")

    def network_received(self, ipv4: bytes, ipv6: bytes) -> None:
        """A NETWORK frame. Raises PeerError where none may come."""
        raise _unwanted("network")


def _unwanted(kind: str) -> PeerError:
    return PeerError(CloseReason.PROTOCOL, f"the peer sent a {kind} frame that was not agreed on")
