"""Datagrams and packets: a session carries them without a guarantee.

They use the datagram lane while it is up, else frames on the carrier. There they wait in a queue that is bounded in
bytes and in time. The oldest is dropped first: a late datagram is worth less than the next one.

`BasePacketLink` is the session's view of the packet link: the lane and the receiver of packets (carriers/lane/).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..address import Destination
from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher
from ..errors import CloseReason, PeerError
from ..rules.ranges import IPNetwork
from .writer import RecordWriter

SECONDS: Final = 0.02
"""Longest time that a frame waits after a `write` had no room for it."""
_NEVER: Final = float("inf")


class DatagramQueue:
    """Frames of at most `bound` bytes together, and always at least one frame. `bytes`: bytes that wait; `dropped`:
    number of frames that were not sent."""

    __slots__ = ("_bound", "_frames", "bytes", "dropped")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._frames: deque[tuple[float, bytes]] = deque()
        """With the time of the first `write` that had no room for the frame; until then _NEVER."""
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
    """The methods of the packet link that a session calls. This base class has neither a lane nor packets.

    Only the methods that say so may raise, and only PeerError.
    """

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        """These secrets are known here, and the peer has them or is about to; `number` is that of the epoch."""

    def announced(self, number: int, index: int) -> None:
        """The peer expects datagrams of epoch `number` under `index`. Raises PeerError if no lane was agreed on."""
        raise unwanted("lane")

    def datagrams(self) -> int:
        """Number of datagrams sealed or opened with the newest secrets; too many cause a rotation."""
        return 0

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        """Send a datagram on the lane. False if the lane is down."""
        return False

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        """A PACKET frame came. Raises PeerError if packets were not agreed on."""
        raise unwanted("packet")

    def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
        """A NETWORK frame came. Raises PeerError if none may come."""
        raise unwanted("network")

    def taken_received(self, serial: int, networks: tuple[IPNetwork, ...]) -> None:
        """A TAKEN frame came. Raises PeerError if none may come."""
        raise unwanted("taken")


def unwanted(kind: str) -> PeerError:
    """The error for a frame that was not agreed on."""
    return PeerError(CloseReason.PROTOCOL, f"the peer sent a {kind} frame that was not agreed on")
