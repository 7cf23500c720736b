"""Direct connections: real sockets on loopback, through the listener as an application sees them.

    application <-> MixedListener <-> Dispatcher (default = "direct") <-> target

No exit has a part in it: the one that is configured has no link.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client import own_listeners
from cryprq_proxy.client.direct import WINDOW, Direct, DirectStream
from cryprq_proxy.client.direct_sockets import DirectSockets
from cryprq_proxy.client.dispatcher import Dispatcher
from cryprq_proxy.client.own_listeners import DirectPolicy
from cryprq_proxy.client.requests import StreamRequest
from cryprq_proxy.errors import DirectRefused, LocalError, StreamReason, StreamRefused
from cryprq_proxy.fronts.listener import MixedListener
from cryprq_proxy.fronts.socks import encode_datagram, parse_datagram
from cryprq_proxy.outbound.dialer import dial
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.rules.syntax import Rule, parse_action
from cryprq_proxy.session.retention import SLOT_HEADROOM, SlotPool
from cryprq_proxy.session.streams import AnyStream, Half, StreamHandler
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_exits import FakeExits
from tests.support.links import App
from tests.support.settings import listener_settings
from tests.support.settle import until

BIG = bytes(range(256)) * 16_384  # 4 MiB


class Names:
    """A resolver that knows a few names."""

    async def resolve(self, name: str) -> Sequence[str]:
        if name in ("here.example", "rebound.example", "app.localhost"):
            return ["127.0.0.1"]
        if name == "us.example":
            return ["::ffff:127.0.0.1", "127.0.0.1"]
        raise StreamRefused(StreamReason.NAME_NOT_FOUND)

    def remembered(self, name: str) -> Sequence[str] | None:
        return None


HERE = Rule(action=parse_action("direct"), cidrs=(ip_network("127.0.0.0/8"),), domains=("here.example",))


class Proxy:
    def __init__(self, dispatcher: Dispatcher, address: Destination) -> None:
        self.dispatcher = dispatcher
        self.address = address

    @property
    def direct(self) -> Direct:
        return self.dispatcher.direct

    async def greet(
        self, command: int, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection(*self.address)
        name = host.encode()
        writer.write(b"\x05\x01\x00\x05" + bytes((command, 0, 3, len(name))) + name + port.to_bytes(2))
        assert await reader.readexactly(2) == b"\x05\x00"
        return reader, writer, await reader.readexactly(10)

    async def connect(
        self, port: int, host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer, reply = await self.greet(1, host, port)
        assert reply[1] == 0, reply
        return reader, writer

    async def refused(self, port: int, host: str = "127.0.0.1") -> int:
        reader, writer, reply = await self.greet(1, host, port)
        assert await reader.read() == b""
        writer.close()
        return reply[1]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    exits = FakeExits(1).exits
    direct = Direct(exits.slots, Names(), 5.0)
    dispatcher = Dispatcher(exits, RuleSet((), parse_action("direct")), direct)
    listener = MixedListener(dispatcher, listener_settings(Destination("127.0.0.1", 0)))
    address = listener.start()
    direct.never_to(address)
    yield Proxy(dispatcher, address)
    await listener.stop()
    dispatcher.stop()
    assert not direct.streams


type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@asynccontextmanager
async def target(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.close()


# --- TCP ---


@pytest.mark.parametrize("host", ["127.0.0.1", "here.example"])
async def test_bytes_both_ways_and_a_half_close(proxy: Proxy, host: str) -> None:
    proxy.dispatcher.rules = RuleSet((HERE,), parse_action("direct"))
    async with target(echo) as port:
        reader, writer = await proxy.connect(port, host)
        sending = asyncio.ensure_future(_send(writer, BIG))
        assert await reader.readexactly(len(BIG)) == BIG
        await sending
        writer.write_eof()
        assert await reader.read() == b"end", "the target saw the end, and could still speak"
        writer.close()
        await until(lambda: not proxy.direct.streams)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_the_target_ends_first(proxy: Proxy) -> None:
    got = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    async with target(serve) as port:
        reader, writer = await proxy.connect(port)
        assert await reader.read() == b"hello"
        [stream] = proxy.direct.streams.values()
        assert isinstance(stream, DirectStream) and stream._sock is not None
        assert stream._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        writer.write(b"still here")
        writer.write_eof()
        assert await got == b"still here"
        writer.close()
        await until(lambda: not proxy.direct.streams)


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_reset_of_the_target_is_one_for_the_application(proxy: Proxy) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        reset(writer)

    async with target(serve) as port:
        reader, writer = await proxy.connect(port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await until(lambda: not proxy.direct.streams)


async def test_a_reset_of_the_application_is_one_for_the_target(proxy: Proxy) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError:
            ended.set_result("reset")
        else:
            ended.set_result("end")
        writer.close()

    async with target(serve) as port:
        _, writer = await proxy.connect(port)
        reset(writer)
        assert await ended == "reset"
        await until(lambda: not proxy.direct.streams)


async def test_who_does_not_read_slows_the_other_down(proxy: Proxy) -> None:
    """Neither side of the proxy takes more than its windows."""
    release = asyncio.Event()
    read = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BIG * 16)
        await release.wait()
        while data := await reader.read(1 << 20):
            read.extend(data)
        writer.close()

    async with target(serve) as port:
        reader, writer = await proxy.connect(port)
        writer.write(BIG * 16)
        writer.write_eof()
        [stream] = proxy.direct.streams.values()
        assert isinstance(stream, DirectStream)
        await until(lambda: stream.sent and stream.received)
        before = (0, 0)
        while (stream.sent, stream.received) != before:  # until neither direction moves any more
            before = stream.sent, stream.received
            await asyncio.sleep(0.05)
        assert stream.sent < len(BIG * 16) > stream.received
        assert stream.received - stream._consumed <= WINDOW
        assert len(stream._backlog) <= WINDOW
        release.set()
        assert len(await reader.read()) == len(BIG * 16)
        await until(lambda: len(read) == len(BIG * 16))
        assert read == BIG * 16
        writer.close()


async def test_failures_have_their_reason(proxy: Proxy) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert await proxy.refused(bound.getsockname()[1]) == 5
    assert await proxy.refused(80, "nowhere.example") == 4
    with pytest.raises(DirectRefused) as refusal:
        await proxy.dispatcher.open(Destination("nowhere.example", 80))
    assert refusal.value.reason is StreamReason.NAME_NOT_FOUND
    assert proxy.dispatcher.counts().refused == {"connection_refused": 1, "name_not_found": 2}


async def test_http_and_tunnels(proxy: Proxy) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + head[:4])
        writer.close()

    async with target(serve) as port:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(
            b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n"
            % (port, port)
        )
        assert (await reader.read()).endswith(b"\r\n\r\nGET ")
        writer.close()
    async with target(echo) as port:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(5) == b"early"
        writer.write_eof()
        assert await reader.read() == b"end"
        writer.close()


async def test_an_http_client_learns_that_no_exit_is_to_blame(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(
        b"GET http://nowhere.example/ HTTP/1.1\r\nHost: nowhere.example\r\nConnection: close\r\n\r\n"
    )
    page = await reader.read()
    assert b" 502 " in page.partition(b"\r\n")[0]
    assert b"the direct connection failed: name not found. (Target: nowhere.example:80)" in page
    writer.close()


async def test_an_application_that_gives_up_leaves_nothing(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = []
        for _ in range(16):  # the queue of connections overflows: the next one hangs
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
        link = asyncio.ensure_future(proxy.dispatcher.open(Destination(*full.getsockname())))
        await until(lambda: bool(proxy.direct.streams) or link.done())
        link.cancel()
        await asyncio.wait([link])
        assert not proxy.direct.streams
        for sock in waiting:
            sock.close()


# --- never to ourselves ---


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "us.example"])
async def test_the_proxy_does_not_connect_to_itself(proxy: Proxy, host: str) -> None:
    assert await proxy.refused(proxy.address.port, host) == 2


@pytest.mark.parametrize(
    ("listening", "target", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "0.0.0.0", False),
        ("127.0.0.1", "::ffff:127.0.0.1", False),
        ("127.0.0.1", "192.0.2.1", True),
        ("0.0.0.0", "127.9.9.9", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("0.0.0.0", "192.0.2.1", True),
        ("::", "127.0.0.1", False),
        ("::1", "::1", False),
        ("::1", "::", False),
        ("::1", "2001:db8::1", True),
    ],
)
def test_where_the_proxy_may_be_reached(listening: str, target: str, allowed: bool) -> None:
    policy = DirectPolicy()
    policy.listening.append(Destination(listening, 1080))
    assert policy.check_address(target, 1080) == allowed
    assert policy.check_address(target, 1081)


# --- names that resolve to this machine ---


ANY_NAME = Rule(action=parse_action("direct"), domains=("*.example",))
LOOPBACK = Rule(action=parse_action("direct"), cidrs=(ip_network("127.0.0.0/8"),))


async def served(proxy: Proxy, port: int, host: str) -> None:
    """A connection to the echo at `host` is made, and ends on all sides."""
    reader, writer = await proxy.connect(port, host)
    writer.write_eof()
    assert await reader.read() == b"end"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "rules", [(), (ANY_NAME,), (ANY_NAME, LOOPBACK), (LOOPBACK, ANY_NAME), (HERE, ANY_NAME)]
)
async def test_a_name_does_not_lead_to_this_machine(proxy: Proxy, rules: tuple[Rule, ...]) -> None:
    """DNS rebinding: a page whose name resolves to loopback a moment later must not reach the services here. That
    another rule is about the address says nothing of this name."""
    proxy.dispatcher.rules = RuleSet(rules, parse_action("direct"))
    async with target(echo) as port:
        assert await proxy.refused(port, "rebound.example") == 2
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(
            b"GET http://rebound.example:%d/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % port
        )
        page = await reader.read()
        assert page.startswith(b"HTTP/1.1 403 ") and b"names its address too, in cidrs" in page
        writer.close()
        for host in ("127.0.0.1", "app.localhost"):
            await served(proxy, port, host)


async def test_a_datagram_to_a_name_does_not_reach_this_machine(proxy: Proxy) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as application,
    ):
        for sock in (server, application):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        _reader, writer, reply = await proxy.greet(3, "0.0.0.0", 0)
        relay = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:])
        port = server.getsockname()[1]
        for host, data in (("rebound.example", b"rebound"), ("app.localhost", b"mine")):
            application.sendto(encode_datagram(Destination(host, port), data), relay)
        assert await asyncio.get_running_loop().sock_recv(server, 100) == b"mine"
        writer.close()


async def test_a_rule_that_names_the_address_too_lets_its_name_through(proxy: Proxy) -> None:
    proxy.dispatcher.rules = RuleSet((HERE,), parse_action("direct"))
    async with target(echo) as port:
        await served(proxy, port, "here.example")
        proxy.dispatcher.rules = RuleSet((), parse_action("direct"))
        assert await proxy.refused(port, "here.example") == 2


@pytest.mark.parametrize(
    ("ip", "here"),
    [
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("0.1.2.3", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:0.0.0.0", True),
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8:a::77", True),
        ("192.0.2.8", False),
        ("2001:db8:b::1", False),
    ],
)
def test_what_this_machine_is(ip: str, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own addresses, and whole prefixes of local routes (AnyIP)."""
    own = frozenset(map(ip_network, ("192.0.2.7/32", "2001:db8:a::/64")))
    monkeypatch.setattr(own_listeners, "local_networks", lambda: own)
    assert own_listeners.is_this_machine(ip) == here


