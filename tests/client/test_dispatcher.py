"""The rules applied: which route a connection takes, what a front-end says of a block, and the list of connections."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cryprq_proxy.address import OWN_NAME, Destination
from cryprq_proxy.client.direct import Direct, DirectAssociation
from cryprq_proxy.client.dispatcher import MAX_ROWS, Dispatcher
from cryprq_proxy.client.requests import NOWHERE, Early
from cryprq_proxy.client.split_association import MAX_EARLY, DatagramsOnly
from cryprq_proxy.errors import (
    ConfigError,
    DirectRefused,
    LocalError,
    StreamBlocked,
    StreamReason,
    StreamRefused,
)
from cryprq_proxy.fronts.listener import MixedListener
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet
from cryprq_proxy.rules.syntax import Rule, parse_action
from cryprq_proxy.session.streams import AnyStream
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.status import ConnectionCounts
from tests.support.fake_exits import FakeExits, FakeStream
from tests.support.links import App
from tests.support.settings import listener_settings

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
RULES = RuleSet(
    (
        Rule(action=parse_action("block"), domains=(".ads.example",), name="no ads"),
        Rule(action=parse_action("exit:b"), domains=("b.example",)),
        Rule(action=parse_action("direct"), cidrs=(LOOPBACK,)),
        Rule(action=parse_action("block"), ports=((25, 25),)),
    ),
    parse_action("tunnel"),
)
TUNNEL, ADS, NAMED = (Destination(name, 443) for name in ("www.example", "x.ads.example", "b.example"))
MAIL = Destination("www.example", 25)


class Office(FakeExits):
    """Exits a and b with links, and a dispatcher over them."""

    def __init__(self, rules: RuleSet = RULES) -> None:
        super().__init__()
        self.up("a", "b")
        self.dispatcher = Dispatcher(self.exits, rules, Direct(self.exits.slots, timeout=5.0))

    def request(self, destination: Destination, protocol: StreamProtocol = StreamProtocol.TCP) -> App:
        app = App()

        def opening(stream: AnyStream) -> None:
            app.stream = stream  # type: ignore[assignment]

        self.dispatcher.request(protocol, destination, app, opening)
        return app

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        return [
            (row.id, row.target, row.protocol, row.to, row.rule, row.exit)
            for row in self.dispatcher.connections()
        ]


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    office = Office()
    yield office
    office.dispatcher.stop()


async def test_each_way(office: Office) -> None:
    office.request(TUNNEL)
    office.request(NAMED)
    assert office.served() == [1, 1]
    assert office.request(ADS).events == [("refused", StreamReason.NOT_ALLOWED)]
    assert office.request(MAIL).events == [("refused", StreamReason.NOT_ALLOWED)]
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        app = office.request(Destination("127.0.0.1", server.sockets[0].getsockname()[1]))
        while ("eof",) not in app.events:
            await asyncio.sleep(0.001)
    assert office.served() == [1, 1]
    assert office.dispatcher.counts() == ConnectionCounts(
        open=3,
        total=5,
        by={"tunnel": 1, "direct": 1, "block": 2, "exit": 1},
        refused={"not_allowed": 2},
    )


async def test_without_rules_the_default_holds_for_all() -> None:
    for default, served in (("tunnel", [1, 0]), ("exit:b", [0, 1]), ("block", [0, 0])):
        office = Office(RuleSet((), parse_action(default)))
        app = office.request(ADS)
        assert office.served() == served
        assert bool(app.events) == (default == "block")
        office.dispatcher.stop()


@pytest.mark.parametrize("early", Early)
async def test_a_direct_connection_is_answered_when_it_is_made(office: Office, early: Early) -> None:
    """This machine knows soon enough, and says precisely why not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (await office.dispatcher.open(Destination("127.0.0.1", port), early)).abort()
    with pytest.raises(DirectRefused) as refused:
        await office.dispatcher.open(Destination("127.0.0.1", port), early)
    assert refused.value.reason is StreamReason.CONNECTION_REFUSED
    assert office.dispatcher.counts().early == 0


