"""What a session carries beside its streams: lane announcements, packets, and datagrams that find a lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import BasePacketLink
from cryprq_proxy.session.session import PACKET_QUEUE, SessionLimits
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import Link
from tests.support.settings import rotation_limits, session_limits

NAME = Destination("example.com", 53)


@dataclass
class Recorder(BasePacketLink):
    """A packet link that keeps what it is told."""

    takes: bool = False
    count: int = 0
    epochs: list[tuple[int, EpochSecrets]] = field(default_factory=list)
    announcements: list[tuple[int, int]] = field(default_factory=list)
    packets: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    networks: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    sent: list[tuple[int, Destination, bytes]] = field(default_factory=list)

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        self.epochs.append((number, secrets))
        self.count = 0

    def announced(self, number: int, index: int) -> None:
        self.announcements.append((number, index))

    def datagrams(self) -> int:
        return self.count

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        if self.takes:
            self.sent.append((stream, destination, bytes(payload)))
        return self.takes

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        self.packets.append((flags, segment, header, bytes(packet)))

    def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
        self.networks.append((serial, ipv4, ipv6))


def equipped(limits: SessionLimits | None = None) -> tuple[Link, Recorder, Recorder]:
    link = Link(limits, connected=False)
    client, exit = Recorder(), Recorder()
    link.client.packet_link, link.exit.packet_link = client, exit
    for session in (link.client, link.exit):
        session.begin_lane(link.now)
    link.connect()
    return link, client, exit


@pytest.mark.parametrize(
    "frame",
    [
        wire.encode_lane(0, 1),
        wire.encode_packet(0, 0, 0, b"p"),
        wire.encode_network(1, bytes(4), bytes(16)),
        wire.encode_taken(1, [IPv4Network("10.0.0.0/8")]),
    ],
    ids=["lane", "packet", "network", "taken"],
)
@pytest.mark.parametrize("side", ["client", "exit"])
def test_what_was_not_agreed_on_ends_the_session(frame: bytes, side: str) -> None:
    link = Link()
    with pytest.raises(PeerError) as caught:
        link.forge(getattr(link, side), frame)
    assert caught.value.reason is CloseReason.PROTOCOL


def test_both_sides_learn_the_same_secrets_of_every_epoch() -> None:
    link, client, exit = equipped(session_limits(rotation=rotation_limits(interval=10.0)))
    link.carrier.advance(25.0)
    assert [number for number, _ in client.epochs] == [0, 1, 2]
    assert client.epochs == exit.epochs
    link.resume()
    link.carrier.advance(5.0)
    assert [number for number, _ in client.epochs] == [0, 1, 2, 3], "they go on over paths"
    assert client.epochs == exit.epochs


def test_announcements_made_on_an_epoch_find_it_known_to_the_peer() -> None:
    """An exit that announces its index when it is told of the epoch must not be early for the client."""
    link, _, _ = equipped(session_limits(rotation=rotation_limits(interval=10.0)))
    known: list[int] = []

    class Answering(Recorder):
        def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
            session = link.exit if self is answering[1] else link.client
            session.announce(wire.encode_lane(number, 100 + number))
            super().epoch(cipher, number, secrets, now)

        def announced(self, number: int, index: int) -> None:
            assert number in [epoch for epoch, _ in self.epochs] and index == 100 + number
            known.append(number)

    answering = [Answering(), Answering()]
    link.client.packet_link, link.exit.packet_link = answering
    link.carrier.advance(25.0)
    assert sorted(known) == [1, 1, 2, 2]


def test_packets_cross_on_the_path() -> None:
    link, client, exit = equipped()
    link.client.send_packet(3, 1400, 52, memoryview(b"up" * 20_000))
    link.exit.send_packet(0, 0, 0, memoryview(b"down"))
    link.carrier.settle()
    assert exit.packets == [(3, 1400, 52, b"up" * 20_000)]
    assert client.packets == [(0, 0, 0, b"down")]


def test_the_queue_of_packets_is_bounded() -> None:
    link, _, exit = equipped()
    for number in range(100):
        link.client.send_packet(0, 0, 0, memoryview(b"%03d" % number + bytes(50_000)))
        assert link.client.packets.bytes <= PACKET_QUEUE
    dropped = link.client.packets.dropped
    link.carrier.settle()
    assert [int(packet[3][:3]) for packet in exit.packets] == list(range(dropped, 100))


def test_packets_do_not_wait_for_the_next_path() -> None:
    link, _, exit = equipped()
    link.client.send_packet(0, 0, 0, memoryview(b"lost"))
    link.carrier.cut()
    link.client.send_packet(0, 0, 0, memoryview(b"lost too"))
    link.connect()
    link.client.send_packet(0, 0, 0, memoryview(b"sent"))
    link.carrier.settle()
    assert [packet[3] for packet in exit.packets] == [b"sent"]


def test_datagrams_take_the_lane_where_it_takes_them() -> None:
    link, client, _ = equipped()
    app = link.open(protocol=StreamProtocol.UDP)
    link.carrier.settle()
    assert app.stream is not None
    other = link.served[app.stream.id]
    client.takes = True
    app.stream.send_datagram(NAME, b"beside")
    client.takes = False
    app.stream.send_datagram(NAME, b"on it")
    link.carrier.settle()
    assert client.sent == [(app.stream.id, NAME, b"beside")]
    assert other.datagrams == [(NAME, b"on it")]


def test_datagrams_from_the_lane_reach_only_streams_of_datagrams() -> None:
    link, _, _ = equipped()
    app, tcp = link.open(protocol=StreamProtocol.UDP), link.open()
    link.carrier.settle()
    assert app.stream is not None and tcp.stream is not None
    for id in (app.stream.id, tcp.stream.id, 99):
        link.exit.receiver.datagram_from_lane(id, NAME, memoryview(b"beside"))
    assert link.served[app.stream.id].datagrams == [(NAME, b"beside")]
    assert not link.served[tcp.stream.id].datagrams


def test_too_many_datagrams_call_for_new_keys() -> None:
    link, client, exit = equipped(session_limits(rotation=rotation_limits(datagrams=1000)))
    link.quiesce()
    client.count = 1000
    link.client.wake()
    link.carrier.advance(1.0)
    assert link.client.ledger.rotations and link.exit.ledger.rotations
    assert client.epochs[1] == exit.epochs[1]