@pytest.mark.parametrize(("ip", "here"), [("127.0.0.1", True), ("192.0.2.8", False)])
def test_what_this_machine_is_where_the_kernel_cannot_be_asked(
    ip: str, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> frozenset[IPNetwork]:
        raise OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(own_listeners, "local_networks", fails)
    assert own_listeners.is_this_machine(ip) == here


# --- UDP ---


@pytest.mark.parametrize("rules", [(), (HERE,)], ids=["by default", "by rule"])
async def test_datagrams(proxy: Proxy, rules: tuple[Rule, ...]) -> None:
    proxy.dispatcher.rules = RuleSet(rules, parse_action("block" if rules else "direct"))
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as application,
    ):
        for sock in (server, application):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        _reader, writer, reply = await proxy.greet(3, "0.0.0.0", 0)
        assert reply[1] == 0
        relay = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:])
        port = server.getsockname()[1]
        # By default no name means this machine.
        for host in ("127.0.0.1", "here.example" if rules else "app.localhost"):
            await loop.sock_sendto(application, encode_datagram(Destination(host, port), b"ping"), relay)
            data, source = await loop.sock_recvfrom(server, 100)
            assert data == b"ping"
            await loop.sock_sendto(server, b"pong", source)
            answer = await loop.sock_recv(application, 100)
            assert parse_datagram(answer) == (Destination("127.0.0.1", port), b"pong")
        [row] = proxy.dispatcher.connections()
        assert (row.protocol, row.to, row.sent, row.received) == ("udp", "direct", 8, 8)
        writer.close()
        await until(lambda: not proxy.direct.streams)


