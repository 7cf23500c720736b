"""Where an exit says that it is reached itself: which addresses count, and what a resume makes of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.carriers.dial.upstream import UpstreamProxy
from cryprq_proxy.carriers.lane.batch import SocketAddress
from cryprq_proxy.client import endpoints, kept_session
from cryprq_proxy.client.advertised import resume_endpoint
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.endpoints import ReachedExit
from cryprq_proxy.client.packet_ports import ExitPort, NoNetwork
from cryprq_proxy.client.settings import EndpointMemory
from cryprq_proxy.exit.peer_session import PeerSession
from cryprq_proxy.session.wire import GOAWAY, encode_advertise, encode_bare
from tests.support.settle import until
from tests.support.web_links import PLAIN, Place, Relay, echoes, opened, place

PORT = 4433


def choice(
    advertised: str, reached: str | None = "8.8.8.8", *, lets_out: bool = True, port: int = PORT
) -> Endpoint | None:
    address: SocketAddress | None = None if reached is None else (reached, PORT)
    return resume_endpoint(Destination(advertised, port), address, lambda address: lets_out)


# --- the choice ---


@pytest.mark.parametrize("reached", ["8.8.8.8", "127.0.0.1", "10.0.0.1", "2001:4860::1", "fe80::1%lo"])
@pytest.mark.parametrize("advertised", ["8.8.4.4", "2606:4700::1"])
def test_a_global_address_counts_from_everywhere(advertised: str, reached: str) -> None:
    assert choice(advertised, reached) == Endpoint("tcp", Destination(advertised, PORT))


NEAR = {
    "loopback": ["127.0.0.1", "127.8.9.1", "::1"],
    "link-local": ["169.254.1.1", "fe80::1"],
    "private": ["10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fec0::1"],
    "special": ["198.18.0.1", "203.0.113.7", "2001:db8::1"],
}


@pytest.mark.parametrize("kind", NEAR)
def test_a_near_address_counts_where_the_exit_was_reached_by_one_of_its_kind(kind: str) -> None:
    for advertised in NEAR[kind]:
        for reached in ["8.8.8.8", "2606:4700::1", *chain(*NEAR.values())]:
            assert (choice(advertised, reached) is not None) is (reached in NEAR[kind]), (advertised, reached)


@pytest.mark.parametrize(
    "advertised",
    [
        *("0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "ff02::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1"),
        *("2002:a00:1::1", "2001:0:a00:1::1"),
    ],
)
def test_an_address_of_no_host_never_counts(advertised: str) -> None:
    for reached in ["8.8.8.8", "127.0.0.1", "10.0.0.1", advertised]:
        assert choice(advertised, reached) is None


def test_an_address_that_is_not_let_out_does_not_count() -> None:
    assert choice("8.8.4.4", lets_out=False) is None


def test_no_address_counts_where_the_exit_was_not_reached_over_plain_tcp() -> None:
    assert choice("8.8.4.4", None) is None


def test_a_port_to_the_interface_asks_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Destination] = []

    def lets_out(network: NoNetwork, address: Destination) -> bool:
        asked.append(address)
        return len(asked) > 1

    monkeypatch.setattr(NoNetwork, "lets_out", lets_out)
    port, address = ExitPort(NoNetwork()), Destination("192.0.2.1", PORT)
    assert [port.lets_out(address), port.lets_out(address)] == [False, True]
    assert asked == [address, address]


# --- a resume ---


class TwoExits:
    """Two exits with one identity, and a relay in front that leads to `first` until it is told otherwise."""

    def __init__(self, first: Place, other: Place) -> None:
        self.first, self.other = first, other
        self.front = Relay(first.tcp)

    async def start(self) -> None:
        self.endpoint = Endpoint("tcp", await self.front.start())
        self.advertise(self.first.tcp)

    async def client(self, **options: object) -> Client:
        client = self.first.client(self.endpoint, **options)
        await until(lambda: client.up)
        return client

    def advertise(self, address: Destination | None) -> None:
        """The first one does, with each carrier that comes."""
        exit = self.first.exit
        exit._settings = replace(exit._settings, advertise=address)

    def cut(self) -> None:
        """All carriers; the next one through the front goes to the other exit."""
        self.front._target = self.other.tcp
        self.front.cut()


@pytest.fixture
async def two() -> AsyncIterator[TwoExits]:
    async with place(lane=PLAIN) as first, place(lane=PLAIN) as other:
        two = TwoExits(first, other)
        await two.start()
        yield two
        await two.front.stop()


def address(client: Client) -> str:
    carrier = client.status().carrier
    assert carrier is not None
    return carrier.address


def advertise(entry: PeerSession, address: Destination) -> None:
    """The exit says so on the path in use."""
    assert entry.session.current is not None
    entry.session.current.announce(encode_advertise(address))


async def known(client: Client) -> None:
    await until(lambda: client._kept.advertised is not None)


async def test_a_session_goes_on_at_the_exit_that_has_it(two: TwoExits) -> None:
    memory = EndpointMemory()
    client = await two.client(memory=memory)
    await known(client)
    app = await opened(client, two.first.echo)
    session = client._kept.session
    for _ in range(3):
        two.cut()
        client.redial()
        await echoes(app, b"still here")
        assert client._kept.session is session
        assert address(client) == str(two.first.tcp)
    status = client.status().carrier
    assert status is not None and status.why == "the exit advertises it for the session"
    assert memory.last == str(two.endpoint), "the next start begins at a configured one"
    assert not len(two.other.exit.sessions)


async def test_without_it_the_session_is_lost_at_another_exit(two: TwoExits) -> None:
    two.advertise(None)
    client = await two.client()
    app = await opened(client, two.first.echo)
    two.cut()
    await until(lambda: app.ended)
    await until(lambda: client.up)
    assert address(client) == str(two.endpoint)


async def test_the_lane_follows_the_carrier(two: TwoExits) -> None:
    """The front passes no UDP."""
    client = await two.client(lane=PLAIN)
    await known(client)
    assert client.lane_size is None
    await echoes(await opened(client, two.first.echo), b"of use")
    two.cut()
    await until(lambda: client.lane_size is not None)
    assert address(client) == str(two.first.tcp)


async def test_where_nobody_listens_any_more_the_configured_endpoints_follow_at_once(
    two: TwoExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "ADVERTISED_HEAD_START", 3_600.0)
    client = await two.client()
    await known(client)
    app = await opened(client, two.first.echo)
    two.first.exit.listener.stop_accepting()
    two.cut()
    await until(lambda: app.ended)
    await until(lambda: client.up)
    assert address(client) == str(two.endpoint)
    assert client._kept.advertised is None, "it went with the session"


async def test_a_new_session_begins_at_the_configured_endpoints(
    two: TwoExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_session, "RESUME_SECONDS", 0.0)
    client = await two.client()
    await known(client)
    dialled: list[Endpoint | None] = []
    race = client._link._endpoints.race

    async def record(*arguments: Any) -> ReachedExit:
        dialled.append(arguments[-1])
        return await race(*arguments)

    monkeypatch.setattr(client._link._endpoints, "race", record)
    two.first.exit.listener.stop_accepting()
    two.cut()
    await until(lambda: client.up and len(two.other.exit.sessions))
    assert address(client) == str(two.endpoint)
    assert dialled[-1] is None


@pytest.mark.parametrize("kind", ["ws", "tcp"])
async def test_it_counts_behind_plain_tcp_only(two: TwoExits, kind: CarrierKind) -> None:
    heard: list[Destination] = []
    client = two.first.client(two.first.endpoint(kind))
    await until(lambda: client.up)
    session = client._kept.session
    assert session is not None
    keep = client._kept._exit_advertised

    def hear(address: Destination) -> None:
        keep(address)
        heard.append(address)

    session.events.advertised = hear
    [entry] = two.first.exit.sessions
    advertise(entry, two.first.tcp)
    await until(lambda: heard)
    assert (client._kept.advertised is not None) is (kind == "tcp")


class ConnectProxy(Relay):
    """An HTTP proxy that says yes to every CONNECT, and leads to its target."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await super()._serve(reader, writer)


