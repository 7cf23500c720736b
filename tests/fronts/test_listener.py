"""The local proxy's listener: real connections on loopback, streams of the test behind it."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import prepare_accepted, set_reset_on_close
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.fronts import listener, socks_connection
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.listener import ListenerSettings, MixedListener
from cryprq_proxy.fronts.socks_connection import SocksConnection
from cryprq_proxy.outbound.relay import Relay
from cryprq_proxy.outbound.relays import EARLY, REQUESTS, SILENT
from cryprq_proxy.outbound.socket_group import SocketGroup
from cryprq_proxy.session.streams import Half
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_source import Asked, FakeSource, LateSource
from tests.support.fake_streams import FakeStream
from tests.support.raw_client import RawClient
from tests.support.settings import listener_settings
from tests.support.settle import settle, until

HERE = listener_settings(Destination("127.0.0.1", 0), max_connections=64)
TARGET = Destination("192.0.2.1", 443)
GREETING = b"\x05\x01\x00"
CONNECT = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"
SUCCEEDED = b"\x05\x00\x00\x01" + bytes(6)


class Application(RawClient):
    async def greet(self) -> None:
        self.send(GREETING)
        assert await self.read(2) == b"\x05\x00"


class Proxy:
    def __init__(self, settings: ListenerSettings, source: FakeSource | None = None) -> None:
        self.source = source or FakeSource()
        self.listener = MixedListener(self.source, settings)
        self.address = self.listener.start()
        self.applications: list[Application] = []

    def application(self) -> Application:
        self.applications.append(Application(self.address))
        return self.applications[-1]

    async def connected(self) -> Application:
        """An application whose stream has been asked for."""
        application, before = self.application(), len(self.source.asked)
        await application.greet()
        application.send(CONNECT)
        await until(lambda: len(self.source.asked) > before)
        return application

    async def close(self) -> None:
        await self.listener.stop()
        for application in self.applications:
            application.sock.close()


@pytest.fixture
async def proxies() -> AsyncIterator[list[Proxy]]:
    started: list[Proxy] = []
    yield started
    for proxy in started:
        await proxy.close()


@pytest.fixture
async def proxy(proxies: list[Proxy]) -> Proxy:
    proxies.append(Proxy(HERE))
    return proxies[0]


# --- the life of a connection ---


async def test_from_a_negotiation_to_a_relay(proxy: Proxy) -> None:
    application = await proxy.connected()
    [asked] = proxy.source.asked
    assert (asked.protocol, asked.destination) == (StreamProtocol.TCP, TARGET)
    assert await application.is_ignored(), "success is not claimed before the stream is open"
    asked.open()
    assert await application.read(10) == SUCCEEDED
    application.send(b"question")
    await until(lambda: asked.stream.sent == b"question")
    asked.stream.handler.data_received(memoryview(b"answer"))
    assert await application.read(6) == b"answer"


async def test_a_negotiation_leaves_nothing_behind(proxy: Proxy) -> None:
    """The stream's label holds the connection, and an idle stream is to be small."""
    await proxy.connected()
    [asked] = proxy.source.asked
    connection = asked.stream.handler
    assert isinstance(connection, SocksConnection)
    assert connection._socks is not None
    negotiation = weakref.ref(connection._socks)
    gc.disable()
    try:
        asked.open()
        assert negotiation() is None
    finally:
        gc.enable()
    assert connection._stream is None


