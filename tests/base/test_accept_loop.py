"""Tests of cryprq_proxy/base/accept_loop.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from cryprq_proxy.base.accept_loop import ACCEPTS, Acceptor, protocol_acceptor
from cryprq_proxy.base.descriptors import Shortage
from tests.support.descriptors import no_free_descriptor


class FakeLoop:
    """An event loop as an acceptor sees it, on a virtual clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reader: Callable[[], None] | None = None
        self.due: float | None = None
        self._callback: Callable[[], None] | None = None

    def add_reader(self, fd: socket.socket, callback: Callable[[], None], /) -> None:
        assert self.reader is None
        self.reader = callback

    def remove_reader(self, fd: socket.socket, /) -> None:
        assert self.reader is not None
        self.reader = None

    def call_later(self, delay: float, callback: Callable[[], None], /) -> FakeLoop:
        self.due, self._callback = self.now + delay, callback
        return self

    def cancel(self) -> None:
        self.due = self._callback = None

    def wake(self) -> None:
        """The listening socket is readable."""
        assert self.reader is not None
        self.reader()

    def wait(self) -> float:
        """Let the next timer end; the seconds that it took."""
        assert self.due is not None
        assert self._callback is not None
        took, self.now = self.due - self.now, self.due
        callback = self._callback
        self.cancel()
        callback()
        return took


class FakeConnection:
    def __init__(self, host: str) -> None:
        self.host = host
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeListener:
    """A listening socket whose `accept` follows a script: hosts and errors; then nothing is queued."""

    def __init__(self, *script: str | int) -> None:
        self.script = list(script)
        self.taken: list[FakeConnection] = []
        self.closed = False

    def accept(self) -> tuple[FakeConnection, tuple[str, int]]:
        step = self.script.pop(0) if self.script else errno.EAGAIN
        if isinstance(step, int):
            raise OSError(step, os.strerror(step))
        self.taken.append(FakeConnection(step))
        return self.taken[-1], (step, 1)

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def close(self) -> None:
        self.closed = True


class Accepting:
    def __init__(self, *script: str | int, urgent: bool = False) -> None:
        self.loop = FakeLoop()
        self.listener = FakeListener(*script)
        self.hosts: list[str] = []
        self.shortage = Shortage(lambda: self.loop.now)
        self.acceptor = self.acceptor_for(self._accepted, urgent=urgent)
        self.acceptor.start()

    def acceptor_for(self, accepted: Callable[[Any, str], None], *, urgent: bool = False) -> Acceptor:
        return Acceptor(
            cast("asyncio.AbstractEventLoop", self.loop),
            cast("socket.socket", self.listener),
            accepted,
            urgent=urgent,
            shortage=self.shortage,
        )

    def _accepted(self, sock: FakeConnection, host: str) -> None:
        assert sock.host == host
        self.hosts.append(host)

    @property
    def shed(self) -> list[str]:
        return [connection.host for connection in self.listener.taken if connection.closed]


