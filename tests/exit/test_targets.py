"""At the exit: streams to the host's own DNS resolver, which the peer cannot choose and no policy forbids."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import dns.message
import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.exit import targets as opening
from cryprq_proxy.exit.datagram_resolver import MAX_QUESTION, MAX_QUESTIONS, MAX_UNSENT, DatagramResolver
from cryprq_proxy.exit.descriptor_shares import DescriptorShares
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.targets import Targets
from cryprq_proxy.outbound.address_race import Cancellable, Done
from cryprq_proxy.outbound.resolving.host_configuration import ConfigurationReader, HostFiles
from cryprq_proxy.outbound.resolving.name_server import NameServer
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.dns_servers import Datagrams, Server, zone
from tests.support.links import App, Link
from tests.support.settle import settle

NOWHERE = Destination("0.0.0.0", 0)


# --- real connections ---


class ResolverLink(Link):
    """A pair of sessions whose exit connects every stream to its host's resolver."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        super().__init__()

    def name(self, *servers: str) -> None:
        """Let the host's files name these servers."""
        reader = self.targets.resolver.reader
        reader.latest = reader.latest._replace(servers=servers)

    def _accept(self, stream: Stream) -> None:
        claim = DescriptorShares(1_000).claim(PeerId(bytes(32)), 1)
        assert claim is not None
        self.targets.open_resolver(stream, self.targets.loop, claim)

    def ask(self) -> App:
        app = self.open(protocol=StreamProtocol.RESOLVER, destination=NOWHERE)
        self.carrier.settle()
        return app

    async def until(self, happened: Callable[[], object]) -> None:
        while not happened():
            await asyncio.sleep(0.001)
            self.carrier.settle()


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[ResolverLink]:
    missing = HostFiles(*[tmp_path / "missing"] * 3)
    resolver = SystemResolver(reader=ConfigurationReader(missing))
    link = ResolverLink(Targets(EgressPolicy(only=(":1",)), resolver, Link(connected=False).slots, 5.0))
    yield link
    for relay in list(link.targets.relays):
        relay.reset(StreamReason.CANCELLED)
    resolver.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "servers", [["127.0.0.1"], ["127.0.0.9", "127.0.0.1"], ["fe80::1%nowhere0", "127.0.0.1"]]
)
async def test_bytes_go_to_the_first_server_that_takes_them(
    link: ResolverLink, port: int, servers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DNS_PORT", port)
    link.name(*servers)
    app = link.ask()
    await link.until(lambda: ("opened",) in app.events)
    app.say(b"\0\5query", finish=True)
    await link.until(lambda: ("eof",) in app.events)
    assert bytes(app.received) == b"\0\5QUERY"


async def test_what_is_said_before_the_connection_stands_is_not_lost(
    link: ResolverLink, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DNS_PORT", port)
    link.name("127.0.0.1")
    connector = Connector(monkeypatch)
    app = link.ask()
    app.say(b"early", finish=True)
    link.carrier.settle()
    await settle()
    connector.answer(socket.create_connection(("127.0.0.1", port)))
    await link.until(lambda: ("eof",) in app.events)
    assert bytes(app.received) == b"EARLY"


async def test_a_server_that_refuses_everything_is_a_refusal(
    link: ResolverLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bound and not listening, so that nobody else gets the port meanwhile.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(opening, "DNS_PORT", closed.getsockname()[1])
        link.name("127.0.0.1", "127.0.0.1")
        app = link.ask()
        await link.until(lambda: app.ended)
    assert app.events == [("refused", StreamReason.CONNECTION_REFUSED)]


def framed(name: str, number: int, kind: str = "A") -> bytes:
    query = dns.message.make_query(name, kind, id=number, use_edns=0, payload=1232)
    wire = query.to_wire()
    return len(wire).to_bytes(2) + wire


def messages(data: bytearray) -> list[dns.message.Message]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2])
        found.append(dns.message.from_wire(bytes(data[at + 2 : at + 2 + size])))
        at += 2 + size
    return found


async def test_a_server_that_answers_over_udp_alone_serves(
    link: ResolverLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More questions at once than may be on their way, and one that nobody answers."""
    known = {(f"{number}.example", "A"): [f"192.0.2.{number % 250}"] for number in range(100)}
    answers = zone(known)

    def some(query: dns.message.Message) -> list[bytes]:
        return [] if "silent" in str(query.question[0].name) else answers(query)

    server = Server(some)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Datagrams(server), local_addr=("127.0.0.1", 0)
    )
    with contextlib.closing(transport):
        monkeypatch.setattr(opening, "DNS_PORT", transport.get_extra_info("sockname")[1])
        link.name("127.0.0.1")
        app = link.ask()
        await link.until(lambda: ("opened",) in app.events)
        most: list[int] = []
        go_on = DatagramResolver._go_on

        def counted(resolver: DatagramResolver) -> None:
            go_on(resolver)
            most.append(len(resolver._asking))

        monkeypatch.setattr(DatagramResolver, "_go_on", counted)
        app.say(framed("silent.example", 999))
        app.say(b"".join(framed(f"{number}.example", number) for number in range(100)))
        await link.until(lambda: len(messages(app.received)) == 100)
    found = messages(app.received)
    assert {message.id: message.answer[0][0].to_text() for message in found} == {
        number: f"192.0.2.{number % 250}" for number in range(100)
    }
    assert len(set(server.ports)) > MAX_QUESTIONS, "a port of its own for each question"
    assert most and max(most) == MAX_QUESTIONS


class DeafStream:
    """Takes nothing; `reason` is that of its end."""

    def __init__(self) -> None:
        self.reason: StreamReason | None = None
        self.taken = 0

    def request_room(self) -> int:
        return 0

    def consumed(self, size: int) -> None:
        self.taken += size

    def reset(self, reason: StreamReason) -> None:
        self.reason = reason


class Echoes(NamedTuple):
    """A server that answers at once, at length."""

    async def ask_over_udp(self, question: bytes, *_: object) -> bytes:
        return question + bytes(4_000)


def asked_over(stream: DeafStream) -> tuple[DatagramResolver, DescriptorShares]:
    shares = DescriptorShares(1_000)
    claim = shares.claim(PeerId(bytes(32)), 1)
    assert claim is not None
    return DatagramResolver(cast(Stream, stream), [cast(NameServer, Echoes())], claim), shares


async def test_answers_that_nobody_takes_are_bounded() -> None:
    stream = DeafStream()
    resolver, shares = asked_over(stream)
    for number in range(1_000):
        resolver.data_received(memoryview(framed("a.example", number)))
        await settle()
    assert MAX_UNSENT <= len(resolver._unsent) <= MAX_UNSENT + MAX_QUESTIONS * 5_000
    assert 0 < stream.taken < 1_000 * len(framed("a.example", 0)), "without credit the peer says no more"
    assert shares.free == 999
    resolver.reset(StreamReason.CANCELLED)
    assert shares.free == 1_000


async def test_a_question_that_is_too_long_ends_the_stream() -> None:
    stream = DeafStream()
    resolver, shares = asked_over(stream)
    resolver.data_received(memoryview((MAX_QUESTION + 1).to_bytes(2)))
    assert stream.reason is StreamReason.GENERAL and shares.free == 1_000


# --- one after the other ---


class Connector:
    """Stands for connect_literal: answers at once what `at_once` has for an address, the others when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[tuple[str, int, float]] = []
        self.cancelled: list[str] = []
        self.at_once: dict[str, StreamReason] = {}
        monkeypatch.setattr(opening, "connect_literal", self.connect)
        monkeypatch.setattr(opening, "answering", self.answering)

    def connect(self, loop: object, ip: str, port: int, done: Done, timeout: float) -> Cancellable:
        self.tried.append((ip, port, timeout))
        attempt = Attempt(self, ip)
        if ip in self.at_once:
            done(None, self.at_once[ip])
        else:
            self.done = done
        return attempt

    async def answering(self, servers: Sequence[NameServer]) -> list[NameServer]:
        return []

    def answer(self, outcome: socket.socket | StreamReason) -> None:
        if isinstance(outcome, StreamReason):
            self.done(None, outcome)
        else:
            outcome.setblocking(False)
            self.done(outcome, None)


class Attempt:
    def __init__(self, connector: Connector, ip: str) -> None:
        self.connector, self.ip = connector, ip

    def cancel(self) -> None:
        self.connector.cancelled.append(self.ip)


@pytest.mark.parametrize("at_once", [(), ("192.0.2.1",), ("192.0.2.2",), ("192.0.2.1", "192.0.2.2")])
async def test_servers_are_tried_in_order(
    link: ResolverLink, at_once: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector(monkeypatch)
    connector.at_once = dict.fromkeys(at_once, StreamReason.NETWORK_UNREACHABLE)
    link.name("192.0.2.1", "192.0.2.2", "192.0.2.3")
    app = link.ask()
    await settle()
    for _ in range(2 - len(at_once)):
        connector.answer(StreamReason.TIMED_OUT)
    assert connector.tried == [(f"192.0.2.{n}", 53, opening.RESOLVER_SECONDS / 3) for n in (1, 2, 3)]
    assert app.events == []
    connector.answer(StreamReason.CONNECTION_REFUSED)
    await settle()
    link.carrier.settle()
    assert app.events == [("refused", StreamReason.CONNECTION_REFUSED)]


@pytest.mark.parametrize("at_once", [(), ("192.0.2.1",)])
async def test_who_no_longer_waits_stops_the_server_that_is_being_tried(
    link: ResolverLink, at_once: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector(monkeypatch)
    connector.at_once = dict.fromkeys(at_once, StreamReason.NETWORK_UNREACHABLE)
    link.name("192.0.2.1", "192.0.2.2")
    app = link.ask()
    await settle()
    if not at_once:
        connector.answer(StreamReason.TIMED_OUT)
    assert app.stream is not None
    app.stream.reset(StreamReason.CANCELLED)
    link.carrier.settle()
    assert connector.cancelled == ["192.0.2.2"]
    assert not link.targets.relays


async def test_who_leaves_before_the_servers_are_known_connects_to_none(
    link: ResolverLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector(monkeypatch)
    app = link.ask()
    assert app.stream is not None
    app.stream.reset(StreamReason.CANCELLED)
    link.carrier.settle()
    await settle()
    assert connector.tried == []