async def test_early_answers_are_counted(office: Office) -> None:
    for number, client in enumerate(office.clients, 1):
        client.early = number
        client.early_refused[StreamReason.TIMED_OUT] = number
    counts = office.dispatcher.counts()
    assert (counts.early, counts.early_refused) == (3, {"timed_out": 3})


async def test_opening_names_the_rule_that_blocks(office: Office) -> None:
    for destination, rule in ((ADS, "no ads"), (MAIL, "rule 4")):
        with pytest.raises(StreamBlocked) as blocked:
            await office.dispatcher.open(destination)
        assert (blocked.value.rule, blocked.value.reason) == (rule, StreamReason.NOT_ALLOWED)
    assert office.dispatcher.counts().by["block"] == 2


async def test_our_own_name_goes_nowhere(office: Office) -> None:
    """Another name does, which nobody has: the same one each time, as of another name."""
    for _ in range(2):
        office.request(Destination(OWN_NAME, 80))
    asking = asyncio.ensure_future(office.dispatcher.open(Destination(OWN_NAME, 443)))
    await asyncio.sleep(0)
    targets = [row[1] for row in office.rows()]
    [name] = {target.partition(":")[0] for target in targets}
    assert sorted(target.partition(":")[2] for target in targets) == ["443", "80", "80"]
    assert name != OWN_NAME and len(name) == len(OWN_NAME) and name.endswith(".test")
    assert name != Office().dispatcher._no_name
    asking.cancel()


async def test_opening_through_an_exit(office: Office) -> None:
    asking = asyncio.ensure_future(office.dispatcher.open(NAMED))
    await asyncio.sleep(0)
    [stream] = office.clients[1].open
    stream.accept()
    await asking
    asking = asyncio.ensure_future(office.dispatcher.open(TUNNEL))
    await asyncio.sleep(0)
    office.clients[0].open[0].handler.refused(StreamReason.TIMED_OUT)
    with pytest.raises(StreamRefused) as refusal:
        await asking
    assert type(refusal.value) is StreamRefused


async def test_rules_are_replaced(office: Office) -> None:
    office.dispatcher.rules = EVERYTHING
    office.request(ADS)
    assert office.served() == [1, 0]
    office.dispatcher.rules = RULES
    assert office.request(ADS).events == [("refused", StreamReason.NOT_ALLOWED)]
    broken = RuleSet((Rule(action=parse_action("exit:c"), ports=((1, 2),)),), parse_action("tunnel"))
    with pytest.raises(ConfigError, match="the exit c, which is not configured; there are: a, b"):
        office.dispatcher.rules = broken
    assert office.dispatcher.rules is RULES


async def test_no_exit_is_called_direct() -> None:
    world = FakeExits()
    world.exits._by_name["direct"] = world.exits.entries[0]
    with pytest.raises(ConfigError, match='cannot be called "direct"'):
        Dispatcher(world.exits, EVERYTHING)


# --- what a front-end says ---


async def through(office: Office, said: bytes) -> bytes:
    listener = MixedListener(office.dispatcher, listener_settings(Destination("127.0.0.1", 0)))
    reader, writer = await asyncio.open_connection(*listener.start())
    writer.write(said)
    answer = await reader.read()
    writer.close()
    await listener.stop()
    return answer


async def test_socks_says_that_a_rule_forbids_it(office: Office) -> None:
    name = ADS.host.encode()
    said = b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x01\xbb"
    assert (await through(office, said))[2:4] == b"\x05\x02"


