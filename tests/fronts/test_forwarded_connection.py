"""Local forwards: an application that connects has its stream, without a word said before."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.errors import LocalError, StreamReason
from cryprq_proxy.fronts.listener import MixedListener, listening_socket
from cryprq_proxy.session.streams import Half
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_source import FakeSource, LateSource
from tests.support.raw_client import RawClient
from tests.support.settings import listener_settings
from tests.support.settle import settle, until

HERE = listener_settings(Destination("127.0.0.1", 0), max_connections=2)
DATABASE = Destination("db.internal", 5432)


class Forwarding:
    """A listener with one forward, and the applications that use it."""

    def __init__(self, source: FakeSource) -> None:
        self.source = source
        self.listener = MixedListener(source, replace(HERE))
        self.proxy = self.listener.start()
        self.forward = self.listener.forward(listening_socket(Destination("127.0.0.1", 0)), DATABASE)
        self.address = self.forward.listen
        self.applications: list[RawClient] = []

    def application(self, address: Destination | None = None) -> RawClient:
        self.applications.append(RawClient(address or self.address))
        return self.applications[-1]

    async def close(self) -> None:
        """As a client ends: those that wait are told by their exit."""
        await self.listener.stop()
        for asked in self.source.asked:
            asked.refuse(StreamReason.SHUTTING_DOWN)
        for application in self.applications:
            application.sock.close()


@pytest.fixture
async def forwarding() -> AsyncIterator[Forwarding]:
    forwarding = Forwarding(FakeSource())
    yield forwarding
    await forwarding.close()


async def test_both_directions_and_their_ends(forwarding: Forwarding) -> None:
    application = forwarding.application()
    await until(lambda: forwarding.source.asked)
    [asked] = forwarding.source.asked
    assert (asked.protocol, asked.destination) == (StreamProtocol.TCP, DATABASE)
    asked.open()
    asked.stream.handler.data_received(memoryview(b"banner"))
    assert await application.read(6) == b"banner"
    application.send(b"question")
    application.sock.shutdown(socket.SHUT_WR)
    await until(lambda: asked.stream.sent == b"question" and asked.stream.send_half is not Half.OPEN)
    asked.stream.receive_half = Half.CLOSED
    asked.stream.handler.eof_received()
    assert await application.read(1) == b""
    await until(lambda: forwarding.listener._connections == 0)
    [count] = forwarding.listener.forwards
    assert (count.listen, count.to, count.connections) == (forwarding.address, DATABASE, 1)


async def test_what_is_said_while_the_target_is_connected_is_not_lost(forwarding: Forwarding) -> None:
    application = forwarding.application()
    application.send(b"early")
    await until(lambda: forwarding.source.asked)
    [asked] = forwarding.source.asked
    await settle()
    asked.expect()
    await until(lambda: asked.stream.sent == b"early")


async def test_a_refusal_is_a_reset(forwarding: Forwarding) -> None:
    application = forwarding.application()
    await until(lambda: forwarding.source.asked)
    forwarding.source.asked[0].refuse(StreamReason.CONNECTION_REFUSED)
    with pytest.raises(ConnectionResetError):
        await application.read(1)
    await until(lambda: forwarding.listener._connections == 0)


async def test_a_refusal_at_once() -> None:
    forwarding = Forwarding(FakeSource(StreamReason.NOT_ALLOWED))
    application = forwarding.application()
    with pytest.raises(ConnectionResetError):
        await application.read(1)
    assert forwarding.listener._connections == 0
    await forwarding.close()


async def test_an_application_that_goes_while_the_link_is_down() -> None:
    source = LateSource()
    forwarding = Forwarding(source)
    application = forwarding.application()
    await until(lambda: source.begin)
    set_reset_on_close(application.sock)
    application.sock.close()
    await until(lambda: forwarding.listener._connections == 0)
    await forwarding.close()


async def test_forwards_and_proxy_have_one_number_of_connections(forwarding: Forwarding) -> None:
    first, second = forwarding.application(), forwarding.application()
    await until(lambda: len(forwarding.source.asked) == 2)
    third = forwarding.application(forwarding.proxy)
    third.send(b"\x05\x01\x00")
    assert await third.is_ignored()
    forwarding.source.asked[0].refuse(StreamReason.GENERAL)
    assert await third.read(2) == b"\x05\x00"
    first.sock.close()
    second.sock.close()


async def test_only_a_listener_that_runs_forwards() -> None:
    with listening_socket(Destination("127.0.0.1", 0)) as sock, pytest.raises(LocalError):
        MixedListener(FakeSource(), HERE).forward(sock, DATABASE)