def test_connections_are_accepted_up_to_the_bound_of_a_wake_up() -> None:
    one = Accepting(*map(str, range(ACCEPTS + 3)))
    one.loop.wake()
    assert one.hosts == [str(number) for number in range(ACCEPTS)]
    one.loop.wake()
    assert len(one.hosts) == ACCEPTS + 3
    assert one.loop.due is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_machine_without_resources_is_given_time(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """One connection of the queue is closed each second, and one line a minute says why."""
    script: list[str | int] = ["a"]
    for second in range(61):
        script += [number, f"shed {second}"]
    one = Accepting(*script, "b", "c")
    one.loop.wake()
    assert one.hosts == ["a"]
    for second in range(61):
        # The queue keeps the socket readable: nothing may look at it meanwhile.
        assert one.loop.reader is None
        assert len(one.shed) == second + 1
        assert one.loop.wait() == pytest.approx(1.0)
        one.loop.wake()
    assert one.hosts == ["a", "b", "c"]
    assert one.loop.due is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(
        f"connections wait or fail: {os.strerror(number).lower()} (this process may open "
    )
    assert lines[1].endswith("; 59 other failures were not logged")


def test_what_is_urgent_is_served_with_the_spare_descriptor() -> None:
    one = Accepting(errno.EMFILE, "a", errno.EMFILE, "b", urgent=True)
    one.loop.wake()
    assert one.hosts == ["a"] and not one.shed
    assert one.loop.reader is None
    one.acceptor.start()
    one.loop.wake()
    assert one.hosts == ["a", "b"] and not one.shed


def test_without_anything_in_the_queue_the_spare_descriptor_is_kept() -> None:
    one = Accepting(errno.EMFILE)
    one.loop.wake()
    assert not one.listener.taken
    assert one.acceptor._spare._held >= 0
    one.acceptor.close()
    assert one.acceptor._spare._held < 0


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH])
def test_an_error_of_one_connection_costs_the_next_one_nothing(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    one = Accepting(number, "a", number, "b")
    one.loop.wake()
    assert one.hosts == ["a", "b"]
    assert one.loop.reader is not None
    assert not caplog.records


def test_errors_of_connections_count_in_the_bound_of_a_wake_up() -> None:
    one = Accepting(*[errno.ECONNABORTED] * (ACCEPTS + 1), "a")
    one.loop.wake()
    assert not one.hosts
    assert len(one.listener.script) == 2


def test_who_has_enough_connections_stops_in_the_middle_of_a_wake_up() -> None:
    one = Accepting()
    one.acceptor.stop()
    one.listener.script = ["a", "b", "c"]
    accepted: list[str] = []

    def take(sock: Any, host: str) -> None:
        accepted.append(host)
        if len(accepted) == 2:
            acceptor.stop()

    acceptor = one.acceptor_for(take)
    acceptor.start()
    one.loop.wake()
    assert accepted == ["a", "b"]
    assert one.loop.reader is None
    acceptor.start()
    one.loop.wake()
    assert accepted == ["a", "b", "c"]


def test_an_end_during_a_pause_is_an_end() -> None:
    one = Accepting(errno.EMFILE)
    one.loop.wake()
    one.acceptor.close()
    assert one.loop.due is None
    assert one.loop.reader is None
    assert one.listener.closed


def test_a_start_during_a_pause_ends_it() -> None:
    """A connection that ended has freed a descriptor."""
    one = Accepting(errno.EMFILE, "shed", "a")
    one.loop.wake()
    one.acceptor.start()
    one.loop.wake()
    assert one.hosts == ["a"]
    assert one.loop.due is None
    assert one.loop.reader is not None


async def test_a_full_table_of_descriptors_is_survived() -> None:
    """With real sockets, and as many descriptors as the process may have."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(loop, listener, lambda sock, host: arrived.put_nowait(sock))
    with socket.socket() as first, socket.socket() as second, contextlib.ExitStack() as stack:
        stack.callback(acceptor.close)
        for client in (first, second):
            client.connect(listener.getsockname())
            client.setblocking(False)
        with no_free_descriptor():
            acceptor.start()
            assert await asyncio.wait_for(loop.sock_recv(first, 1), 10) == b""
            assert arrived.empty()
        (await asyncio.wait_for(arrived.get(), 10)).close()


async def test_a_protocol_of_asyncio_is_served_without_its_server() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = protocol_acceptor(loop, listener, Greeting)
    acceptor.start()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    assert await reader.read() == b"hello"
    writer.close()
    acceptor.close()


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


async def test_a_fault_ends_the_one_connection_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it had registered at the loop would otherwise be called for the next socket of the same number."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served: list[socket.socket] = []
        broken: list[int] = []

        def accepted(sock: socket.socket, host: str) -> None:
            if not broken:
                broken.append(sock.fileno())
                loop.add_reader(sock, served.append, sock)
                raise ZeroDivisionError
            served.append(sock)

        acceptor = Acceptor(loop, listener, accepted)
        with contextlib.ExitStack() as applications:
            first, second = (
                applications.enter_context(socket.create_connection(listener.getsockname())) for _ in range(2)
            )
            acceptor.start()
            acceptor._on_acceptable()
            first.setblocking(False)
            assert await loop.sock_recv(first, 1) == b""
            [sock] = served
            assert not loop.remove_reader(broken[0])
            sock.send(b"x")
            assert second.recv(1) == b"x"
            sock.close()
        acceptor.close()
    assert [record.getMessage() for record in caplog.records] == [
        "a fault in this program ends a connection that has just begun"
    ]
