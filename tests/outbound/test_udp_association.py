"""UDP associations over real sockets on loopback; the stream and the resolver are the test's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.outbound import udp_association
from cryprq_proxy.outbound.udp_association import MAX_HOSTS, READS, UdpAssociation
from cryprq_proxy.outbound.waiting_datagrams import (
    DATAGRAM_OVERHEAD,
    MAX_HELD,
    MAX_HELD_TOGETHER,
    MAX_WAITING,
    NAME_OVERHEAD,
    HeldBytes,
)
from cryprq_proxy.session.turns import DATAGRAM_WORK, END_WORK, TURN_WORK, TurnBudget
from tests.support.fake_streams import FakeStream
from tests.support.settle import settle, until


class Names:
    """A resolver that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.memory: dict[str, Sequence[str]] = {}
        self.waiting = 0
        self.answers: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()

    async def resolve(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        self.waiting += 1
        try:
            return await asyncio.shield(self.answers)
        finally:
            self.waiting -= 1

    def remembered(self, name: str) -> Sequence[str] | None:
        return self.memory.get(name)


class Policy:
    """`closed` are addresses and names that are forbidden."""

    def __init__(self) -> None:
        self.closed: set[str] = set()

    def check_name(self, name: str, port: int) -> bool:
        return name not in self.closed

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        return ip not in self.closed


class Host:
    """A UDP socket of a host on loopback."""

    def __init__(self, ip: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((ip, 0))
        self.address = Destination(*self.sock.getsockname())

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        data, sender = await asyncio.get_running_loop().sock_recvfrom(self.sock, 2_000)
        return data, sender


class Place:
    def __init__(self) -> None:
        self.stream = FakeStream()
        self.policy = Policy()
        self.names = Names()
        self.held = HeldBytes()
        self.turn = TurnBudget(asyncio.get_running_loop().call_soon)
        self.association = self.stream.handler = self.another(self.stream)
        self.stream.accept()
        self.hosts: list[Host] = []

    def another(self, stream: FakeStream) -> UdpAssociation:
        """An association of the same peer."""
        return UdpAssociation(
            asyncio.get_running_loop(),
            stream.send_datagram,
            stream.reset,
            self.policy,
            self.names,
            self.held,
            self.turn,
        )

    def host(self, ip: str = "127.0.0.1") -> Host:
        self.hosts.append(Host(ip))
        return self.hosts[-1]

    def send(self, host: str, port: int, payload: bytes = b"hello") -> None:
        self.association.datagram_received(Destination(host, port), payload)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    yield place
    place.association.reset(StreamReason.CANCELLED)
    for host in place.hosts:
        host.sock.close()
    if not place.names.answers.done():
        place.names.answers.cancel()
    await settle()


async def test_a_question_and_its_answer(place: Place) -> None:
    host = place.host()
    assert place.stream.accepted and place.stream.handler is place.association
    place.send(*host.address)
    data, sender = await host.receive()
    assert data == b"hello"
    host.sock.sendto(b"answer", sender)
    await until(lambda: place.stream.datagrams)
    assert place.stream.datagrams == [(host.address, b"answer")]


async def test_a_bounded_number_of_datagrams_is_read_at_once(place: Place) -> None:
    host = place.host()
    place.send(*host.address)
    _, sender = await host.receive()
    for _ in range(READS + 1):
        host.sock.sendto(b"answer", sender)
    (sock,) = place.association._sockets.values()
    place.association._on_readable(sock)
    assert len(place.stream.datagrams) == READS
    await until(lambda: len(place.stream.datagrams) == READS + 1)


async def test_one_outer_port_for_all_targets(place: Place) -> None:
    first, second = place.host(), place.host("127.0.0.2")
    place.send(*first.address)
    place.send(*second.address)
    assert (await first.receive())[1][1] == (await second.receive())[1][1]


async def test_a_datagram_to_a_name_keeps_its_bytes_while_the_name_is_looked_up(place: Place) -> None:
    """The lane gives a view of a buffer that all sessions of the process share."""
    host = place.host()
    shared = bytearray(b"my own question")
    place.association.datagram_received(Destination("a.example", host.address.port), memoryview(shared))
    await until(lambda: place.names.waiting)
    shared[:] = b"another's bytes"
    place.names.answers.set_result(("127.0.0.1",))
    assert (await host.receive())[0] == b"my own question"


async def test_hosts_that_were_not_sent_to_are_not_heard(place: Place) -> None:
    known, stranger = place.host(), place.host("127.0.0.2")
    place.send(*known.address)
    _, (_, port) = await known.receive()
    stranger.sock.sendto(b"injected", ("127.0.0.1", port))
    other_port = place.host()
    other_port.sock.sendto(b"from another port", ("127.0.0.1", port))
    await until(lambda: place.stream.datagrams)
    await settle()
    assert place.stream.datagrams == [(other_port.address, b"from another port")]


async def test_the_host_sent_to_least_recently_is_forgotten_at_the_bound(place: Place) -> None:
    first, second = place.host("127.0.0.1"), place.host("127.0.0.2")
    place.send(*first.address)
    place.send(*second.address)
    _, (_, port) = await first.receive()
    place.send(*first.address)
    for number in range(MAX_HOSTS - 1):
        place.send(f"127.1.{number >> 8}.{number & 255}", 9)
    second.sock.sendto(b"forgotten", ("127.0.0.1", port))
    first.sock.sendto(b"remembered", ("127.0.0.1", port))
    await until(lambda: place.stream.datagrams)
    await settle()
    assert place.stream.datagrams == [(first.address, b"remembered")]


async def test_the_policy_judges_each_datagram(place: Place) -> None:
    closed, opened = place.host("127.0.0.2"), place.host()
    place.policy.closed = {"127.0.0.2", "closed.example"}
    place.send(*closed.address)
    place.send("closed.example", closed.address.port)
    place.send(opened.address.host, 0)
    place.names.answers.set_result(["127.0.0.2", "127.0.0.1"])
    place.send("both.example", opened.address.port)
    assert (await opened.receive())[0] == b"hello"
    assert place.names.asked == ["both.example"]
    with pytest.raises(BlockingIOError):
        closed.sock.recv(100)


async def test_the_bytes_that_wait_for_a_name_are_bounded(place: Place) -> None:
    host = place.host()
    third = bytes(MAX_HELD // 3)
    for _ in range(4):
        place.send("slow.example", host.address.port, third)
    place.send("slow.example", host.address.port, b"1")
    await settle()
    assert place.names.asked == ["slow.example"], "one asks for all"
    place.names.answers.set_result(["127.0.0.1"])
    received = [(await host.receive())[0] for _ in range(4)]
    assert [len(data) > 1 for data in received] == [True, True, True, False], (
        "the fourth of the large ones is dropped"
    )
    await until(lambda: place.held.together == 0)
    place.send("slow.example", host.address.port, third)
    await host.receive()


async def test_the_bytes_that_wait_in_all_associations_are_bounded(place: Place) -> None:
    """Each of thousands could hold 64 KiB."""
    one = MAX_HELD + DATAGRAM_OVERHEAD + NAME_OVERHEAD
    fitting = MAX_HELD_TOGETHER // one
    associations = [place.another(FakeStream()) for _ in range(fitting + 1)]
    for association in associations:
        association.datagram_received(Destination("slow.example", 9), bytes(MAX_HELD))
    await settle()
    assert len(place.names.asked) == fitting, "that of the last association is dropped"
    associations[0].reset(StreamReason.CANCELLED)
    assert place.held.together == (fitting - 1) * one
    associations[-1].datagram_received(Destination("slow.example", 9), bytes(MAX_HELD))
    await settle()
    assert len(place.names.asked) == fitting + 1
    for association in associations:
        association.reset(StreamReason.CANCELLED)
    assert place.held.together == 0


async def test_empty_datagrams_that_wait_are_bounded_for_a_peer(place: Place) -> None:
    """They were free: 211,000 of them took 550 MiB."""
    associations = [place.another(FakeStream()) for _ in range(1 + MAX_HELD_TOGETHER // NAME_OVERHEAD)]
    for association in associations:
        association.datagram_received(Destination("slow.example", 9), b"")
    assert place.held.together <= MAX_HELD_TOGETHER
    await until(lambda: place.names.asked)
    assert len(place.names.asked) == MAX_HELD_TOGETHER // (NAME_OVERHEAD + DATAGRAM_OVERHEAD)
    for association in associations:
        association.reset(StreamReason.CANCELLED)
    await until(lambda: place.held.together == 0 and not place.names.waiting)


async def test_datagrams_that_wait_for_a_name_are_bounded(place: Place) -> None:
    host = place.host()
    for _ in range(MAX_WAITING + 10):
        place.send("slow.example", host.address.port)
    await settle()
    assert place.held.together == NAME_OVERHEAD + MAX_WAITING * (DATAGRAM_OVERHEAD + 5)
    place.names.answers.set_result(["127.0.0.1"])
    for _ in range(MAX_WAITING):
        await host.receive()
    await settle()
    with pytest.raises(BlockingIOError):
        host.sock.recv(100)
    place.send("slow.example", host.address.port)
    await host.receive()


async def test_a_name_that_is_not_found_is_a_lost_datagram(place: Place) -> None:
    place.names.answers.set_exception(StreamRefused(StreamReason.NAME_NOT_FOUND))
    for _ in range(MAX_WAITING + 1):
        place.send("nowhere.example", 9)
        await settle()
    assert len(place.names.asked) == MAX_WAITING + 1, "it counts no longer as one that waits"
    assert place.held.together == 0


async def test_a_remembered_name_takes_no_task(place: Place) -> None:
    host = place.host()
    place.names.memory = {"known.example": ["::1", "127.0.0.1"], "none.example": []}
    place.send("none.example", host.address.port, b"lost")
    place.send("known.example", host.address.port)
    assert host.sock.recv(100) == b"hello", "it was sent at once"
    assert not place.names.asked and place.held.together == 0


async def test_a_datagram_does_not_overtake_those_that_wait_for_the_same_name(place: Place) -> None:
    host = place.host()
    place.send("slow.example", host.address.port, b"first")
    await settle()
    place.names.memory = {"slow.example": ["127.0.0.1"]}
    place.send("slow.example", host.address.port, b"second")
    place.names.answers.set_result(["127.0.0.1"])
    assert [(await host.receive())[0] for _ in range(2)] == [b"first", b"second"]


async def test_datagrams_whose_name_is_found_are_sent_in_the_turns_of_their_peer(place: Place) -> None:
    callbacks: list[Callable[[], None]] = []
    place.turn = TurnBudget(callbacks.append)
    associations = [place.another(FakeStream()) for _ in range(4)]
    host = place.host()
    for association in associations:
        for _ in range(MAX_WAITING):
            association.datagram_received(Destination("slow.example", host.address.port), b"")
    place.names.answers.set_result(["127.0.0.1"])
    await until(lambda: callbacks)
    await settle()
    in_a_turn, before = -(-TURN_WORK // DATAGRAM_WORK), len(associations) * MAX_WAITING
    while place.held.together:
        left = sum(association._waiting._count for association in associations)
        assert 0 < before - left <= in_a_turn
        before = left
        callbacks.pop()()
    assert place.names.waiting == 0
    for association in associations:
        association.reset(StreamReason.CANCELLED)


async def test_associations_that_wait_for_names_end_in_the_turns_of_their_peer(place: Place) -> None:
    """Those of one peer ended in one turn with 96,000 tasks, which took 160 ms."""
    callbacks: list[Callable[[], None]] = []
    place.turn = TurnBudget(callbacks.append)
    associations = [place.another(FakeStream()) for _ in range(5)]
    for association in associations:
        for number in range(MAX_WAITING):
            association.datagram_received(Destination(f"slow{number}.example", 9), b"")
    await until(lambda: place.names.waiting)
    left = place.names.waiting
    for association in associations:
        association.reset(StreamReason.CANCELLED)
    in_a_turn = -(-TURN_WORK // END_WORK)
    turns = 0
    while place.held.together:
        await settle()
        left, before = place.names.waiting, left
        assert 0 < before - left <= in_a_turn
        callbacks.pop()()
        turns += 1
    await settle()
    assert place.names.waiting == 0 and turns >= len(associations) * MAX_WAITING // in_a_turn - 1


async def test_names_of_an_association_that_ends_are_asked_for_no_longer(place: Place) -> None:
    for number in range(10):
        place.send(f"slow{number}.example", 9)
    await settle()
    assert place.names.waiting == 10
    place.association.reset(StreamReason.CANCELLED)
    await settle()
    assert place.names.waiting == 0


async def test_a_name_that_is_found_too_late_sends_nothing(place: Place) -> None:
    host = place.host()
    place.send("slow.example", host.address.port)
    await settle()
    place.association.reset(StreamReason.CANCELLED)
    place.names.answers.set_result(["127.0.0.1"])
    await settle()
    with pytest.raises(BlockingIOError):
        host.sock.recv(100)


async def test_one_wake_up_reads_a_bounded_number_of_datagrams(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_association, "READS", 2)
    host = place.host()
    place.send(*host.address)
    _, sender = await host.receive()
    for number in range(5):
        host.sock.sendto(bytes((number,)), sender)
    seen = []
    while len(place.stream.datagrams) < 5:
        before = len(place.stream.datagrams)
        await asyncio.sleep(0)
        seen.append(len(place.stream.datagrams) - before)
    assert max(seen) == 2


async def test_a_port_that_nobody_listens_on_ends_nothing(place: Place) -> None:
    closed = Host()
    closed.sock.close()
    host = place.host()
    place.send(*closed.address)
    await settle()
    place.send(*host.address)
    _, sender = await host.receive()
    host.sock.sendto(b"answer", sender)
    await until(lambda: place.stream.datagrams)


@pytest.mark.parametrize("end", ["eof", "reset"])
async def test_the_end_closes_the_sockets(place: Place, end: str) -> None:
    host = place.host()
    place.send(*host.address)
    _, sender = await host.receive()
    if end == "eof":
        place.association.eof_received()
        assert place.stream.resets == [StreamReason.CANCELLED]
    else:
        place.association.reset(StreamReason.SESSION_LOST)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("0.0.0.0", sender[1]))


async def test_a_fault_while_reading_ends_the_association_and_is_logged_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop called again and again, with a log line for each call."""
    host = place.host()
    place.send(*host.address)
    _, sender = await host.receive()

    def fault(source: Destination, payload: bytes) -> None:
        raise ZeroDivisionError

    place.association._answered = fault
    host.sock.sendto(b"answer", sender)
    await until(lambda: place.association._closed)
    await settle()
    assert [record.exc_info is not None for record in caplog.records] == [True]
