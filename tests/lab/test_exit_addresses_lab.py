"""What an exit takes for itself: prefixes of local routes (AnyIP), also those that are added while it runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from cryprq_proxy.address import Destination, encode
from tests.support.lab.links import PORT, Links
from tests.support.lab.net import LIMIT, LONG, Lab, Namespace, until

PROXY = 1080
SERVICE = 80
CONNECTED, NOT_ALLOWED = 0, 2
"""Reply codes of RFC 1928 section 6."""
TABLES = ["local", "main", "default"]
"""Those that each look-up of a route comes to."""


class Machine(NamedTuple):
    """An exit, its client and a service at all addresses, alone in a network namespace."""

    host: Namespace
    links: Links

    def reply(self, address: str) -> int:
        """The code for a connection through the exit to the service at `address`."""
        with self.host.entered():
            sock = socket.create_connection(("127.0.0.1", PROXY), LONG)
        with sock:
            sock.sendall(b"\5\1\0\5\1\0" + encode(Destination(address, SERVICE)))
            told = b""
            while len(told) < 4:
                piece = sock.recv(100)
                assert piece, "closed without a reply"
                told += piece
            return told[3]


def _accept(service: socket.socket) -> None:
    try:
        while True:
            service.accept()[0].close()
    except OSError:
        return


@pytest.fixture(scope="module")
def machine(namespaces: None) -> Iterator[Machine]:
    with Lab() as lab, ExitStack() as stack:
        host, links = lab.namespace("anyip"), Links(lab.directory / "links")
        host.ip("link set lo up")
        with host.entered():
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                service = stack.enter_context(socket.socket(family))
                if family == socket.AF_INET6:
                    service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                service.bind((anywhere, SERVICE))
                service.listen(64)
                stack.callback(service.shutdown, socket.SHUT_RDWR)
                # Else the queue of connections overflows, and the next one hangs.
                threading.Thread(target=_accept, args=(service,), daemon=True).start()
        links.exit(host, tun=False, listen=(f"127.0.0.1:{PORT}",))
        client = links.client(
            host, tun=False, settings={"listen": f"127.0.0.1:{PROXY}"}, address=f"127.0.0.1:{PORT}"
        )
        client.says("link up")
        yield Machine(host, links)
        wrong = links.close()
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("family", "prefix", "address"),
    [("-4", "8.8.4.0/24", "8.8.4.9"), ("-6", "2606:4700:77::/48", "2606:4700:77::9")],
    ids=["IPv4", "IPv6"],
)
def test_a_prefix_of_a_local_route_is_the_exits_own(
    machine: Machine, family: str, prefix: str, address: str, table: str
) -> None:
    route = f"local {prefix} dev lo table {table}"
    assert machine.reply(address) not in (CONNECTED, NOT_ALLOWED)
    machine.host.ip(f"{family} route add {route}")
    try:
        until(lambda: machine.reply(address) == NOT_ALLOWED, "the prefix counts", LIMIT)
    finally:
        machine.host.ip(f"{family} route del {route}")
    until(lambda: machine.reply(address) not in (CONNECTED, NOT_ALLOWED), "it counts no more")


@pytest.mark.parametrize(
    ("family", "address"), [("-4", "8.8.8.9"), ("-6", "2606:4700:78::9")], ids=["IPv4", "IPv6"]
)
def test_an_address_that_is_added_later_is_the_exits_own(machine: Machine, family: str, address: str) -> None:
    assert machine.reply(address) not in (CONNECTED, NOT_ALLOWED)
    machine.host.ip(f"address add {address} dev lo")
    until(lambda: machine.reply(address) == NOT_ALLOWED, "the address counts", LIMIT)
    machine.host.ip(f"address del {address}/{32 if family == '-4' else 128} dev lo")