@pytest.mark.parametrize(
    "said",
    [
        b"GET http://x.ads.example/ HTTP/1.1\r\nHost: x.ads.example\r\nConnection: close\r\n\r\n",
        b"CONNECT x.ads.example:80 HTTP/1.1\r\nHost: x.ads.example:80\r\n\r\n",
    ],
    ids=["get", "connect"],
)
async def test_http_has_a_page_with_the_name_of_the_rule(office: Office, said: bytes) -> None:
    page = await through(office, said)
    assert page.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"error=http_request_denied" in page
    assert b"blocked by your rules: no ads." in page


# --- UDP ---


def datagrams(stream: FakeStream) -> list[tuple[str, bytes]]:
    return [(destination.host, payload) for destination, payload in stream.datagrams]


async def test_without_rules_an_association_is_one_stream() -> None:
    world = FakeExits(1)
    dispatcher = Dispatcher(world.exits, EVERYTHING)
    app = App()
    dispatcher.request(StreamProtocol.UDP, NOWHERE, app, lambda stream: None)
    assert not app.events, "the application waits until the exit has said yes"
    world.clients[0].open[0].accept()
    assert app.events == [("opened",)]
    dispatcher.stop()


async def test_with_several_exits_datagrams_follow_the_active_one() -> None:
    office = Office(EVERYTHING)
    app = office.request(NOWHERE, StreamProtocol.UDP)
    assert app.stream is not None
    app.stream.send_datagram(TUNNEL, b"one")
    [stream] = office.clients[0].open
    stream.accept()
    office.clients[0].link(False)
    assert stream.ended is not None
    app.stream.send_datagram(TUNNEL, b"two")
    [stream] = office.clients[1].open
    stream.accept()
    assert datagrams(stream) == [("www.example", b"two")]
    assert app.events == [("opened",)]
    office.dispatcher.stop()


async def test_each_datagram_goes_its_way(office: Office) -> None:
    app = office.request(NOWHERE, StreamProtocol.UDP)
    assert app.events == [("opened",)]
    assert office.served() == [0, 0], "a route is requested when it is needed"
    assert app.stream is not None
    for destination in (TUNNEL, NAMED, ADS, ADS, MAIL, Destination("127.0.0.1", 9)):
        app.stream.send_datagram(destination, destination.host.encode())
    [first], [second] = office.clients[0].open, office.clients[1].open
    [direct] = office.dispatcher.direct.streams.values()
    assert isinstance(direct, DirectAssociation) and direct.sent == 9
    first.accept()
    second.accept()
    app.stream.send_datagram(TUNNEL, b"more")
    assert datagrams(first) == [("www.example", b"www.example"), ("www.example", b"more")]
    assert datagrams(second) == [("b.example", b"b.example")]
    assert office.dispatcher.counts().by == {"tunnel": 1, "direct": 1, "block": 2, "exit": 1}
    for stream in (first, second):
        stream.handler.datagram_received(TUNNEL, memoryview(b"answer"))
    assert app.datagrams == [(TUNNEL, b"answer")] * 2

    app.stream.reset(StreamReason.CANCELLED)
    assert (first.ended, second.ended) == (StreamReason.CANCELLED, StreamReason.CANCELLED)
    assert not office.dispatcher.direct.streams
    first.handler.datagram_received(TUNNEL, memoryview(b"late"))
    assert len(app.datagrams) == 2


async def test_datagrams_that_wait_are_bounded(office: Office) -> None:
    app = office.request(NOWHERE, StreamProtocol.UDP)
    assert app.stream is not None
    for _ in range(3 * MAX_EARLY):
        app.stream.send_datagram(TUNNEL, b"x")
    [stream] = office.clients[0].open
    stream.accept()
    assert len(stream.datagrams) == MAX_EARLY


async def test_a_way_that_breaks_is_opened_again(office: Office) -> None:
    app = office.request(NOWHERE, StreamProtocol.UDP)
    assert app.stream is not None
    for number, end in enumerate(("refused", "reset", "eof_received")):
        app.stream.send_datagram(TUNNEL, b"x")
        assert len(office.clients[0].open) == 1
        [stream] = office.clients[0].open
        assert stream.id == number + 1
        stream.accept()
        if end == "eof_received":
            stream.handler.eof_received()
        else:
            office.clients[0].open.clear()
            getattr(stream.handler, end)(StreamReason.LINK_DOWN)
    assert not office.clients[0].open
    assert app.events == [("opened",)], "the association lives on"


