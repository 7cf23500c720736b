"""Tests of cryprq_proxy/base/accept_loop.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import cast

import pytest

from cryprq_proxy.base import accept_loop
from cryprq_proxy.base.accept_loop import ACCEPTS, Acceptor


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


class FakeListener:
    """A listening socket whose `accept` follows a script: hosts and errors; then nothing is queued."""

    def __init__(self, *script: str | int) -> None:
        self.script = list(script)
        self.closed = False

    def accept(self) -> tuple[str, tuple[str, int]]:
        step = self.script.pop(0) if self.script else errno.EAGAIN
        if isinstance(step, int):
            raise OSError(step, os.strerror(step))
        return f"from {step}", (step, 1)

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def close(self) -> None:
        self.closed = True


class Accepting:
    def __init__(self, *script: str | int) -> None:
        self.loop = FakeLoop()
        self.listener = FakeListener(*script)
        self.hosts: list[str] = []
        self.acceptor = self.acceptor_for(self._accepted)
        self.acceptor.start()

    def acceptor_for(self, accepted: Callable[[object, str], None]) -> Acceptor:
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        return Acceptor(loop, cast("socket.socket", self.listener), accepted)

    def _accepted(self, sock: object, host: str) -> None:
        assert sock == f"from {host}"
        self.hosts.append(host)


def test_connections_are_accepted_up_to_the_bound_of_a_wake_up() -> None:
    one = Accepting(*map(str, range(ACCEPTS + 3)))
    one.loop.wake()
    assert one.hosts == [str(number) for number in range(ACCEPTS)]
    one.loop.wake()
    assert len(one.hosts) == ACCEPTS + 3
    assert one.loop.due is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_machine_without_resources_is_given_time(number: int, caplog: pytest.LogCaptureFixture) -> None:
    one = Accepting("a", *[number] * 6, "b", "c")
    one.loop.wake()
    assert one.hosts == ["a"]
    pauses = []
    for _ in range(6):
        # The queue keeps the socket readable: nothing may look at it meanwhile.
        assert one.loop.reader is None
        pauses.append(one.loop.wait())
        one.loop.wake()
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert one.hosts == ["a", "b", "c"]
    assert one.loop.due is None
    assert [record.getMessage() for record in caplog.records] == [
        f"new connections cannot be accepted for now: {os.strerror(number).lower()}"
    ]


def test_the_next_failure_after_success_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    one = Accepting(errno.EMFILE)
    one.loop.wake()
    one.loop.wait()
    one.loop.wake()
    one.listener.script = [errno.EMFILE]
    one.loop.wake()
    assert one.loop.wait() == pytest.approx(0.1)
    assert len(caplog.records) == 2


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

    def take(sock: object, host: str) -> None:
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
    one = Accepting(errno.EMFILE, "a")
    one.loop.wake()
    one.acceptor.start()
    one.loop.wake()
    assert one.hosts == ["a"]
    one.loop.wait()
    assert one.loop.reader is not None


async def test_a_full_table_of_descriptors_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real socket, and as many descriptors as the process may have."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(loop, listener, lambda sock, host: arrived.put_nowait(sock))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    with socket.socket() as client, contextlib.ExitStack() as stack:
        stack.callback(acceptor.close)
        client.connect(listener.getsockname())
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(client.fileno()))
        failed = asyncio.Event()
        monkeypatch.setattr(accept_loop._log, "warning", lambda *_: failed.set())
        acceptor.start()
        await asyncio.wait_for(failed.wait(), 10)
        assert arrived.empty()
        for number in taken:
            os.close(number)
        (await asyncio.wait_for(arrived.get(), 10)).close()
