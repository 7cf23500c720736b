"""What the kernel tells of the other end of a connection; over loopback, where it tells at once."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from cryprq_proxy.base import far_end
from cryprq_proxy.base.far_end import FarEnd, Holder, has_unread, holder_of, look_at, unanswered
from cryprq_proxy.base.sockets import set_reset_on_close
from tests.support.settle import until
from tests.support.visits import tcp_pair

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this kernel tells nothing")


class Ends:
    def __init__(self) -> None:
        self.far, self.own = tcp_pair()

    def fill(self) -> None:
        """The far end sends until nothing more fits, so that its FIN would have to wait."""
        try:
            while True:
                self.far.send(bytes(1 << 16))
        except BlockingIOError:
            pass


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.far.close()
    ends.own.close()


async def test_a_living_end(ends: Ends) -> None:
    ends.far.send(b"unread")
    assert look_at(ends.own) is FarEnd.THERE
    assert holder_of(ends.own) is not Holder.NOBODY


async def test_an_end_that_has_ended_its_half_is_there(ends: Ends) -> None:
    ends.far.shutdown(socket.SHUT_WR)
    await until(lambda: look_at(ends.own) is FarEnd.ENDED)
    assert holder_of(ends.own) is not Holder.NOBODY
    ends.far.close()
    await until(lambda: holder_of(ends.own) is Holder.NOBODY)
    assert look_at(ends.own) is FarEnd.ENDED


async def test_an_end_whose_program_died_with_its_fin_behind_unread_data(ends: Ends) -> None:
    ends.fill()
    assert holder_of(ends.own) is not Holder.NOBODY
    ends.far.close()
    await until(lambda: holder_of(ends.own) is Holder.NOBODY)
    assert look_at(ends.own) is FarEnd.THERE, "its FIN has not come"


async def test_a_reset_is_seen_and_its_error_is_left_to_the_reader(ends: Ends) -> None:
    ends.far.send(b"unread")
    set_reset_on_close(ends.far)
    ends.far.close()
    await until(lambda: look_at(ends.own) is FarEnd.OVER)
    assert holder_of(ends.own) is not Holder.NOBODY
    assert ends.own.recv(100) == b"unread"
    with pytest.raises(ConnectionResetError):
        ends.own.recv(100)


async def test_what_is_no_tcp_connection_is_there() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert look_at(left) is FarEnd.THERE
        assert holder_of(left) is Holder.UNKNOWN
    assert look_at(left) is FarEnd.THERE
    assert holder_of(left) is Holder.UNKNOWN
    with socket.socket() as unconnected:
        assert holder_of(unconnected) is Holder.UNKNOWN


class Told:
    """A socket of which the kernel tells this."""

    def __init__(self, probes: int, unacked: int, milliseconds: int, size: int = 60) -> None:
        info = bytearray(60)
        info[0], info[3] = 1, probes
        struct.pack_into("=I", info, 24, unacked)
        struct.pack_into("=I", info, 56, milliseconds)
        self._info = bytes(info[:size])

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._info[:size]


@pytest.mark.parametrize(
    ("told", "end"),
    [
        (Told(0, 0, 10_000_000), FarEnd.THERE),
        (Told(0, 3, 179_999), FarEnd.THERE),
        (Told(0, 3, 180_000), FarEnd.SILENT),
        (Told(4, 0, 179_999), FarEnd.THERE),
        (Told(4, 0, 180_000), FarEnd.SILENT),
        (Told(4, 3, 10_000_000, size=40), FarEnd.THERE),
    ],
)
def test_silence_counts_while_an_answer_is_due(told: Told, end: FarEnd) -> None:
    assert look_at(cast(socket.socket, told)) is end


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (Told(0, 0, 10_000), 0.0),
        (Told(0, 3, 120), 0.12),
        (Told(4, 0, 120), 0.12),
        (Told(4, 3, 120, size=40), float("inf")),
    ],
)
def test_for_how_long_an_acknowledgement_is_due(told: Told, seconds: float) -> None:
    assert unanswered(cast(socket.socket, told)) == seconds


async def test_what_the_far_end_has_acknowledged_is_answered(ends: Ends) -> None:
    ends.own.send(b"something")
    await until(lambda: unanswered(ends.own) == 0.0)
    ends.own.close()
    assert unanswered(ends.own) == float("inf"), "nothing is known"


def test_without_tcp_info_nothing_is_known(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_end, "_TCP_INFO", 0)
    set_reset_on_close(ends.far)
    ends.far.close()
    assert look_at(ends.own) is FarEnd.THERE
    assert unanswered(ends.own) == float("inf")


async def test_who_holds_an_end(ends: Ends) -> None:
    assert holder_of(ends.own) is Holder.PROGRAM
    ends.far.close()
    await until(lambda: holder_of(ends.own) is Holder.NOBODY)
    with socket.socket() as unconnected:
        assert holder_of(unconnected) is Holder.UNKNOWN


async def test_unread_bytes_are_seen_and_left(ends: Ends) -> None:
    assert not has_unread(ends.own)
    ends.far.send(b"unread")
    await until(lambda: has_unread(ends.own))
    set_reset_on_close(ends.far)
    ends.far.close()
    await until(lambda: look_at(ends.own) is FarEnd.OVER)
    assert has_unread(ends.own)
    assert ends.own.recv(100) == b"unread"
    assert not has_unread(ends.own)
    with pytest.raises(ConnectionResetError):
        ends.own.recv(100)
    ends.own.close()
    assert not has_unread(ends.own)


@pytest.mark.parametrize(
    ("told", "end"),
    [
        (b"\4\0\0\0", FarEnd.THERE),
        (b"\5\0\0\0", FarEnd.ENDED),
        (b"\0\0\0\0", FarEnd.OVER),
        (b"", FarEnd.THERE),
        (errno.ECONNRESET, FarEnd.OVER),
        (errno.EINVAL, FarEnd.THERE),
    ],
)
def test_what_macos_tells(told: bytes | int, end: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of TCP_CONNECTION_INFO, in the numbers of netinet/tcp_fsm.h."""
    asked = []

    class Mac(socket.socket):
        def getsockopt(self, *arguments: int) -> bytes:  # type: ignore[override]
            asked.append(arguments)
            if isinstance(told, int):
                raise OSError(told, os.strerror(told))
            return told

    monkeypatch.setattr(sys, "platform", "darwin")
    with Mac() as sock:
        assert look_at(sock) is end
    assert asked == [(socket.IPPROTO_TCP, 0x106, 4)]
