"""IP packets over a session: the lane first, the carrier else, and what a peer may not send."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.lane.packet_link import MOST_REFUSALS, NetworkLink, PacketLink
from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, TCP4, UDP_GSO, Run, Shape
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import LaneUse, StreamProtocol
from cryprq_proxy.status import LaneStatus, PacketLinkStatus, Traffic
from tests.support.links import Link

PLAIN = Shape(0, 0, 0)
SUPER = Shape(TCP4 | NEEDS_CSUM, 1000, 40)
NAME = Destination("example.com", 53)


class FakeLane:
    """A lane that takes packets and datagrams while it is `up`."""

    def __init__(self) -> None:
        self.up = True
        self.packets: list[tuple[bytes, Shape]] = []
        self.sent: list[tuple[int, Destination, bytes]] = []
        self.epochs: list[int] = []
        self.announcements: list[tuple[int, int]] = []
        self.closed = False

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape, more: bool = False) -> bool:
        if self.up:
            self.packets.append((bytes(buffer[start:end]), shape))
        return self.up

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        if self.up:
            self.sent.append((stream, destination, bytes(payload)))
        return self.up

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        self.epochs.append(number)

    def announced(self, number: int, index: int) -> None:
        self.announcements.append((number, index))

    def datagrams(self) -> int:
        return 7

    def status(self) -> LaneStatus:
        return LaneStatus(up=self.up)

    def close(self) -> None:
        self.closed = True


LAN = IPv4Network("10.0.0.0/24")


class Ends:
    """A session's two PacketLinks, and what they hand over."""

    def __init__(self, *, receives: bool = True, lanes: bool = True, use: LaneUse = LaneUse.AUTO) -> None:
        self.link = Link(connected=False)
        self.link.client.set_lane_use(use)
        self.packets: list[tuple[bytes, Run]] = []
        self.networks: list[tuple[bytes, bytes]] = []
        self.taken: list[tuple[IPNetwork, ...]] = []
        self.changes = 0
        self.client: PacketLink
        self.exit: PacketLink
        if receives:
            self.client = NetworkLink(
                self.link.client, self.received, self.addressed, self.changed, collisions=self.collisions
            )
            self.exit = NetworkLink(self.link.exit, self.received, taken=self.taken.append)
        else:
            self.client = PacketLink(self.link.client, self.changed)
            self.exit = PacketLink(self.link.exit)
        self.lanes = FakeLane(), FakeLane()
        if lanes:
            self.client.lane, self.exit.lane = self.lanes  # type: ignore[assignment]
        self.link.client.packet_link, self.link.exit.packet_link = self.client, self.exit
        for session in (self.link.client, self.link.exit):
            session.begin_lane(self.link.now)
        self.link.connect()

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        assert start >= HEADROOM
        self.packets.append((bytes(buffer[start:end]), run))
        buffer[start - HEADROOM : end] = bytes(end - start + HEADROOM)  # as its receiver may

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        self.networks.append((ipv4, ipv6))

    def collisions(self, ipv4: bytes, ipv6: bytes) -> list[IPNetwork]:
        return [LAN] if IPv4Address(ipv4) in LAN else []

    def changed(self) -> None:
        self.changes += 1


def send(link: PacketLink, data: bytes, shape: Shape = PLAIN) -> None:
    room = memoryview(bytearray(HEADROOM) + data)
    link.send(room, HEADROOM, len(room), shape)


# --- lane and carrier ---


def test_packets_take_the_lane_and_the_carrier_while_there_is_none() -> None:
    ends = Ends()
    send(ends.client, b"beside", SUPER)
    ends.lanes[0].up = False
    send(ends.client, b"on it")
    ends.lanes[0].up = True
    send(ends.client, b"beside again")
    ends.link.carrier.settle()
    assert ends.lanes[0].packets == [(b"beside", SUPER), (b"beside again", PLAIN)]
    assert ends.packets == [(b"on it", Run(PLAIN, 0, 1, 1))]
    assert (ends.client.sent_on_carrier, ends.exit.received_on_carrier) == (1, 1)


def test_without_a_lane_all_goes_over_the_carrier_both_ways() -> None:
    ends = Ends(lanes=False)
    whole = bytes(40) + bytes(2_500)
    send(ends.client, whole, SUPER)
    ends.link.carrier.settle()
    send(ends.exit, b"down")
    ends.link.carrier.settle()
    assert ends.packets == [(whole, Run(SUPER, 0, 3, 3)), (b"down", Run(PLAIN, 0, 1, 1))]
    assert ends.client.status().lane is None


def test_datagrams_of_streams_take_the_lane_too() -> None:
    ends = Ends()
    assert ends.client.send_datagram(5, NAME, b"x") and ends.lanes[0].sent == [(5, NAME, b"x")]
    ends.lanes[0].up = False
    assert not ends.client.send_datagram(5, NAME, b"x")
    assert not Ends(lanes=False).client.send_datagram(5, NAME, b"x")
    assert (ends.client.datagrams(), Ends(lanes=False).client.datagrams()) == (7, 0)