async def test_an_application_elsewhere_that_vanishes_is_missed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first byte on: the kernel asks it whether it is there."""
    accepted: list[socket.socket] = []

    def kept(sock: socket.socket, host: str, listens: str) -> None:
        prepare_accepted(sock, host, listens)
        accepted.append(sock)

    monkeypatch.setattr(listener, "prepare_accepted", kept)
    await proxy.application().greet()
    assert accepted[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_a_listener_without_a_descriptor_for_its_applications_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SocketGroup, "open", lambda _: False)
    with pytest.raises(OSError, match="Too many open files"):
        MixedListener(FakeSource(), HERE).start()


async def test_what_comes_behind_the_request_goes_first_into_the_stream(proxy: Proxy) -> None:
    application = proxy.application()
    application.send(GREETING + CONNECT + b"early")
    await until(lambda: proxy.source.asked)
    application.send(b", late")
    await settle()
    [asked] = proxy.source.asked
    assert not asked.stream.sent
    asked.open()
    await until(lambda: asked.stream.sent == b"early, late")


async def test_a_refusal_arrives_and_then_the_end(proxy: Proxy) -> None:
    application = await proxy.connected()
    proxy.source.asked[0].refuse(StreamReason.CONNECTION_REFUSED)
    assert await application.read(100) == b"\x05\x05\x00\x01" + bytes(6)


async def test_a_refusal_that_comes_at_once(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(HERE, FakeSource(StreamReason.NOT_ALLOWED)))
    application = proxies[0].application()
    application.send(GREETING + CONNECT)
    assert await application.read(100) == b"\x05\x00\x05\x02\x00\x01" + bytes(6)


async def test_an_application_that_gives_up_while_it_waits(
    proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the exit need not resolve a name any longer, nor connect. That takes no look."""
    monkeypatch.setattr(listener, "SILENT", replace(SILENT, look=1e6))
    proxies.append(Proxy(HERE))
    [proxy] = proxies
    application = await proxy.connected()
    set_reset_on_close(application.sock)
    application.sock.close()
    [asked] = proxy.source.asked
    await until(lambda: asked.stream.resets)
    assert asked.stream.resets == [StreamReason.CANCELLED]


async def test_an_application_that_gives_up_while_it_waits_for_the_link(proxies: list[Proxy]) -> None:
    """Its place was free only after the wait."""
    source = LateSource()
    proxies.append(Proxy(HERE, source))
    [proxy] = proxies
    application = proxy.application()
    application.send(GREETING + CONNECT)
    await until(lambda: source.begin)
    set_reset_on_close(application.sock)
    application.sock.close()
    await until(lambda: proxy.listener._connections == 0)
    stream = FakeStream()
    source.begin[0](stream)
    assert stream.resets == [StreamReason.CANCELLED]
    source.handlers[0].refused(StreamReason.LINK_DOWN)
    assert proxy.listener._connections == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who holds the other end")