# --- a stream's own rules ---


@pytest.fixture
async def direct() -> AsyncIterator[Direct]:
    direct = Direct(SlotPool(), Names())
    yield direct
    direct.stop()


def ask(direct: Direct, port: int) -> tuple[App, DirectStream]:
    app, got = App(), list[AnyStream]()
    direct.start(StreamRequest(StreamProtocol.TCP, Destination("127.0.0.1", port), app, got.append))
    [stream] = got
    assert isinstance(stream, DirectStream)
    app.stream = stream  # type: ignore[assignment]
    return app, stream


async def test_slots_go_back_to_their_pool(direct: Direct) -> None:
    async with target(echo) as port:
        app, stream = ask(direct, port)
        await until(lambda: stream.opened)
        slot = direct.slots.take()
        slot[SLOT_HEADROOM : SLOT_HEADROOM + 4] = b"data"
        stream.send_slot(slot, 4)
        assert direct.slots.take() is slot
        stream.finish()
        await until(lambda: ("eof",) in app.events)
        assert app.received == b"dataend"
        assert app.events == [("opened",), ("data",), ("eof",)]


async def test_what_the_target_does_not_take_waits_and_then_calls(direct: Direct) -> None:
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    async with target(serve) as port:
        app, stream = ask(direct, port)
        await until(lambda: stream.opened)
        app.say(BIG * 8, finish=True)
        assert stream.request_room() == 0 and stream.waits()
        release.set()
        await until(lambda: ("eof",) in app.events)
        assert app.received == b"%d" % len(BIG * 8)