def test_datagrams_from_the_lane_reach_their_stream() -> None:
    ends = Ends()
    app = ends.link.open(protocol=StreamProtocol.UDP)
    ends.link.carrier.settle()
    assert app.stream is not None
    ends.exit.datagram(app.stream.id, NAME, memoryview(b"up"))
    assert ends.link.served[app.stream.id].datagrams == [(NAME, b"up")]


def test_the_lane_learns_of_keys_and_of_the_peers_announcements() -> None:
    ends = Ends()
    ends.client.announce(0, 4711)
    ends.link.carrier.settle()
    assert ends.lanes[0].epochs == ends.lanes[1].epochs == [0]
    assert ends.lanes[1].announcements == [(0, 4711)]
    ends.client.lane_changed()
    assert ends.changes == 1
    ends.client.close()
    assert ends.lanes[0].closed and not ends.lanes[1].closed
    Ends(lanes=False).client.close()


def test_packets_from_the_lane_are_handed_over_as_they_are() -> None:
    ends = Ends()
    room, run = memoryview(bytearray(HEADROOM) + b"packet"), Run(SUPER, 2, 1, 5)
    ends.client.packet(room, HEADROOM, len(room), run)
    assert ends.packets == [(b"packet", run)]
    Ends(receives=False).client.packet(room, HEADROOM, len(room), run)


def test_the_exit_hands_out_addresses() -> None:
    """Once: a path that is lost does not take them along."""
    ends = Ends()
    ends.exit.assign(bytes([100, 96, 0, 7]), bytes(16))
    ends.link.resume()
    ends.link.carrier.settle()
    assert ends.networks == [(bytes([100, 96, 0, 7]), bytes(16))]


def test_addresses_that_are_over_are_ignored() -> None:
    """They come late, or again, by a path that was slower."""
    ends = Ends()
    for serial, last in ((2, 7), (1, 6), (2, 7), (0, 5), (3, 8), (3, 9)):
        ends.client.network_received(serial, bytes([100, 96, 0, last]), bytes(16))
        ends.exit.taken_received(serial, (IPv4Network((last, 32)),))
    assert [ipv4[3] for ipv4, _ in ends.networks] == [7, 8]
    assert ends.taken == [(IPv4Network((last, 32)),) for last in (7, 8)]


def test_an_address_that_is_in_use_is_refused_and_another_one_asked_for() -> None:
    """Until the exit has one that is free, and not for ever."""
    ends = Ends()
    ends.exit.assign(bytes([10, 0, 0, 7]), bytes(16))
    ends.link.carrier.settle()
    assert ends.taken == [(LAN,)]
    assert ends.networks == [], "the interface does not get it"
    ends.exit.assign(bytes([10, 1, 0, 7]), bytes(16))
    ends.link.carrier.settle()
    assert ends.networks == [(bytes([10, 1, 0, 7]), bytes(16))]
    for number in range(MOST_REFUSALS + 1):
        ends.exit.assign(bytes([10, 0, 0, number]), bytes(16))
        ends.link.carrier.settle()
    assert ends.taken == [(LAN,)] * (1 + MOST_REFUSALS)
    assert ends.networks[-1] == (bytes(4), bytes(16))


def test_a_network_that_comes_later_is_seen_with_the_next_path() -> None:
    """The exit does not say the addresses again."""
    ends = Ends()
    ends.client.look_around()
    ends.exit.assign(bytes([100, 96, 0, 7]), bytes(16))
    ends.link.carrier.settle()
    ends.client.look_around()
    ends.link.carrier.settle()
    assert ends.taken == []
    assert isinstance(ends.client, NetworkLink)
    ends.client._collisions = lambda ipv4, ipv6: (LAN,) if ipv4 == bytes([100, 96, 0, 7]) else ()
    ends.client.look_around()
    ends.link.carrier.settle()
    assert ends.taken == [(LAN,)]


def test_the_interface_hears_nothing_of_a_session_that_another_one_has_followed() -> None:
    """Else the old exit could change addresses under the new one."""
    ends = Ends()
    ends.client.retire()
    for ipv4 in (bytes([100, 96, 0, 7]), bytes([10, 0, 0, 7])):
        ends.exit.assign(ipv4, bytes(16))
    ends.lanes[1].up = False
    send(ends.exit, b"packet")
    ends.link.carrier.settle()
    room = memoryview(bytearray(HEADROOM) + b"packet")
    ends.client.packet(room, HEADROOM, len(room), Run(PLAIN, 0, 1, 1))
    ends.client.lane_changed()
    assert not ends.packets and not ends.networks and not ends.taken and not ends.changes
    assert ends.client.received_on_carrier == 1


