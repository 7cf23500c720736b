"""Tests of cryprq_proxy/base/sockets.py."""

from __future__ import annotations

import socket

import pytest

from cryprq_proxy.base.sockets import prepare


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