async def test_an_association_that_ends_while_a_way_waits(office: Office) -> None:
    for client in office.clients:
        client.link(False)
    app = office.request(NOWHERE, StreamProtocol.UDP)
    assert app.stream is not None
    app.stream.send_datagram(TUNNEL, b"x")
    app.stream.reset(StreamReason.CANCELLED)
    office.up("a")
    assert office.served() == [0, 0], "the stream is reset as soon as it is there"


def test_a_stream_of_datagrams_takes_no_bytes() -> None:
    stream = DatagramsOnly()
    assert stream.request_room() == 0 and not stream.waits()
    with pytest.raises(LocalError):
        stream.send(b"x")
    with pytest.raises(LocalError):
        stream.send_slot(memoryview(b"x"), 1)


# --- the list ---


async def test_the_connections_newest_first(office: Office) -> None:
    office.request(TUNNEL)
    office.request(NAMED)
    office.clients[0].open[0].sent = 7
    assert office.rows() == [
        ("b/1", "b.example:443", "tcp", "exit:b", "rule 2", "b"),
        ("a/1", "www.example:443", "tcp", "tunnel", "default", "a"),
    ]
    assert [(row.sent, row.received) for row in office.dispatcher.connections()] == [(0, 0), (7, 0)]
    assert all(0 <= row.age < 60 for row in office.dispatcher.connections())


async def test_streams_of_our_own_are_listed_too(office: Office) -> None:
    asking = asyncio.ensure_future(office.exits.open_resolver())
    await asyncio.sleep(0)
    assert office.rows() == [("a/1", "*", "dns", "tunnel", "", "a")]
    asking.cancel()
    await asyncio.wait([asking])


async def test_very_many_connections(office: Office) -> None:
    for _ in range(MAX_ROWS + 50):
        office.request(TUNNEL)
    rows = office.dispatcher.connections()
    assert len(rows) == MAX_ROWS
    assert rows[0].id == f"a/{MAX_ROWS + 50}"
    assert office.dispatcher.counts().open == MAX_ROWS + 50


async def test_very_many_connections_of_two_exits(office: Office) -> None:
    for _ in range(MAX_ROWS + 50):
        office.request(TUNNEL)
    for _ in range(50):
        office.request(NAMED)
    # No more are looked at of either exit than could be listed, and no more are listed of both.
    assert len(list(office.dispatcher._all())) == MAX_ROWS + 50
    rows = office.dispatcher.connections()
    assert len(rows) == MAX_ROWS
    assert [row.exit for row in rows].count("b") == 50


async def test_closing_a_connection(office: Office) -> None:
    apps: list[Any] = [office.request(TUNNEL), office.request(NAMED)]
    assert office.dispatcher.close("a/1")
    assert apps[0].events == [("reset", StreamReason.CANCELLED)]
    assert not office.dispatcher.close("a/1")
    assert not apps[1].events
    for nonsense in ("", "a", "a/", "/1", "c/1", "a/-1", "a/1x", "direct/1", "a/\u0661", "a/" + "9" * 5000):
        assert not office.dispatcher.close(nonsense)


async def test_closing_a_direct_connection(office: Office) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        app = office.request(Destination("127.0.0.1", server.getsockname()[1]))
        [row] = office.dispatcher.connections()
        assert (row.id, row.to, row.rule, row.exit) == ("direct/1", "direct", "rule 3", "")
        assert office.dispatcher.close(row.id)
        assert app.events[-1] == ("reset", StreamReason.CANCELLED)
        assert not office.dispatcher.direct.streams
