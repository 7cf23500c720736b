from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Self

import pytest

from cryprq_proxy.base.netlink import NetlinkSocket
from tun.linux.firewall import tunnel_sockets
from tun.linux.firewall.tunnel_sockets import end_tunnel_sockets

TUNNEL = (IPv4Address("198.18.0.2"), IPv6Address("fd00::2"))


def message(family: int, address: str, port: int) -> bytes:
    """An inet_diag_msg."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return bytes((family, 1, 0, 0)) + port.to_bytes(2) + bytes(2) + packed.ljust(16, b"\0") + bytes(28 + 20)


class Kernel(NetlinkSocket):
    """Stands for sock_diag: what it has, by family, and the ports of what was destroyed."""

    def __init__(self, *messages: bytes, refuses: int = 0) -> None:
        self.messages, self.refuses = messages, refuses
        self.destroyed: list[int] = []

    def __call__(self, protocol: int) -> Self:
        assert protocol == 4
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        assert body[1] == socket.IPPROTO_TCP
        if kind == 20:
            yield from ((20, message) for message in self.messages if message[0] == body[0])
            yield 20, b"cut off"
        elif self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        else:
            assert kind == 21
            self.destroyed.append(int.from_bytes(body[8:10]))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(
        message(socket.AF_INET, "198.18.0.2", 1),
        message(socket.AF_INET, "192.168.1.5", 2),
        message(socket.AF_INET6, "fd00::2", 3),
        message(socket.AF_INET6, "::ffff:198.18.0.2", 4),
        message(socket.AF_INET6, "2001:db8::1", 5),
    )
    monkeypatch.setattr(tunnel_sockets, "NetlinkSocket", kernel)
    return kernel


def test_those_of_the_tunnel_end_and_no_others(kernel: Kernel) -> None:
    assert end_tunnel_sockets(TUNNEL) == 3
    assert kernel.destroyed == [1, 3, 4]


def test_without_addresses_nothing_ends(kernel: Kernel) -> None:
    assert end_tunnel_sockets(()) == 0
    assert kernel.destroyed == []


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EOPNOTSUPP, errno.EPERM])
def test_what_the_kernel_refuses_is_no_failure(kernel: Kernel, code: int) -> None:
    kernel.refuses = code
    assert end_tunnel_sockets(TUNNEL) == 0