def test_a_flood_of_refusals_has_few_answers() -> None:
    """One record holds thousands of them: without a bound the answers would fill memory and overflow the buffer."""
    link = Link()
    answers: list[bytes] = []

    def answer(networks: tuple[IPNetwork, ...]) -> None:
        answers.append(bytes([10, 1, len(answers), 7]))
        end.assign(answers[-1], bytes(16))

    end = link.exit.packet_link = NetworkLink(link.exit, lambda *packet: None, taken=answer)
    heard: list[bytes] = []
    link.client.packet_link = NetworkLink(
        link.client, lambda *packet: None, lambda ipv4, ipv6: heard.append(ipv4)
    )
    link.quiesce()
    link.forge(link.exit, *[wire.encode_taken(1, [LAN])] * 10)
    link.quiesce()
    assert heard == answers and len(answers) == 1, "copies are none"
    with pytest.raises(PeerError) as caught:
        link.forge(link.exit, *[wire.encode_taken(serial, [LAN]) for serial in range(2, 1000)])
    assert caught.value.reason is CloseReason.LIMIT and len(answers) < 20


def test_status() -> None:
    ends = Ends()
    ends.lanes[0].up = False
    send(ends.client, b"x")
    assert ends.client.status() == PacketLinkStatus(
        lane=LaneStatus(up=False),
        on_carrier=Traffic(sent=1),
        dropped={"datagrams": 0, "packets": 0, "malformed": 0},
    )


# --- what a peer may not send ---


@pytest.mark.parametrize(
    ("frame", "side"),
    [
        (wire.encode_packet(0, 0, 0, b"p"), "client"),
        (wire.encode_packet(0, 0, 0, b"p"), "exit"),
        (wire.encode_network(1, bytes(4), bytes(16)), "client"),
        (wire.encode_taken(1, [LAN]), "exit"),
    ],
)
def test_what_was_not_agreed_on_ends_the_session(frame: bytes, side: str) -> None:
    ends = Ends(receives=False)
    with pytest.raises(PeerError) as caught:
        ends.link.forge(getattr(ends.link, side), frame)
    assert caught.value.reason is CloseReason.PROTOCOL


def test_a_client_hands_out_no_addresses() -> None:
    ends = Ends()
    with pytest.raises(PeerError):
        ends.link.forge(ends.link.exit, wire.encode_network(1, bytes(4), bytes(16)))


@pytest.mark.parametrize("use", LaneUse)
def test_the_exit_learns_how_the_client_is_set(use: LaneUse) -> None:
    ends = Ends(use=use)
    for side in (ends.link.client, ends.link.exit):
        side.packet_link.announce(0, 5)  # type: ignore[attr-defined]
    ends.link.quiesce()
    assert ends.link.exit.lane_use is use
    assert ends.link.client.lane_use is use, "not what the exit says"


def test_a_setting_without_a_lane_ends_the_session_and_is_not_taken() -> None:
    ends = Ends(lanes=False)
    with pytest.raises(PeerError):
        ends.link.forge(ends.link.exit, wire.encode_lane(0, 1, LaneUse.UDP))
    assert ends.link.exit.lane_use is LaneUse.AUTO


def test_an_announcement_without_a_lane_ends_the_session() -> None:
    ends = Ends(lanes=False)
    with pytest.raises(PeerError):
        ends.link.forge(ends.link.exit, wire.encode_lane(0, 1))


@pytest.mark.parametrize(
    ("flags", "segment", "header", "size"),
    [
        (0x08, 0, 0, 100),
        (0x80 | TCP4, 10, 40, 100),
        (0, 10, 0, 100),
        (0, 0, 20, 100),
        (NEEDS_CSUM, 1, 0, 100),
        (TCP4, 0, 40, 100),
        (TCP4, 60, 40, 100),
        (TCP4, 10, 100, 100),
        (UDP_GSO, 10, 200, 100),
        (UDP_GSO, 65_535, 0, 100),
    ],
)
def test_malformed_packets_are_counted_and_go_nowhere(
    flags: int, segment: int, header: int, size: int
) -> None:
    ends = Ends()
    ends.link.forge(ends.link.exit, wire.encode_packet(flags, segment, header, bytes(size)))
    assert ends.packets == []
    assert (ends.exit.malformed, ends.exit.received_on_carrier) == (1, 0)
    assert ends.exit.status().dropped["malformed"] == 1


@given(
    st.integers(0, 255), st.integers(0, 65_535), st.integers(0, 65_535), st.binary(min_size=1, max_size=300)
)
def test_any_packet_frame_is_handed_over_whole_or_counted(
    flags: int, segment: int, header: int, data: bytes
) -> None:
    ends = Ends()
    ends.exit.packet_received(flags, segment, header, memoryview(data))
    assert len(ends.packets) + ends.exit.malformed == 1
    for packet, run in ends.packets:
        assert packet == data
        assert run.shape == (flags, segment, header)
        assert (run.first, run.count) == (0, run.of)
        payload = len(data) - header
        assert run.count == (-(-payload // segment) if segment else 1) and run.count >= 1


def test_the_largest_packet_has_room() -> None:
    ends = Ends()
    ends.exit.packet_received(0, 0, 0, memoryview(b"x" * 65_535))
    assert [len(packet) for packet, _ in ends.packets] == [65_535]


def test_only_the_client_says_what_it_cannot_take() -> None:
    ends = Ends()
    with pytest.raises(PeerError):
        ends.link.forge(ends.link.client, wire.encode_taken(1, [LAN]))