async def test_an_application_that_ended_while_it_waits_is_missed_and_one_that_reads_on_is_not(
    proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that is not answered for, as while the session has no carrier, may wait for five minutes."""
    monkeypatch.setattr(listener, "SILENT", replace(SILENT, look=0.01))
    monkeypatch.setattr(listener, "EARLY", replace(EARLY, look=0.01, gone=0.05))
    proxies.append(Proxy(HERE))
    [proxy] = proxies
    gone, half_closed = await proxy.connected(), await proxy.connected()
    gone.sock.close()
    half_closed.send(b"question")
    half_closed.sock.shutdown(socket.SHUT_WR)
    first, second = proxy.source.asked
    await until(lambda: first.stream.resets)
    assert first.stream.resets == [StreamReason.CANCELLED]
    assert len(proxy.listener.early) == 1
    second.open()
    assert len(proxy.listener.early) == 0
    await until(lambda: second.stream.sent == b"question" and second.stream.send_half is not Half.OPEN)
    second.stream.handler.data_received(memoryview(b"answer"))
    assert await half_closed.read(16) == SUCCEEDED + b"answer"


async def test_an_application_that_leaves_while_it_waits(proxy: Proxy) -> None:
    application = await proxy.connected()
    application.sock.close()
    await settle()
    [asked] = proxy.source.asked
    asked.open()
    await until(lambda: asked.stream.send_half is not Half.OPEN)


async def test_a_stream_does_not_outlive_an_application_that_takes_no_reply(proxy: Proxy) -> None:
    """The relay, which would end it, has not begun."""
    application = await proxy.connected()
    set_reset_on_close(application.sock)
    application.sock.close()
    [asked] = proxy.source.asked
    asked.open()
    assert asked.stream.resets == [StreamReason.CANCELLED]


async def test_a_tunnel_that_breaks_before_its_relay_is_an_error_for_the_application(proxy: Proxy) -> None:
    application = proxy.application()
    application.send(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: proxy.source.asked)
    handler = proxy.source.asked[0].stream.handler
    handler.opened()
    handler.reset(StreamReason.SESSION_LOST)
    with pytest.raises(ConnectionResetError):
        await application.read(1_000)


async def test_an_end_in_the_middle_of_a_negotiation(proxy: Proxy) -> None:
    application = proxy.application()
    await application.greet()
    application.sock.shutdown(socket.SHUT_WR)
    assert await application.read(1) == b""


async def test_wrong_credentials(proxies: list[Proxy], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, socks_connection.__name__)
    proxies.append(Proxy(replace(HERE, credentials=Credentials.parse("user:secret"))))
    application = proxies[0].application()
    application.send(b"\x05\x01\x02\x01\x04user\x05wrong")
    assert await application.read(100) == b"\x05\x02\x01\x01"
    assert not proxies[0].source.asked
    assert "a SOCKS connection is refused: the SOCKS user or password is wrong" in caplog.text


async def test_http_by_its_first_byte(proxy: Proxy) -> None:
    application = proxy.application()
    application.send(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\nearly")
    await until(lambda: proxy.source.asked)
    [asked] = proxy.source.asked
    assert asked.destination == TARGET
    asked.open()
    assert (await application.read(12)) == b"HTTP/1.1 200"
    await until(lambda: asked.stream.sent == b"early")


async def test_what_a_tunnel_has_received_before_its_relay_is_not_lost(proxy: Proxy) -> None:
    application = proxy.application()
    application.send(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: proxy.source.asked)
    stream = proxy.source.asked[0].stream
    stream.handler.opened()
    stream.handler.data_received(memoryview(b"banner"))
    stream.end()
    assert (await application.read(1_000)).endswith(b"\r\n\r\nbanner")
    assert stream.taken == 6


# --- an application that is answered early ---

HTTP_CONNECT = b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def answered_early(proxy: Proxy, front: str) -> tuple[Application, Asked]:
    """An application that has its answer, and the exit has not said anything yet."""
    application = proxy.application()
    application.send(HTTP_CONNECT if front == "connect" else GREETING + CONNECT)
    await until(lambda: proxy.source.asked)
    [asked] = proxy.source.asked
    asked.expect()
    answer = ESTABLISHED if front == "connect" else b"\x05\x00" + SUCCEEDED
    assert await application.read(len(answer)) == answer
    return application, asked


FRONTS = pytest.mark.parametrize("front", ["socks", "connect"])


@FRONTS
async def test_what_an_application_says_travels_with_its_request(proxy: Proxy, front: str) -> None:
    application, asked = await answered_early(proxy, front)
    application.send(b"question")
    await until(lambda: asked.stream.sent == b"question")
    asked.open()
    asked.stream.handler.data_received(memoryview(b"answer"))
    assert await application.read(6) == b"answer"


@FRONTS
async def test_a_target_that_speaks_first_is_heard(proxy: Proxy, front: str) -> None:
    application, asked = await answered_early(proxy, front)
    await until(lambda: isinstance(asked.stream.handler, Relay))
    asked.open()
    asked.stream.handler.data_received(memoryview(b"banner"))
    assert await application.read(6) == b"banner"
    asked.stream.end()
    assert await application.read(1) == b""


@FRONTS
@pytest.mark.parametrize("said", [b"", b"question"])
async def test_a_refusal_behind_the_answer_is_a_reset(proxy: Proxy, front: str, said: bytes) -> None:
    application, asked = await answered_early(proxy, front)
    if said:
        application.send(said)
    await until(lambda: isinstance(asked.stream.handler, Relay) and asked.stream.sent == said)
    asked.refuse(StreamReason.CONNECTION_REFUSED)
    with pytest.raises(ConnectionResetError):
        await application.read(1)
    await until(lambda: proxy.listener._connections == 0)


@FRONTS
async def test_the_end_of_an_application_travels_too(proxy: Proxy, front: str) -> None:
    """It may still read, and the target learns of the end: as where the two are joined directly."""
    application, asked = await answered_early(proxy, front)
    application.send(b"question")
    application.sock.shutdown(socket.SHUT_WR)
    await until(lambda: asked.stream.sent == b"question" and asked.stream.send_half is not Half.OPEN)
    asked.open()
    asked.stream.handler.data_received(memoryview(b"answer"))
    asked.stream.end()
    assert await application.read(100) == b"answer"


@FRONTS
async def test_a_broken_application_gives_its_request_up(proxy: Proxy, front: str) -> None:
    application, asked = await answered_early(proxy, front)
    await until(lambda: isinstance(asked.stream.handler, Relay))
    set_reset_on_close(application.sock)
    application.sock.close()
    await until(lambda: asked.stream.resets)


# --- bounds ---


async def test_no_more_connections_than_the_bound(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(replace(HERE, max_connections=2)))
    [proxy] = proxies
    first, second = proxy.application(), proxy.application()
    await first.greet()
    await second.greet()
    third = proxy.application()
    third.send(GREETING)
    assert await third.is_ignored()
    first.sock.close()
    assert await third.read(2) == b"\x05\x00", "it waited in the kernel's queue"


async def test_another_bound_of_connections(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(replace(HERE, max_connections=3)))
    [proxy] = proxies
    first, second = proxy.application(), proxy.application()
    await first.greet()
    await second.greet()
    proxy.listener.take_limits(1, 0.0)
    third = proxy.application()
    third.send(GREETING)
    assert await third.is_ignored()
    first.sock.close()
    assert await third.is_ignored(), "there is one yet"
    proxy.listener.take_limits(2, 0.0)
    assert await third.read(2) == b"\x05\x00"


@pytest.mark.parametrize("upload", [True, False])
async def test_a_dead_application_is_seen_while_its_origin_is_silent(
    proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch, upload: bool
) -> None:
    """The origin takes nothing of an upload; or it has a whole request, and does not answer."""
    monkeypatch.setattr(listener, "REQUESTS", replace(REQUESTS, look=0.01))
    proxy = Proxy(HERE)
    proxies.append(proxy)
    application = proxy.application()
    size = 1 << 20 if upload else 0
    application.send(b"POST http://x/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    await until(lambda: proxy.source.asked)
    [asked] = proxy.source.asked
    if upload:
        asked.stream.room = 0
    asked.open()
    if upload:
        application.send(bytes(1 << 15))
        await until(lambda: asked.stream.asked)
    else:
        await until(lambda: asked.stream.sent)
    await settle()
    assert asked.stream.resets == []
    application.sock.close()
    await until(lambda: asked.stream.resets and proxy.listener._connections == 0)


@pytest.mark.parametrize("kind", ["socks", "relay", "refused", "udp", "http", "tunnel"])
async def test_every_connection_gives_its_place_back(proxies: list[Proxy], kind: str) -> None:
    proxies.append(Proxy(replace(HERE, max_connections=1)))
    [proxy] = proxies
    for _ in range(3):
        application = proxy.application()
        proxy.source.asked.clear()
        if kind == "http":
            application.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await application.read(12)).startswith(b"HTTP/1.1 4")
        elif kind == "tunnel":
            application.send(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: proxy.source.asked)
            proxy.source.asked[0].open()
            assert await application.read(12) == b"HTTP/1.1 200"
        else:
            await application.greet()
        if kind in ("relay", "refused", "udp"):
            application.send(CONNECT.replace(b"\x05\x01", b"\x05\x03") if kind == "udp" else CONNECT)
            await until(lambda: proxy.source.asked)
            if kind == "refused":
                proxy.source.asked[0].refuse(StreamReason.TIMED_OUT)
            else:
                proxy.source.asked[0].open()
            assert await application.read(10)
        if kind in ("relay", "tunnel"):
            proxy.source.asked[0].stream.end()
        application.sock.close()


@pytest.mark.parametrize("said", [b"", b"\x05", GREETING, b"\x04\x01\x01\xbb\xc0\x00\x02\x01"])
async def test_slow_negotiations_are_ended(proxies: list[Proxy], said: bytes) -> None:
    proxies.append(Proxy(replace(HERE, negotiation_timeout=0.05)))
    [proxy] = proxies
    application = proxy.application()
    application.send(said)
    got = await application.read(100)
    assert got in (b"", b"\x05\x00")
    again = proxy.application()
    assert await again.read(1) == b"", "and the next ones, too"


async def test_a_slow_head_of_http_is_answered_and_ended(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(replace(HERE, negotiation_timeout=0.05)))
    application = proxies[0].application()
    application.send(b"GET http://x/ HT")
    async with asyncio.timeout(20):  # the proxy's own default is 30 s
        assert (await application.read(1_000)).startswith(b"HTTP/1.1 408 ")


async def test_the_time_of_a_negotiation_ends_with_the_negotiation(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(replace(HERE, negotiation_timeout=0.05)))
    [proxy] = proxies
    application = await proxy.connected()
    assert await proxy.application().read(1) == b"", "the time is over"
    proxy.source.asked[0].open()
    assert await application.read(10) == SUCCEEDED


# --- the end ---


async def test_stopping_ends_everything(proxy: Proxy) -> None:
    negotiating = proxy.application()
    await negotiating.greet()
    relayed = await proxy.connected()
    proxy.source.asked[0].open()
    assert await relayed.read(10) == SUCCEEDED
    http = proxy.application()
    http.send(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: len(proxy.source.asked) == 2)
    await proxy.listener.stop()
    assert await negotiating.read(1) == b""
    assert proxy.source.asked[0].stream.resets == [StreamReason.SHUTTING_DOWN]
    assert proxy.source.asked[1].stream.resets == [StreamReason.CANCELLED]
    with pytest.raises(ConnectionRefusedError):
        proxy.application()


# --- faults of this program ---


def fault(*_: object) -> None:
    raise ZeroDivisionError


async def test_a_fault_ends_the_one_connection(
    proxies: list[Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    """Its socket stayed readable, or was never looked at again, and its place was lost."""
    proxies.append(Proxy(replace(HERE, max_connections=1)))
    [proxy] = proxies
    application = proxy.application()
    await application.greet()
    proxy.source.request = fault  # type: ignore[method-assign,assignment]
    application.send(CONNECT)
    assert await application.read(1) == b""
    [record] = caplog.records
    assert record.getMessage() == "a fault in this program ends an application's connection"
    await proxy.application().greet()


async def test_a_fault_behind_a_refusal_frees_one_place(
    proxies: list[Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(FakeSource):
        def request(self, *arguments: Any) -> None:
            super().request(*arguments)
            raise ZeroDivisionError

    proxies.append(Proxy(HERE, Faulty(StreamReason.NOT_ALLOWED)))
    application = proxies[0].application()
    application.send(GREETING + CONNECT)
    assert await application.read(100) == b"\x05\x00\x05\x02\x00\x01" + bytes(6)
    application.sock.close()
    await until(lambda: proxies[0].listener._connections <= 0)
    await settle()
    assert proxies[0].listener._connections == 0
    assert len(caplog.records) == 1


async def test_a_fault_when_a_relay_begins_ends_both_sides(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    application = proxy.application()
    application.send(GREETING + CONNECT + b"early")
    await until(lambda: proxy.source.asked)
    [asked] = proxy.source.asked
    asked.stream.send = fault  # type: ignore[method-assign,assignment]
    asked.open()
    assert asked.stream.resets == [StreamReason.GENERAL]
    assert len(caplog.records) == 1
    await until(lambda: proxy.listener._connections == 0)


async def test_negotiations_are_bounded_in_time_also_after_a_fault(
    proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer was not set again."""
    proxies.append(Proxy(replace(HERE, negotiation_timeout=0.05)))
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    first, second = proxies[0].application(), proxies[0].application()
    await until(lambda: len(proxies[0].listener._negotiating) == 2)
    connection = proxies[0].listener._negotiating[0][1]
    ends = SocksConnection.close

    def close(self: SocksConnection) -> None:
        if self is connection and not faults:
            raise ZeroDivisionError
        ends(self)

    monkeypatch.setattr(SocksConnection, "close", close)
    assert await second.read(1) == b""
    assert len(faults) == 1
    connection.close()
    assert await first.read(1) == b""


async def test_visitors_of_our_own_page_count_as_all_applications_do(proxies: list[Proxy]) -> None:
    proxies.append(Proxy(replace(HERE, max_connections=1)))
    [proxy] = proxies
    for _ in range(2):
        visitor, taken = socket.socketpair()
        one_too_many, closed = socket.socketpair()
        with visitor, one_too_many:
            proxy.listener.serve_visitor(taken, "127.0.0.1")
            proxy.listener.serve_visitor(closed, "127.0.0.1")
            assert closed.fileno() == -1
            visitor.sendall(
                b"GET / HTTP/1.1\r\nHost: cryprq.test\r\nUser-Agent: curl/8\r\nConnection: close\r\n\r\n"
            )
            got = b""
            visitor.setblocking(False)
            while piece := await proxy.listener.loop.sock_recv(visitor, 4096):
                got += piece
            assert got.startswith(b"HTTP/1.1 200 ") and b"Names: unknown: there is no link" in got
        await until(lambda: not proxy.listener._connections)
    assert not proxy.source.asked