async def test_misuse_is_a_bug_of_ours(direct: Direct) -> None:
    async with target(echo) as port:
        _, stream = ask(direct, port)
        await until(lambda: stream.opened)
        stream.finish()
        for misuse in (
            stream.finish,
            lambda: stream.send(b"x"),
            lambda: stream.send_datagram(Destination("x", 1), b""),
        ):
            with pytest.raises(LocalError):
                misuse()
        stream.reset(StreamReason.CANCELLED)
        stream.reset(StreamReason.CANCELLED)
        assert stream.request_room() == 0
        assert (stream.send_half, stream.receive_half) == (Half.CLOSED, Half.CLOSED)


async def test_a_stream_that_is_not_wanted_any_more_is_not_connected(direct: Direct) -> None:
    connections: list[object] = []

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    async with target(serve) as port:
        app = App()
        direct.start(
            StreamRequest(
                StreamProtocol.TCP,
                Destination("127.0.0.1", port),
                app,
                lambda stream: stream.reset(StreamReason.CANCELLED),
            )
        )
        assert not direct.streams and not app.events
        app, _stream = ask(direct, port)
        await until(lambda: bool(connections))
        assert len(connections) == 1


class Attempt:
    """To connect to an address that never answers. `open` has those that run."""

    def __init__(self, open: list[Attempt]) -> None:
        self._open = open
        open.append(self)

    def cancel(self) -> None:
        self._open.remove(self)


