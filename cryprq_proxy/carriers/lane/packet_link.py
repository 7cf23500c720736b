"""IP packets over a session: by its datagram lane where that is up, else on its carrier.

    a network interface -> `send` -> lane, or PACKET frame  ==  lane or PACKET frame -> `receive` -> a network interface

The client's network interface has one PacketLink, that of its exit; the exit's has one for each client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...address import Destination
from ...base.buffers import SHARED
from ...crypto.handshake import EpochSecrets
from ...crypto.primitives import Cipher
from ...lane.slices import FLAGS_MASK, HEADROOM, KIND_MASK, MAX_PACKET, PLAIN, Run, Shape
from ...rules.ranges import IPNetwork
from ...session.datagrams import BasePacketLink, unwanted
from ...session.session import Session
from ...session.wire import MAX_TAKEN, LaneUse, encode_lane, encode_network, encode_taken
from ...status import PacketLinkStatus, Traffic
from .carrier import LaneCarrier

MOST_REFUSALS: Final = 4
"""Addresses of an exit that a client refuses, one after the other."""

NO_ADDRESSES: Final = bytes(4), bytes(16)
"""What a peer is assigned that gets no packets."""

type Collisions = Callable[[bytes, bytes], Sequence[IPNetwork]]
"""The networks of this machine that hold one of these addresses, of 4 and 16 bytes."""
type Receiver = Callable[[memoryview, int, int, Run], None]
"""Gets packets as (buffer, start, end, run); lane/slices.py says what may be overwritten, and until when."""


class PacketLink(BasePacketLink):
    """The packet link of one session. `lane` is None where there is none.

    The peer's packets and addresses are refused: they break the protocol. `lane_changed` is called when the lane comes
    up or goes down, or takes packets of another size.
    """

    def __init__(self, session: Session, lane_changed: Callable[[], None] = lambda: None) -> None:
        self._session = session
        self._lane_changed = lane_changed
        self.lane: LaneCarrier | None = None
        self.addresses: tuple[bytes, bytes] | None = None
        """What the exit hands out, 4 and 16 bytes; None where no packets are carried, and at the client."""
        self._serial = 0
        self._peer_serial = 0
        """Of the last NETWORK or TAKEN frame, each direction."""
        self.sent_on_carrier = 0
        self.received_on_carrier = 0
        self.malformed = 0

    def send(self, buffer: memoryview, start: int, end: int, shape: Shape, more: bool = False) -> None:
        """Send the packet at `buffer[start:end]`, or drop it. It may be overwritten, and HEADROOM bytes before it too.
        `more` promises that the PacketTrain is flushed soon."""
        if self.lane is None or not self.lane.send_packet(buffer, start, end, shape, more):
            self.sent_on_carrier += 1
            flags, gso_size, header = shape
            self._session.send_packet(flags & FLAGS_MASK, gso_size, header, buffer[start:end])

    def assign(self, ipv4: bytes, ipv6: bytes) -> None:
        """Hand out these addresses to the peer."""
        self.addresses = ipv4, ipv6
        self._session.announce(encode_network(self._next_serial(), ipv4, ipv6))

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _is_newest(self, serial: int) -> bool:
        """Whether a frame with this serial is newer than all before; one that comes late says what is over."""
        newest = serial > self._peer_serial
        self._peer_serial = max(serial, self._peer_serial)
        return newest

    def look_around(self) -> None:
        """The networks around this machine may have changed: see whether one holds the present addresses."""

    def retire(self) -> None:
        """Another session has taken its place beside the network interface, which hears nothing more from this one."""
        self._lane_changed = _unheard

    def close(self) -> None:
        """Close the lane; the session is over."""
        if self.lane is not None:
            self.lane.close()

    # --- for the session -------------------------------------------------------------------------------------------

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        if self.lane is not None:
            self.lane.epoch(cipher, number, secrets, now)

    def announce(self, number: int, index: int) -> None:
        """The lane expects datagrams under `index`: tell the peer."""
        session = self._session
        session.announce(encode_lane(number, index, session.lane_use if session.dialler else LaneUse.AUTO))

    def announced(self, number: int, index: int) -> None:
        if self.lane is None:
            super().announced(number, index)
        else:
            self.lane.announced(number, index)

    def datagrams(self) -> int:
        return 0 if self.lane is None else self.lane.datagrams()

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        return self.lane is not None and self.lane.send_datagram(stream, destination, payload)

    # --- the lane's handler ----------------------------------------------------------------------------------------

    def packet(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """Drop a packet: none was agreed on."""

    def datagram(self, stream: int, destination: Destination, payload: memoryview) -> None:
        self._session.receiver.datagram_from_lane(stream, destination, payload)

    def lane_changed(self) -> None:
        self._lane_changed()

    def status(self) -> PacketLinkStatus:
        return PacketLinkStatus(
            lane=None if self.lane is None else self.lane.status(),
            on_carrier=Traffic(sent=self.sent_on_carrier, received=self.received_on_carrier),
            dropped={
                "datagrams": self._session.datagrams.dropped,
                "packets": self._session.packets.dropped,
                "malformed": self.malformed,
            },
        )


def refuse_addresses(ipv4: bytes, ipv6: bytes) -> None:
    """For the exit, which hands out addresses. Raises PeerError."""
    raise unwanted("network")


def refuse_prefixes(networks: tuple[IPNetwork, ...]) -> None:
    """For the client, which takes addresses. Raises PeerError."""
    raise unwanted("taken")


def nothing_taken(ipv4: bytes, ipv6: bytes) -> Sequence[IPNetwork]:
    """For the exit, and for a client that takes any address."""
    return ()


class NetworkLink(PacketLink):
    """A packet link with a network interface on this side.

    `receive` gets the peer's packets, `addressed` the addresses that the peer hands out. `collisions` says which
    networks of this machine hold one of those: then the peer is asked for others, and `addressed` is called with zeros
    if it has no others after MOST_REFUSALS. At the exit, `taken` gets such networks of the client.
    """

    def __init__(
        self,
        session: Session,
        receive: Receiver,
        addressed: Callable[[bytes, bytes], None] = refuse_addresses,
        lane_changed: Callable[[], None] = lambda: None,
        *,
        collisions: Collisions = nothing_taken,
        taken: Callable[[tuple[IPNetwork, ...]], None] = refuse_prefixes,
    ) -> None:
        super().__init__(session, lane_changed)
        self._receive = receive
        self._addressed = addressed
        self._collisions = collisions
        self._taken = taken
        self._refusals = 0
        self._offered = NO_ADDRESSES
        """What the peer has handed out last."""
        self._room = SHARED.scratch("arriving packets", HEADROOM + MAX_PACKET)

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        size = len(packet)
        kind = flags & KIND_MASK
        if flags & ~FLAGS_MASK or (not 0 < segment < size - header if kind != PLAIN else segment or header):
            self.malformed += 1
            return
        self.received_on_carrier += 1
        count = 1 if kind == PLAIN else -(-(size - header) // segment)
        self._room[HEADROOM : HEADROOM + size] = packet
        self._receive(
            self._room, HEADROOM, HEADROOM + size, Run(Shape(flags, segment, header), 0, count, count)
        )

    def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
        if self._is_newest(serial):
            self._offered = ipv4, ipv6
            self._take(self._collisions(ipv4, ipv6), ipv4, ipv6)

    def look_around(self) -> None:
        found = self._collisions(*self._offered)
        if found:
            self._take(found, *self._offered)

    def _take(self, found: Sequence[IPNetwork], ipv4: bytes, ipv6: bytes) -> None:
        """Take these addresses, or refuse them for the networks that hold them."""
        if not found:
            self._refusals = 0
            self._addressed(ipv4, ipv6)
        elif self._refusals < MOST_REFUSALS:
            self._refusals += 1
            self._session.announce(encode_taken(self._next_serial(), found[:MAX_TAKEN]))
        else:
            self._addressed(*NO_ADDRESSES)

    def taken_received(self, serial: int, networks: tuple[IPNetwork, ...]) -> None:
        if self._is_newest(serial):
            self._taken(networks)

    def packet(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self._receive(buffer, start, end, run)

    def retire(self) -> None:
        super().retire()
        self._receive = self._addressed = _unheard
        self._collisions = nothing_taken


def _unheard(*_: object) -> None:
    """What comes after `retire`."""
