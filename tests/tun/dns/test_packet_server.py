"""Questions in packets that come out of the device, and the packets of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from struct import pack

import dns.message
import dns.rcode
import pytest

from cryprq_proxy.lane.slices import HEADROOM, Shape
from tests.support.dns_fakes import FramedServer, address, query
from tests.support.settings import dns_settings
from tests.support.udp_packets import HERE4, HERE6, THERE4, THERE6, tcp, udp
from tun.device.device import START, PacketDevice
from tun.device.offload import COMPLETE
from tun.device.packets import UDP, Packet, checksum, parse, pseudo_sum
from tun.dns import packet_server
from tun.dns.forwarder import Forwarder
from tun.dns.packet_server import MAX_OPEN, PacketDnsServer, answer_to
from tun.dns.setup import build

OPTIONS = b"\x01\x01\x01\x01"


class Written(PacketDevice):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        assert start >= HEADROOM and shape == COMPLETE
        buffer[start - HEADROOM : start] = bytes(HEADROOM)
        self.packets.append(bytes(buffer[start:end]))
        return True


class Path:
    """The packet path behind a device, with a forwarder whose server answers once `answering` is set."""

    def __init__(self) -> None:
        self.server = FramedServer(lambda asked: address(asked) if self.answers else None)
        self.answers = True
        self.device = Written()
        self.passed: list[bytes] = []
        self.forwarder: Forwarder = build(
            dns_settings(block=("ads.example",)),
            resolver=self.server.open,
            connect=lambda _: self.server.open(),
        )
        self.questions = PacketDnsServer(self.forwarder, self.device, self._pass)

    def _pass(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        assert start == START and shape == COMPLETE
        self.passed.append(bytes(buffer[start:end]))

    def packet(self, packet: bytes) -> None:
        buffer = memoryview(bytearray(START + len(packet) + 64))
        buffer[START : START + len(packet)] = packet
        self.questions.packet(buffer, START, START + len(packet), COMPLETE)
        # The buffer is the next packet's from now on.
        buffer[:] = b"\xff" * len(buffer)

    async def answered(self, count: int = 1) -> list[bytes]:
        while len(self.device.packets) < count:
            await asyncio.sleep(0)
        return self.device.packets


async def on_the_path(test: Callable[[Path], Awaitable[None]]) -> None:
    path = Path()
    try:
        async with asyncio.timeout(10):
            await test(path)
    finally:
        path.forwarder.close()


def with_options(packet: bytes) -> bytes:
    """The IPv4 packet, with options in its header."""
    head = bytearray(packet[:20] + OPTIONS)
    head[0] = 0x46
    head[2:4] = (len(packet) + 4).to_bytes(2)
    return bytes(head) + packet[20:]


def with_extension(packet: bytes) -> bytes:
    """The IPv6 packet, with destination options that say nothing."""
    head = bytearray(packet[:40])
    head[4:6] = (len(packet) - 40 + 8).to_bytes(2)
    head[6] = 60
    return bytes(head) + bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + packet[40:]


def read(packet: bytes) -> tuple[Packet, dns.message.Message]:
    """What a kernel would take: lengths and sums are right."""
    found = parse(packet, 0, len(packet))
    assert isinstance(found, Packet)
    if found.version == 4:
        assert checksum(packet[:20]) == 0
    datagram = packet[found.transport :]
    assert int.from_bytes(datagram[4:6]) == len(datagram)
    assert datagram[6:8] != b"\0\0"
    assert checksum(datagram, pseudo_sum(found.source, found.destination, UDP, len(datagram))) == 0
    return found, dns.message.from_wire(datagram[8:])


@pytest.mark.parametrize(
    ("packet", "here", "there"),
    [
        (udp(query(), port=53), HERE4, THERE4),
        (udp(query(), port=53, version=6), HERE6, THERE6),
        (with_options(udp(query(), port=53)), HERE4, THERE4),
        (with_extension(udp(query(), port=53, version=6)), HERE6, THERE6),
        # The kernel may leave the sum to the device.
        (udp(query(), port=53, summed=False), HERE4, THERE4),
    ],
    ids=["4", "6", "4 with options", "6 with an extension", "4 without a sum"],
)
async def test_a_question_to_any_server_is_answered_in_its_name(
    packet: bytes, here: bytes, there: bytes
) -> None:
    async def test(path: Path) -> None:
        path.packet(packet)
        (answer,) = await path.answered()
        found, message = read(answer)
        assert (found.source, found.destination) == (there, here)
        assert (found.source_port, found.destination_port) == (53, 5000)
        assert str(message.answer[0][0]) == "192.0.2.1"
        assert not path.passed and len(path.server.questions) == 1

    await on_the_path(test)


async def test_what_is_known_is_answered_at_once() -> None:
    async def test(path: Path) -> None:
        path.packet(udp(query("ads.example."), port=53))
        assert read(path.device.packets[0])[1].rcode() == dns.rcode.NXDOMAIN

    await on_the_path(test)


@pytest.mark.parametrize(
    "packet",
    [
        udp(query(), port=54),
        udp(query(), port=53, version=6)[:-1],
        udp(query(), port=54, version=6),
        udp(query() + bytes(3), port=53, flags=0x20),  # a first fragment
        udp(query(), port=53, protocol=136),
        tcp(query()),
        with_options(tcp(query())),
        with_extension(udp(query(), port=54, version=6)),
        udp(query(), port=53).replace(THERE4, bytes((224, 0, 0, 251))),
        udp(query(), port=53).replace(HERE4, bytes(4)),
        b"\x45" + bytes(10),
        b"\x60" + bytes(39),
        b"\x00" * 40,
    ],
    ids=lambda packet: f"{packet[:1].hex()}-{len(packet)}",
)
async def test_everything_else_passes_untouched(packet: bytes) -> None:
    async def test(path: Path) -> None:
        path.packet(packet)
        assert path.passed == [packet] and not path.device.packets
        assert path.forwarder.counters.questions == 0

    await on_the_path(test)


@pytest.mark.parametrize("length", [7, 0, 0xFFFF])
async def test_a_datagram_whose_length_is_wrong_passes(length: int) -> None:
    async def test(path: Path) -> None:
        packet = bytearray(udp(query(), port=53))
        packet[24:26] = length.to_bytes(2)
        path.packet(bytes(packet))
        assert path.passed == [bytes(packet)]

    await on_the_path(test)


async def test_what_is_no_question_gets_no_answer_and_does_not_pass() -> None:
    """It was sent to port 53: nothing but questions for names leaves there."""

    async def test(path: Path) -> None:
        path.packet(udp(b"x", port=53))
        assert not path.passed and not path.device.packets
        assert path.forwarder.counters.malformed == 1

    await on_the_path(test)


async def test_questions_in_packets_are_bounded() -> None:
    async def test(path: Path) -> None:
        path.answers = False
        for number in range(MAX_OPEN):
            path.packet(udp(query(f"n{number}.example."), port=53))
        assert not path.device.packets and len(path.questions._open) == MAX_OPEN
        path.packet(udp(query("more.example."), port=53))
        assert read(path.device.packets[0])[1].rcode() == dns.rcode.SERVFAIL
        assert path.forwarder.counters.overload == 1 and len(path.questions._open) == MAX_OPEN

    await on_the_path(test)


async def test_an_answer_for_a_device_that_is_closed_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def test(path: Path) -> None:
        path.packet(udp(query(), port=53))
        path.device.closed = True
        while path.questions._open:
            await asyncio.sleep(0)
        assert not path.device.packets and not caplog.messages

    await on_the_path(test)


def test_a_sum_of_nothing_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_server, "checksum", lambda data, initial=0: 0)
    found = parse(packet := udp(query(), port=53), 0, len(packet))
    assert isinstance(found, Packet)
    assert answer_to(found, b"answer")[26:28] == pack(">H", 0xFFFF)