async def test_it_does_not_count_through_an_upstream_proxy(two: TwoExits) -> None:
    proxy = ConnectProxy(two.first.tcp)
    upstream = UpstreamProxy(await proxy.start(), kind="http")
    client = two.first.client(two.first.endpoint("tcp"), upstream=upstream)
    await until(lambda: client.up)
    await echoes(await opened(client, two.first.echo), b"what came before this was taken")
    assert client._kept._reached is None and client._kept.advertised is None
    await client.stop()
    await proxy.stop()


async def test_the_last_one_counts_and_only_what_may(two: TwoExits, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await two.client()
    await known(client)
    session = client._kept.session
    assert session is not None
    session.events.advertised(Destination("127.0.0.9", 9))
    assert client._kept.advertised == Endpoint("tcp", Destination("127.0.0.9", 9))
    session.events.advertised(Destination("192.168.1.1", 80))
    assert client._kept.advertised is None
    session.events.advertised(two.first.tcp)
    assert client._kept.advertised == Endpoint("tcp", two.first.tcp)
    monkeypatch.setattr(NoNetwork, "lets_out", lambda *_: False)
    session.events.advertised(two.first.tcp)
    assert client._kept.advertised is None


async def test_a_session_that_was_left_says_nothing_about_the_next_one(
    two: TwoExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryprq_proxy.client.link.STABLE_SECONDS", 0.0)
    client = await two.client()
    await known(client)
    app = await opened(client, two.first.echo)
    [entry] = two.first.exit.sessions
    entry.session.announce(encode_bare(GOAWAY))
    await until(lambda: client.status().carriers == 2)
    await known(client)
    before = client._kept.advertised
    advertise(entry, Destination("127.0.0.9", 9))
    await echoes(app, b"goes on")
    assert client._kept.advertised == before
