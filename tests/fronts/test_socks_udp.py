"""UDP ASSOCIATE as an application sees it: a control connection and datagrams on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.client.requests import NOWHERE
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.fronts import socks_udp
from cryprq_proxy.fronts.listener import MixedListener
from cryprq_proxy.fronts.socks import encode_datagram, parse_datagram
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_source import Asked, FakeSource, LateSource
from tests.support.fake_streams import FakeStream
from tests.support.raw_client import RawClient
from tests.support.settings import listener_settings
from tests.support.settle import settle, until

TARGET = Destination("192.0.2.1", 53)


def associate(port: int = 0, hint: bytes = b"\x01\0\0\0\0") -> bytes:
    return b"\x05\x01\x00" + b"\x05\x03\x00" + hint + port.to_bytes(2)


def udp_socket(ip: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((ip, 0))
    return sock


class Association:
    """An application that has asked for an association, and the stream that the test holds."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.listener = MixedListener(self.source, listener_settings(Destination("127.0.0.1", 0)))
        self.address = self.listener.start()
        self.sock = udp_socket()
        self.control = RawClient(self.address)
        self.proxy: tuple[str, int]
        self.hint = b"\x01\0\0\0\0"
        """The address in the request, without the port."""

    @property
    def asked(self) -> Asked:
        return self.source.asked[0]

    async def ask(self, port: int = 0) -> None:
        self.control.send(associate(port, self.hint))
        assert await self.control.read(2) == b"\x05\x00"
        await until(lambda: self.source.asked)

    async def open(self, port: int = 0) -> None:
        await self.ask(port)
        self.asked.open()
        reply = await self.control.read(10)
        assert reply[:4] == b"\x05\x00\x00\x01"
        self.proxy = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:])

    def send(self, payload: bytes, sock: socket.socket | None = None) -> None:
        (sock or self.sock).sendto(encode_datagram(TARGET, payload), self.proxy)

    async def arrived(self, *payloads: bytes) -> None:
        """These datagrams have come to the stream, and no others."""
        expected = [(TARGET, payload) for payload in payloads]
        await until(lambda: len(self.asked.stream.datagrams) >= len(expected))
        await settle()
        assert self.asked.stream.datagrams == expected


@pytest.fixture
async def association() -> AsyncIterator[Association]:
    association = Association()
    yield association
    await association.listener.stop()
    association.sock.close()
    association.control.sock.close()


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    with udp_socket("127.0.0.2") as sock:
        yield sock


async def test_datagrams_both_ways(association: Association) -> None:
    await association.open()
    assert (association.asked.protocol, association.asked.destination) == (StreamProtocol.UDP, NOWHERE)
    association.send(b"question")
    await association.arrived(b"question")
    association.asked.stream.handler.datagram_received(TARGET, memoryview(b"answer"))
    data = await asyncio.get_running_loop().sock_recv(association.sock, 100)
    assert parse_datagram(data) == (TARGET, b"answer")


async def test_another_host_is_no_part_of_it(association: Association, stranger: socket.socket) -> None:
    await association.open()
    association.send(b"injected", stranger)
    association.send(b"mine")
    await association.arrived(b"mine")
    association.send(b"injected", stranger)
    association.send(b"mine too")
    await association.arrived(b"mine", b"mine too")


async def test_the_first_port_is_the_only_one(association: Association) -> None:
    await association.open()
    association.send(b"mine")
    await association.arrived(b"mine")
    with udp_socket() as other:
        association.send(b"from another port", other)
        association.send(b"mine too")
        await association.arrived(b"mine", b"mine too")


async def test_a_port_that_the_request_names_is_a_hint(association: Association) -> None:
    """Some name the target's port, others lose theirs in a NAT."""
    await association.open(TARGET.port)
    association.send(b"from another port")
    await association.arrived(b"from another port")
    association.asked.stream.handler.datagram_received(TARGET, memoryview(b"answer"))
    data = await asyncio.get_running_loop().sock_recv(association.sock, 100)
    assert parse_datagram(data) == (TARGET, b"answer")


async def test_the_port_that_the_request_names_goes_before_the_first_one(association: Association) -> None:
    """So nobody who is faster takes an association away from an application that told the truth."""
    await association.open(association.sock.getsockname()[1])
    with udp_socket() as other:
        association.send(b"first", other)
        association.send(b"mine")
        association.send(b"late", other)
        association.send(b"mine too")
        await association.arrived(b"first", b"mine", b"mine too")


