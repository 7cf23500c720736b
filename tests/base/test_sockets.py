"""Tests of cryprq_proxy/base/sockets.py."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys

import pytest

from cryprq_proxy.base import sockets
from cryprq_proxy.base.sockets import (
    KEEPALIVE_IDLE,
    UNSENT,
    bound_unsent,
    keep_alive,
    prepare,
    prepare_accepted,
    prepare_listener,
)
from tests.support.visits import tcp_pair

SIOCOUTQNSD = 0x894B
"""ioctl: bytes that the kernel has and has not sent."""


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.9", "::1", "2001:db8::1"])
def test_sockets_are_non_blocking_and_prompt(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        assert prepare(sock, host) is sock
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system names no congestion control")
@pytest.mark.parametrize(
    ("host", "local"), [("127.8.8.8", True), ("::1", True), ("128.0.0.1", False), ("::2", False)]
)
def test_only_what_stays_on_this_machine_is_not_paced(host: str, local: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as untouched, socket.socket(family) as sock:
        before = untouched.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        after = prepare(sock, host).getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert after.rstrip(b"\0") == (b"reno" if local else before.rstrip(b"\0"))


@pytest.mark.parametrize("inherits", [True, False])
@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
def test_what_a_listener_accepts_is_as_a_socket_that_was_prepared(
    monkeypatch: pytest.MonkeyPatch, listens: str, inherits: bool
) -> None:
    if inherits and sys.platform != "linux":
        pytest.skip("only Linux gives a connection the options of its listener")
    monkeypatch.setattr(sockets, "_INHERITS", inherits)
    with socket.create_server((listens, 0)) as listener:
        if inherits:
            prepare_listener(listener, listens)
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
            accepted, (host, _) = listener.accept()
            with accepted:
                prepare_accepted(accepted, host, listens)
                assert not accepted.getblocking()
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE
                if hasattr(socket, "TCP_CONGESTION"):
                    control = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                    assert control.rstrip(b"\0") == b"reno"


def test_the_kernel_asks_a_quiet_end_whether_it_is_there() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            idle, interval, count = (
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names
            )
            assert idle + interval * count == 90


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other ioctls")
@pytest.mark.parametrize("bounded", [True, False])
def test_the_kernel_keeps_little_for_an_end_that_does_not_read(bounded: bool) -> None:
    piece = bytes(1 << 16)
    far, own = tcp_pair()
    with far, own:
        if bounded:
            bound_unsent(own)
        try:
            while True:
                own.send(piece)
        except BlockingIOError:
            pass
        (unsent,) = struct.unpack("i", fcntl.ioctl(own, SIOCOUTQNSD, bytes(4)))
        assert (unsent <= UNSENT + len(piece)) is bounded


def test_an_end_that_has_gone_is_left_to_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS refuses every option of a connection that was reset (EINVAL); the reader is told of it soon."""

    class Reset(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(sockets, "_INHERITS", False)
    with Reset() as sock:
        prepare_accepted(sock, "203.0.113.9", "127.0.0.1")
        bound_unsent(sock)
        sockets.set_reset_on_close(sock)
        assert not sock.getblocking()


@pytest.mark.parametrize(("platform", "size"), [("darwin", 65_535), ("linux", None)])
def test_macos_sends_large_datagrams_from_a_large_buffer(
    platform: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sockets.let_send_largest(sock)
        now = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert now in ((before,) if size is None else (size, 2 * size))


def test_a_mark_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may leave unmarked that somebody wanted marked."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.socket() as sock, pytest.raises(OSError, match="not available"):
        sockets.set_mark(sock, 1)
