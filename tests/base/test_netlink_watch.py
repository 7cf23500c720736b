"""Changes that the kernel tells: a socket that stands for the kernel's."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from cryprq_proxy.base import changes as changes_module
from cryprq_proxy.base import netlink_watch
from cryprq_proxy.base.changes import LEAST_PAUSE, MOST_PAUSE, NoChanges, pause
from cryprq_proxy.base.netlink_watch import netlink_changes


class FakeSocket(socket.socket):
    """Readable when the test has sent to it; bound to nothing."""

    full = False

    def bind(self, address: object) -> None:
        self.bound = address

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if self.full:
            self.full = False
            raise OSError(errno.ENOBUFS, "messages were lost")
        return data


type Ends = tuple[socket.socket, FakeSocket]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """The kernel's end, and ours."""
    kernel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours = FakeSocket(fileno=other.detach())
    monkeypatch.setattr(netlink_watch, "netlink_socket", lambda protocol: ours)
    with kernel:
        yield kernel, ours


async def test_each_change_is_told_once(ends: Ends) -> None:
    kernel, ours = ends
    with netlink_changes(5) as changes:
        assert ours.bound == (0, 5)
        kernel.send(b"message")
        kernel.send(b"another")
        await changes.wait()
        waiting = asyncio.ensure_future(changes.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        kernel.send(b"later")
        await waiting
    assert ours.fileno() == -1


async def test_lost_messages_are_a_change(ends: Ends) -> None:
    kernel, ours = ends
    with netlink_changes() as changes:
        ours.full = True
        kernel.send(b"lost")
        await changes.wait()


async def test_where_the_kernel_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="not supported"):
        netlink_changes()
    with NoChanges() as none:
        waiting = asyncio.ensure_future(none.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


def test_a_look_that_takes_long_is_taken_less_often() -> None:
    assert pause(0.0) == LEAST_PAUSE
    assert pause(0.05) == pytest.approx(0.2)
    assert pause(60.0) == MOST_PAUSE < 1


async def test_a_socket_that_gives_nothing_but_errors_is_left(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stayed readable, and each turn of the loop logged the same error."""
    monkeypatch.setattr(changes_module, "LOST_SECONDS", 0.01)
    kernel, ours = ends
    failures = 0

    def recv(size: int, flags: int = 0) -> bytes:
        nonlocal failures
        failures += 1
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(ours, "recv", recv)
    with netlink_changes() as changes:
        kernel.send(b"message")
        for _ in range(3):
            await changes.wait()
    assert failures == 1
    [record] = caplog.records
    assert record.getMessage() == (
        "the kernel tells no more changes (cannot allocate memory), so each second is looked"
    )
