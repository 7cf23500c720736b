"""This machine's addresses: what counts among the kernel's answers, and what if it gives none."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from cryprq_proxy.base import own_addresses as module
from cryprq_proxy.base.netlink import NetlinkSocket, attribute
from cryprq_proxy.base.own_addresses import local_networks, own_addresses

LOCAL, BROADCAST, ANYCAST, UNICAST = 2, 3, 4, 1
ADDRESS, ROUTE = 20, 24
type Answer = tuple[int, bytes]


def address(local: str, other_end: str = "") -> Answer:
    body = bytes(8)
    if other_end:
        body += attribute(1, ip_address(other_end).packed) + attribute(2, ip_address(local).packed)
    else:
        body += attribute(1, ip_address(local).packed)
    return ADDRESS, body


def route(prefix: str, kind: int, table: int = 255) -> Answer:
    network = ip_network(prefix)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = struct.pack("8BI", family, network.prefixlen, 0, 0, table, 2, 254, kind, 0)
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)
    return ROUTE, body


class FakeKernel(NetlinkSocket):
    """`answers` to the question for addresses, and to the one for routes of each family, or an error's number."""

    def __init__(self) -> None:
        self.answers: dict[int, list[Answer] | int] = {22: [], socket.AF_INET: [], socket.AF_INET6: []}

    def open(self, protocol: int, *, strict: bool) -> FakeKernel:
        assert strict
        return self

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[Answer]:
        answer = self.answers[22 if kind == 22 else body[0]]
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return iter(answer)

    def __exit__(self, *_: object) -> None:
        return


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    monkeypatch.setattr(module, "NetlinkSocket", kernel.open)
    return kernel


def test_addresses_and_what_the_table_local_has(kernel: FakeKernel) -> None:
    kernel.answers = {
        22: [address("192.0.2.2"), address("10.7.7.7", "10.8.8.8"), address("2001:db8::5")],
        socket.AF_INET: [
            route("192.0.2.2/32", LOCAL),
            route("192.0.2.255/32", BROADCAST),
            route("198.51.100.0/25", LOCAL),
            route("203.0.113.0/24", UNICAST),
            # A transparent proxy's, for what a rule brings there.
            route("0.0.0.0/0", LOCAL, table=100),
        ],
        socket.AF_INET6: [route("2001:db8::/128", ANYCAST), route("2001:db8:9::/48", LOCAL)],
    }
    assert own_addresses() == {
        "192.0.2.2/32",
        "10.7.7.7/32",
        "2001:db8::5/128",
        "192.0.2.255/32",
        "198.51.100.0/25",
        "2001:db8::/128",
        "2001:db8:9::/48",
    }


def test_local_routes_of_the_other_tables_that_each_look_up_comes_to(kernel: FakeKernel) -> None:
    kernel.answers = {
        22: [],
        socket.AF_INET: [
            route("198.51.100.0/24", LOCAL, table=254),
            route("203.0.113.0/24", UNICAST, table=254),
            route("192.0.2.255/32", BROADCAST, table=254),
        ],
        socket.AF_INET6: [route("2001:db8:9::/48", LOCAL, table=253)],
    }
    assert own_addresses() == {"198.51.100.0/24", "2001:db8:9::/48"}


def test_a_whole_family_that_is_local(kernel: FakeKernel) -> None:
    kernel.answers[socket.AF_INET] = [route("0.0.0.0/0", LOCAL)]
    assert own_addresses() == {"0.0.0.0/0"}


def test_garbage_is_passed_over(kernel: FakeKernel) -> None:
    kind, body = route("192.0.2.2/32", LOCAL)
    kernel.answers[22] = [(ADDRESS, b""), (ADDRESS, bytes(8) + attribute(1, b"12345")), (3, bytes(40))]
    kernel.answers[socket.AF_INET] = [
        (kind, body[:11]),
        (kind + 1, body),
        (kind, body[:12] + attribute(1, b"123")),
        (kind, b"\x02\x40" + body[2:]),
        (kind, b"\x63" + body[1:]),
    ]
    assert own_addresses() == frozenset()


def test_a_machine_without_ipv6(kernel: FakeKernel) -> None:
    kernel.answers |= {socket.AF_INET: [route("192.0.2.2/32", LOCAL)], socket.AF_INET6: errno.ENOENT}
    assert own_addresses() == {"192.0.2.2/32"}


def test_without_an_answer_the_hosts_name_adds_to_what_was_known(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    def finding(*_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, 1, 6, "", ("192.0.2.7", 0))]

    kernel.answers[22] = errno.ENOBUFS
    with pytest.raises(OSError):
        local_networks()
    monkeypatch.setattr(socket, "getaddrinfo", failing)
    assert own_addresses() == frozenset()
    monkeypatch.setattr(socket, "getaddrinfo", finding)
    assert own_addresses(frozenset({"192.0.2.2/32"})) == {"192.0.2.2/32", "192.0.2.7"}