@pytest.mark.parametrize(
    "address",
    [b"\x03\x010", b"\x03\x09site.test", b"\x03\x00", b"\x03\x03a\xff/", b"\x01\xc0\x00\x02\x01"],
    ids=["PySocks", "a name", "empty", "no name", "the target"],
)
async def test_an_address_in_the_request_means_nothing(association: Association, address: bytes) -> None:
    association.hint = address
    await association.open(association.sock.getsockname()[1])
    association.send(b"question")
    await association.arrived(b"question")


async def test_only_a_datagram_that_makes_sense_settles_the_port(association: Association) -> None:
    await association.open()
    with udp_socket() as other:
        other.sendto(b"no header", association.proxy)
    association.send(b"mine")
    await association.arrived(b"mine")


async def test_nothing_is_sent_to_an_application_that_is_not_known_yet(association: Association) -> None:
    await association.open()
    association.asked.stream.handler.datagram_received(TARGET, memoryview(b"unsolicited"))
    association.send(b"mine")
    await association.arrived(b"mine")
    with pytest.raises(BlockingIOError):
        association.sock.recv(100)


async def test_what_makes_no_sense_is_dropped(association: Association) -> None:
    await association.open()
    good = encode_datagram(TARGET, b"good")
    for bad in (b"", b"\0\0\0", b"\0\0\1" + good[3:], b"\0\0\0\x09" + good[4:], good[:6]):
        association.sock.sendto(bad, association.proxy)
    association.send(b"good")
    await association.arrived(b"good")


async def test_one_wake_up_reads_a_bounded_number_of_datagrams(
    association: Association, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socks_udp, "READS", 2)
    await association.open()
    for number in range(5):
        association.send(bytes((number,)))
    steps = []
    while len(association.asked.stream.datagrams) < 5:
        before = len(association.asked.stream.datagrams)
        await asyncio.sleep(0)
        steps.append(len(association.asked.stream.datagrams) - before)
    assert max(steps) == 2


async def test_the_association_lives_as_long_as_its_connection(association: Association) -> None:
    await association.open()
    association.control.send(b"what is said here means nothing")
    association.send(b"one")
    await association.arrived(b"one")
    association.control.sock.close()
    await until(lambda: association.asked.stream.resets)
    assert association.asked.stream.resets == [StreamReason.CANCELLED]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(association.proxy)


async def test_an_application_that_leaves_while_it_waits(association: Association) -> None:
    await association.ask()
    association.control.sock.close()
    await until(lambda: association.asked.stream.resets)


async def test_a_stream_that_begins_after_the_application_has_left(association: Association) -> None:
    """The request had to wait for the link, and nothing else would ever end its stream."""
    source = LateSource()
    association.listener.source = source
    association.control.send(associate())
    await until(lambda: source.begin)
    association.control.sock.close()
    await until(lambda: association.listener._udp == set())
    stream = FakeStream()
    for begin in source.begin:
        begin(stream)
    assert stream.resets == [StreamReason.CANCELLED]


async def test_a_refusal_is_a_reply_and_the_end(association: Association) -> None:
    await association.ask()
    association.asked.refuse(StreamReason.LINK_DOWN)
    assert (await association.control.read(100))[:2] == b"\x05\x03"


@pytest.mark.parametrize("end", ["reset", "eof"])
async def test_the_end_of_the_stream_ends_the_connection(association: Association, end: str) -> None:
    await association.open()
    handler = association.asked.stream.handler
    if end == "reset":
        handler.reset(StreamReason.SESSION_LOST)
    else:
        handler.eof_received()
    assert await association.control.read(1) == b""


@pytest.mark.parametrize("moment", ["asked", "open"])
async def test_a_connection_that_breaks_ends_the_association_without_a_fault(
    association: Association, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken connection has no addresses. The question for them failed in the callback, once per turn of the loop."""
    await association.ask()
    if moment == "open":
        association.asked.open()
        reply = await association.control.read(10)
        association.proxy = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:])
        association.send(b"first")
    set_reset_on_close(association.control.sock)
    association.control.sock.close()
    # Before the loop can tell of the reset.
    [front] = association.listener._udp
    if moment == "asked":
        association.asked.open()
    else:
        front._on_readable()
    await until(lambda: not association.listener._udp)
    assert not caplog.records


async def test_a_fault_ends_the_association(
    association: Association, caplog: pytest.LogCaptureFixture
) -> None:
    await association.open()
    association.asked.stream.send_datagram = fault  # type: ignore[method-assign,assignment]
    association.send(b"question")
    assert await association.control.read(1) == b""
    [record] = caplog.records
    assert record.getMessage() == "a fault in this program ends a UDP association"


def fault(*_: object) -> None:
    raise ZeroDivisionError