class ManyAddresses:
    async def resolve(self, name: str) -> Sequence[str]:
        return [f"192.0.2.{number}" for number in range(1, 33)]

    def remembered(self, name: str) -> Sequence[str] | None:
        return None


async def test_the_sockets_of_many_names_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name was dialled at eight addresses at once, whatever the others had."""
    direct, running, refused = Direct(SlotPool(), ManyAddresses()), list[Attempt](), list[int]()

    class Watched(DirectSockets):
        def more(self) -> bool:
            more = super().more()
            if not more:
                refused.append(len(running))
            return more

    defaults = dial.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "connect", lambda *_: Attempt(running))
    monkeypatch.setitem(defaults, "attempt_delay", 0.0)
    direct.sockets = Watched(5)
    for _ in range(4):
        direct.start(
            StreamRequest(StreamProtocol.TCP, Destination("many.example", 443), App(), lambda _: None)
        )
    await until(lambda: len(refused) == 4)
    assert len(running) == 4 + 5
    assert direct.sockets.free == 0
    direct.stop()
    await until(lambda: not running)
    assert direct.sockets.free == 5


async def test_associations_without_room_for_their_sockets_are_refused(direct: Direct) -> None:
    apps = [App() for _ in range(3)]
    associations: list[AnyStream] = []
    direct.sockets.free = 5
    for app in apps:
        direct.start(StreamRequest(StreamProtocol.UDP, Destination("192.0.2.1", 0), app, associations.append))
    assert [app.events[0] for app in apps] == [("opened",), ("opened",), ("refused", StreamReason.LIMIT)]
    assert (len(direct.streams), direct.sockets.free, direct.refused[StreamReason.LIMIT]) == (2, 1, 1)
    associations[2].reset(StreamReason.CANCELLED)
    for _ in range(2):
        associations[0].reset(StreamReason.CANCELLED)
    assert direct.sockets.free == 3


async def test_stopping_ends_all(direct: Direct) -> None:
    async with target(echo) as port:
        app, stream = ask(direct, port)
        await until(lambda: stream.opened)
        direct.stop()
        assert app.events[-1] == ("reset", StreamReason.SHUTTING_DOWN)
        assert not direct.streams


class Faulty(StreamHandler):
    def data_received(self, data: memoryview) -> None:
        raise ZeroDivisionError


async def test_a_fault_of_this_program_ends_the_connection_and_is_logged_once(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop went on calling, while there was more to read."""
    async with target(echo) as port:
        _, writer = await proxy.connect(port)
        [stream] = proxy.direct.streams.values()
        assert isinstance(stream, DirectStream)
        relay, stream.handler = stream.handler, Faulty()
        writer.write(b"hello")
        await until(lambda: not proxy.direct.streams)
        relay.reset(StreamReason.GENERAL)
        writer.close()
    # asyncio logs that the target saw a reset.
    errors = [record for record in caplog.records if record.levelname == "ERROR" and record.name != "asyncio"]
    assert [record.exc_info is not None for record in errors] == [True]
