"""The leak test in namespaces of its own: a host with a cable to the world, and a TUN that nobody reads from."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable

import pytest

from cryprq_proxy.errors import ConfigError
from tests.support.lab.net import Lab, Namespace
from tun.leaktest import probe as leakprobe
from tun.leaktest.canaries import CanaryTargets
from tun.leaktest.report import CanaryVerdict, LeakReport
from tun.linux.capture import LINUX_LEAK_TEST

TARGETS = CanaryTargets(dns=("198.51.100.53",), hosts=("198.51.100.1", "2001:db8:1::1"), devices=())
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
EXIT = ("192.0.2.9", 4433)


@pytest.fixture
def host(lab: Lab) -> Namespace:
    """Its default routes lead into the TUN; `far` is the other end of the cable and answers for all targets."""
    host, far = lab.namespace("host"), lab.namespace("far")
    lab.veth(host, "eth0", far, "eth0")
    lab.address(host, "eth0", "192.0.2.2/24", "2001:db8::2/64")
    lab.address(far, "eth0", "192.0.2.1/24", "2001:db8::1/64")
    lab.address(far, "lo", "198.51.100.1/32", "198.51.100.53/32", "2001:db8:1::1/128")
    with host.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    lab.on_close(lambda: os.close(tun))
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"cryprq0", IFF_TUN | IFF_NO_PI))
    host.ip("link set cryprq0 up")
    lab.address(host, "cryprq0", "198.18.0.2/32", "fd63:7279:7071::2/128")
    for family in ("-4", "-6"):
        host.ip(f"{family} route add default dev cryprq0")
    return host


def leak_test(
    host: Namespace, targets: CanaryTargets = TARGETS, seconds: float = 0.6, **more: object
) -> LeakReport:
    def run() -> LeakReport:
        return asyncio.run(
            leakprobe.run(
                tunnel="cryprq0",
                exits=[EXIT],
                system=LINUX_LEAK_TEST,
                targets=targets,
                seconds=seconds,
                **more,  # type: ignore[arg-type]
            )
        )

    return host.call(run)


def by_name(report: LeakReport) -> dict[tuple[str, str], CanaryVerdict]:
    return {(row.name, row.target): row.verdict for row in report.rows}


def test_all_goes_into_the_tunnel(host: Namespace) -> None:
    report = leak_test(host)
    assert {row.verdict for row in report.rows} == {CanaryVerdict.TUNNELLED}
    assert report.exit_code == 0
    assert (report.missed, report.others) == (0, ())
    assert report.counters["eth0"] < len(report.rows)  # neighbours, no canaries


def test_all_goes_out(host: Namespace) -> None:
    host.ip("route replace default via 192.0.2.1")
    host.ip("-6 route replace default via 2001:db8::1")
    report = leak_test(host, seconds=10.0)  # it ends early: everything is answered or refused
    assert {row.verdict for row in report.rows} == {CanaryVerdict.LEAKED}
    assert report.exit_code == 1
    assert report.counters["eth0"] >= len(report.rows)
    pings = [row for row in report.rows if row.name == "ping"]
    assert len(pings) == 2
    assert all(row.seen.endswith("answered") for row in pings)


def test_one_family_goes_out(host: Namespace) -> None:
    host.ip("-6 route replace default via 2001:db8::1")
    report = leak_test(host)
    assert {row.verdict for row in report.leaks} == {CanaryVerdict.LEAKED}
    assert {row.target for row in report.leaks} == {
        "[2001:db8:1::1]:443",
        "[2001:db8:1::1]:3478",
        "2001:db8:1::1",
    }


def test_a_pushed_route_lets_one_address_out(host: Namespace) -> None:
    host.ip("route add 198.51.100.53/32 via 192.0.2.1")
    report = leak_test(host)
    assert {row.name for row in report.leaks} == {"DNS over UDP", "DNS over TCP", "DNS over TLS"}


def test_what_a_setting_lets_out(host: Namespace) -> None:
    host.ip("route add 198.51.100.0/24 via 192.0.2.1")
    report = leak_test(host, allowed=[ipaddress.ip_network("198.51.100.0/24")])
    assert {row.verdict for row in report.rows} == {CanaryVerdict.ALLOWED, CanaryVerdict.TUNNELLED}
    assert report.exit_code == 0


def test_a_filter_blocks(host: Namespace) -> None:
    host.ip("route replace default via 192.0.2.1")
    host.ip("-6 route replace default via 2001:db8::1")
    host.nft('table inet t { chain o { type filter hook output priority 0; oifname "eth0" reject; }\n}')
    report = leak_test(host)
    assert {row.verdict for row in report.rows} == {CanaryVerdict.BLOCKED}
    assert report.exit_code == 0


def test_sockets_bound_to_the_outer_interface(host: Namespace) -> None:
    host.ip("route add default via 192.0.2.1 metric 1000")
    report = leak_test(host, CanaryTargets(dns=(), hosts=("198.51.100.1",), devices=("eth0",)))
    assert all(
        row.verdict is (CanaryVerdict.LEAKED if row.target.endswith("on eth0") else CanaryVerdict.TUNNELLED)
        for row in report.rows
    )


def test_a_question_that_a_forwarder_sends_on_in_the_clear(host: Namespace) -> None:
    """Questions are brought to another server, as our own rules bring them to the forwarder."""
    host.nft(
        "table ip t { chain o { type nat hook output priority -100; udp dport 53 dnat to 192.0.2.1; }\n}"
    )
    report = leak_test(host)
    assert {row.name for row in report.leaks} == {"DNS over UDP"}


def test_a_question_that_is_answered_here(host: Namespace) -> None:
    def run() -> LeakReport:
        async def forwarder_and_test() -> LeakReport:
            class Forwarder(asyncio.DatagramProtocol):
                def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
                    self.transport = transport

                def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
                    self.transport.sendto(data, address)

            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Forwarder, local_addr=("198.18.0.2", 5353))
            with contextlib.closing(transport):
                return await leakprobe.run(
                    tunnel="cryprq0", exits=[EXIT], system=LINUX_LEAK_TEST, targets=TARGETS, seconds=2.0
                )

        return asyncio.run(forwarder_and_test())

    host.nft(
        "table ip t { chain o { type nat hook output priority -100; udp dport 53 dnat to 198.18.0.2:5353; }\n}"
    )
    rows = by_name(host.call(run))
    assert rows["DNS over UDP", "198.51.100.53:53"] is CanaryVerdict.HERE


def test_no_tunnel_is_one_sentence(host: Namespace) -> None:
    host.ip("link del cryprq0")
    with pytest.raises(ConfigError, match="there is no interface cryprq0"):
        leak_test(host)


def test_the_link_is_told_from_the_rest(host: Namespace, lab: Lab) -> None:
    def meanwhile(send: Callable[[], None]) -> LeakReport:
        async def run() -> LeakReport:
            asyncio.get_running_loop().call_later(0.2, send)
            return await leakprobe.run(
                tunnel="cryprq0", exits=[EXIT], system=LINUX_LEAK_TEST, targets=TARGETS, seconds=0.6
            )

        return asyncio.run(run())

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for address in (EXIT, ("192.0.2.1", 4433), ("192.0.2.1", 4433)):
                sock.sendto(b"sealed", address)

    far = lab.hosts[1]
    lab.address(far, "eth0", "192.0.2.9/24")
    report = host.call(lambda: meanwhile(send))
    assert report.link == 1
    assert report.others == (("eth0", "UDP to 192.0.2.1:4433", 2),)
    assert report.leaks == ()
