"""At the exit: streams to the host's own DNS resolver, which the peer cannot choose and no policy forbids."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.exit import targets as opening
from cryprq_proxy.exit.descriptor_shares import DescriptorShares
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.targets import Targets
from cryprq_proxy.outbound.address_race import Cancellable, Done
from cryprq_proxy.outbound.resolving.host_configuration import ConfigurationReader, HostFiles
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
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


# --- one after the other ---


class Connector:
    """Stands for connect_literal: answers at once what `at_once` has for an address, the others when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[tuple[str, int, float]] = []
        self.cancelled: list[str] = []
        self.at_once: dict[str, StreamReason] = {}
        monkeypatch.setattr(opening, "connect_literal", self.connect)

    def connect(self, loop: object, ip: str, port: int, done: Done, timeout: float) -> Cancellable:
        self.tried.append((ip, port, timeout))
        attempt = Attempt(self, ip)
        if ip in self.at_once:
            done(None, self.at_once[ip])
        else:
            self.done = done
        return attempt

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
    assert connector.tried == [(f"192.0.2.{n}", 53, 5.0) for n in (1, 2, 3)]
    assert app.events == []
    connector.answer(StreamReason.CONNECTION_REFUSED)
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
