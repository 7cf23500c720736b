"""The addresses of interfaces, as the C library tells them."""

from __future__ import annotations

import ctypes
import errno
import socket
import sys
from ipaddress import ip_network
from types import SimpleNamespace

import pytest

from cryprq_proxy.base import own_addresses
from cryprq_proxy.base.interface_addresses import address_of, interface_addresses
from cryprq_proxy.base.netlink import ROUTE, NetlinkSocket


@pytest.mark.skipif(sys.platform != "linux", reason="it is held against netlink")
def test_they_are_those_that_netlink_tells() -> None:
    with NetlinkSocket(ROUTE, strict=True) as kernel:
        told = frozenset(own_addresses._addresses(kernel))
    assert interface_addresses() == told
    assert ip_network("127.0.0.1") in told


@pytest.mark.parametrize(
    ("sockaddr", "address"),
    [
        (bytes([16, 2, 0, 0, 192, 0, 2, 9]) + bytes(8), "192.0.2.9"),
        (bytes([28, 30, 0, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, "2001:db8:4::9") + bytes(4),
         "2001:db8:4::9"),
        (bytes([28, 30, 0, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, "fe80:4::9") + bytes(4), "fe80::9"),
    ],
)  # fmt: skip
def test_sockaddrs_of_macos(sockaddr: bytes, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length before the family; the number of the interface in a link-local address is none of its own."""
    from cryprq_proxy.base import interface_addresses as module

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module, "_SIZES", {2: (16, 4, 8), 30: (28, 8, 24)})
    assert address_of(sockaddr) == ip_network(address)


def test_what_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        ctypes.set_errno(errno.ENOMEM)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(getifaddrs=fail))
    with pytest.raises(OSError, match="memory"):
        interface_addresses()


def test_macos_asks_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    some = frozenset({ip_network("192.0.2.9")})
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(own_addresses, "interface_addresses", lambda: some)
    assert own_addresses.own_addresses() == {"192.0.2.9/32"}
