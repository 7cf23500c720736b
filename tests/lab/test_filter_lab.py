"""The kill switch with real packets: what each of its rules lets out, keeps in, sends back and redirects."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError, LocalError
from cryprq_proxy.rules.syntax import Verdict
from tests.support.lab.capture import Capture
from tests.support.lab.filters import DNS_PORT, SETTINGS, UID, Client, Journal, counted
from tests.support.lab.net import LONG, Lab, until
from tests.support.lab.paths import (
    CLIENT4,
    CLIENT6,
    EXIT4,
    EXIT6,
    GUEST4,
    GUEST6,
    MARK,
    PUBLIC4,
    PUBLIC6,
    RESOLVER4,
    RESOLVER6,
    TUN,
    TUNNEL4,
    TUNNEL6,
    VIRTUAL4,
    VIRTUAL6,
    WORLD4,
    WORLD6,
    Paths,
)
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.linux.firewall import nft
from tun.linux.firewall.filter import Filter
from tun.linux.firewall.standing import Standing

BOTH = pytest.mark.parametrize("public", [PUBLIC4, PUBLIC6], ids=["ipv4", "ipv6"])


@pytest.fixture
def paths(lab: Lab) -> Iterator[Paths]:
    made = Paths(lab)
    made.listen_everywhere(80)
    made.listen_everywhere(443)
    yield made


def tunnel_address(address: str) -> str:
    return TUNNEL6 if ":" in address else TUNNEL4


def outer_address(address: str) -> str:
    return CLIENT6 if ":" in address else CLIENT4


# What leaves, and how


@BOTH
def test_ordinary_traffic_goes_through_the_tunnel(paths: Paths, public: str) -> None:
    Client(paths).up()
    assert paths.tcp(paths.client, public, 80) == ("beyond", tunnel_address(public))


@BOTH
def test_nothing_leaves_without_the_tunnel(paths: Paths, public: str) -> None:
    paths.unroute()
    assert paths.tcp(paths.client, public, 80) == ("world", outer_address(public))
    client = Client(paths).up()
    with Capture(paths.client, "eth0") as capture:
        with counted(client, "blocked"):
            assert paths.tcp(paths.client, public, 80) is None
        with counted(client, "blocked"):
            assert not paths.sends(paths.client, public, 4433)
        with counted(client, "blocked"):
            assert paths.client.attempt(["ping", "-c1", "-W1", public]).returncode
        with counted(client, "forwarded"):
            assert paths.tcp(paths.guest, public, 80) is None
        assert paths.tcp(paths.client, EXIT4, 443, mark=MARK) == ("world", CLIENT4)
    assert {each.destination for each in capture.sent()} == {EXIT4}


def test_nothing_for_this_machine_leaves_by_a_bound_device(paths: Paths) -> None:
    """IPv6 sends what is for ::1 out of the device that the socket is bound to."""

    def send(address: str) -> None:
        made = paths.make(paths.client, address, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        with suppress(OSError):
            made.sendto(b"x", (address, 4433))

    here = ("::1", "::", CLIENT6, TUNNEL6, "127.0.0.1", CLIENT4, TUNNEL4)
    with Capture(paths.client, "eth0") as open_capture:
        send("::1")
    assert [each for each in open_capture.packets if each.sent and each.destination == "::1"]
    Client(paths).up()
    with Capture(paths.client, "eth0") as capture:
        for address in here:
            send(address)
    assert not [each for each in capture.packets if each.sent and each.protocol == "udp"]


def test_the_filter_stands_before_the_device_exists(lab: Lab) -> None:
    paths = Paths(lab)
    paths.listen_everywhere(80)
    paths.client.ip(f"link set {TUN} name other0")
    client = Client(paths, replace(SETTINGS, tunnel4=None, tunnel6=None, dns_port=None)).up()
    assert paths.tcp(paths.client, PUBLIC4, 80) is None
    paths.client.ip(f"link set other0 name {TUN}")
    with counted(client, "stale"):
        assert paths.tcp(paths.client, PUBLIC4, 80) is None
    client.change(tunnel4=ip_address(TUNNEL4), tunnel6=ip_address(TUNNEL6))
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)


@pytest.mark.parametrize("exit", [EXIT4, EXIT6], ids=["ipv4", "ipv6"])
def test_the_link_reaches_its_exits_and_nothing_else(paths: Paths, exit: str) -> None:
    client = Client(paths).up()
    assert paths.tcp(paths.client, exit, 443, mark=MARK) == ("world", outer_address(exit))
    assert paths.sends(paths.client, exit, 443, mark=MARK)
    assert paths.tcp(paths.client, exit, 80, mark=MARK) is None
    other = PUBLIC6 if ":" in exit else PUBLIC4
    assert paths.tcp(paths.client, other, 443, mark=MARK) is None
    assert not paths.sends(paths.client, other, 443, mark=MARK)
    # Without the mark it is traffic like any other.
    assert paths.tcp(paths.client, exit, 443) == ("beyond", tunnel_address(exit))
    client.change(exits=frozenset())
    assert paths.tcp(paths.client, exit, 443, mark=MARK) is None


def test_the_link_is_heard_although_the_kernel_checks_reverse_paths(paths: Paths) -> None:
    """Answers come in on a device that is not the route to their source, but for the mark."""
    Client(paths).up()
    there = paths.udp(paths.world, EXIT4, 443)
    here = paths.make(paths.client, EXIT4, socket.SOCK_DGRAM, mark=MARK)
    here.sendto(b"question", (EXIT4, 443))
    _, peer = there.recvfrom(100)
    there.sendto(b"answer", peer)
    assert here.recv(100) == b"answer"


def test_resolvers_from_before_are_asked_only_while_a_name_is_resolved(paths: Paths) -> None:
    client = Client(paths).up()

    def refuses(resolver: str) -> None:
        with counted(client, "dns"):
            assert not paths.sends(paths.client, resolver, 53, mark=MARK)

    for resolver in (WORLD4, RESOLVER4, RESOLVER6):
        refuses(resolver)
    with paths.client.entered():
        opening = client.filter.resolving(map(ip_address, (WORLD4, RESOLVER6)))
        with opening:
            refuses(RESOLVER4)
            assert paths.sends(paths.client, WORLD4, 53, mark=MARK)
            assert paths.sends(paths.client, RESOLVER6, 53, mark=MARK)
            assert not paths.sends(paths.client, RESOLVER6, 5353, mark=MARK)
            # Still open after the table was replaced.
            client.change(exits=SETTINGS.exits | {ExitEndpoint(ip_address(PUBLIC4), 443)})
            assert paths.sends(paths.client, WORLD4, 53, mark=MARK)
    refuses(WORLD4)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_lan(paths: Paths, allowed: bool) -> None:
    client = Client(paths, replace(SETTINGS, lan_allowed=allowed)).up()
    expected = ("world", CLIENT4) if allowed else None
    assert paths.tcp(paths.client, WORLD4, 80) == expected
    # A public on-link prefix is not the LAN.
    assert paths.tcp(paths.client, WORLD6, 80, source=CLIENT6) is None
    # Link-local discovery belongs to the LAN.
    made = paths.make(paths.client, CLIENT4, socket.SOCK_DGRAM, bind=(CLIENT4, 0))
    made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(CLIENT4))
    paths.client.ip("rule add priority 25411 to 224.0.0.0/4 lookup main")
    if allowed:
        made.sendto(b"x", ("224.0.0.251", 5353))
    else:
        with pytest.raises(PermissionError):
            made.sendto(b"x", ("224.0.0.251", 5353))
    # What runs in containers of this machine is reachable all the same.
    listener = paths.listen(paths.guest, GUEST4, 8080)
    made = paths.make(paths.client, GUEST4, socket.SOCK_STREAM)
    made.connect((GUEST4, 8080))
    listener.accept()[0].close()
    client.change(lan=frozenset())
    assert paths.tcp(paths.client, WORLD4, 80) is None


def test_excluded_prefixes_and_users(paths: Paths) -> None:
    paths.client.ip("rule add priority 25411 to 93.184.20.0/24 lookup main")
    paths.client.ip(f"rule add priority 25412 uidrange {UID}-{UID} lookup main")
    client = Client(paths).up()
    assert paths.tcp(paths.client, PUBLIC4, 80) is None
    assert paths.tcp(paths.client, EXIT4, 80, uid=UID) is None
    client.change(
        excluded=frozenset({ip_network("93.184.20.0/24"), ip_network("93.184.0.0/16")}),
        excluded_uids=frozenset({UID}),
    )
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    assert paths.tcp(paths.client, EXIT4, 80, uid=UID) == ("world", CLIENT4)
    assert paths.tcp(paths.client, EXIT4, 80) == ("beyond", TUNNEL4)
    assert not paths.sends(paths.client, PUBLIC4, 853)
    assert not paths.sends(paths.client, RESOLVER4, 853, uid=UID)
    # Containers reach an excluded prefix, too.
    assert paths.tcp(paths.guest, PUBLIC4, 80) == ("world", GUEST4)


def test_only_included_prefixes(paths: Paths) -> None:
    for ip in ("", "-6"):
        paths.client.ip(f"{ip} rule del priority 25490")
    paths.client.ip("rule add priority 25490 to 93.184.20.0/24 lookup 25458")
    settings = replace(SETTINGS, included=frozenset({ip_network("93.184.20.0/24")}), lan_allowed=False)
    Client(paths, settings).up()
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)
    assert paths.tcp(paths.client, EXIT4, 80) == ("world", CLIENT4)
    assert paths.tcp(paths.client, WORLD4, 80) is None
    paths.client.ip("rule del priority 25490")
    assert paths.tcp(paths.client, PUBLIC4, 80) is None


def test_dhcp_and_neighbour_discovery_go_on(paths: Paths) -> None:
    paths.unroute()
    Client(paths, replace(SETTINGS, lan_allowed=False)).up()
    there = paths.udp(paths.world, WORLD4, 67)
    assert paths.sends(paths.client, WORLD4, 67, bind=(CLIENT4, 68))
    assert there.recv(10) == b"x"
    assert not paths.sends(paths.client, WORLD4, 67)
    assert not paths.sends(paths.client, WORLD4, 68, bind=(CLIENT4, 67))

    paths.client.ip("-6 neigh flush all")
    assert paths.tcp(paths.client, EXIT6, 443, mark=MARK) == ("world", CLIENT6)

    # A solicitation that is not of this network segment could carry anything anywhere.
    raw = paths.make(
        paths.client, PUBLIC6, socket.SOCK_RAW, bind=(CLIENT6, 0), protocol=socket.IPPROTO_ICMPV6
    )
    solicitation = struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, PUBLIC6)
    with pytest.raises(PermissionError):
        raw.sendto(solicitation, (PUBLIC6, 0))
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
    raw.sendto(solicitation, (PUBLIC6, 0))
    with pytest.raises(PermissionError):
        raw.sendto(struct.pack("!BBHI", 128, 0, 0, 0), (PUBLIC6, 0))


# What was there before


@BOTH
def test_a_connection_from_before_is_reset(paths: Paths, public: str) -> None:
    paths.unroute()
    old = paths.make(paths.client, public, socket.SOCK_STREAM)
    old.connect((public, 80))
    datagrams = paths.make(paths.client, public, socket.SOCK_DGRAM)
    paths.udp(paths.world, public, 4433)
    datagrams.connect((public, 4433))
    datagrams.send(b"before")
    for ip in ("", "-6"):
        paths.client.ip(f"{ip} rule add priority 25490 lookup 25458")
    client = Client(paths).up()
    with Capture(paths.client, "eth0") as outside, Capture(paths.client, TUN) as inside:
        with counted(client, "stale"):
            old.send(b"leak")
            with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
                old.recv(10)
        with counted(client, "stale"), pytest.raises(PermissionError):
            datagrams.send(b"leak")
        assert paths.tcp(paths.client, EXIT4, 443, mark=MARK) is not None
        assert paths.tcp(paths.client, public, 80) is not None
    assert not [each for each in outside.packets if each.sent and public in each]
    assert not [each for each in inside.packets if each.sent and each.source == outer_address(public)]


def test_a_connection_from_before_is_reset_when_main_is_its_way(paths: Paths) -> None:
    paths.unroute()
    old = paths.make(paths.client, PUBLIC4, socket.SOCK_STREAM)
    old.connect((PUBLIC4, 80))
    client = Client(paths).up()
    with counted(client, "blocked"):
        old.send(b"leak")
        with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
            old.recv(10)


# Against others


def test_the_tunnel_address_is_reached_only_through_the_tunnel(paths: Paths) -> None:
    client = Client(paths).up()
    for address, via in ((TUNNEL4, CLIENT4), (TUNNEL6, CLIENT6)):
        ip = "-6" if ":" in address else "-4"
        paths.world.ip(f"{ip} route add {address} via {via}")
        there = paths.udp(paths.client, address, 7000)
        for host, port in ((paths.world, 7000), (paths.world, DNS_PORT), (paths.guest, 7000)):
            with counted(client, "guard"):
                paths.sends(host, address, port)
        # What comes after them arrives, and they have not.
        with paths.client.entered():
            own = paths.udp(paths.client, address)
        own.sendto(b"own", (address, 7000))
        assert there.recv(10) == b"own"


@pytest.mark.parametrize("kill_switch", [True, False])
def test_the_tunnel_address_leaves_by_no_other_device(paths: Paths, kill_switch: bool) -> None:
    client = Client(paths, replace(SETTINGS, kill_switch=kill_switch)).up()
    with Capture(paths.client, "eth0") as capture:
        with counted(client, "stale"):
            paths.sends(paths.client, WORLD4, 9, bind=(TUNNEL4, 0))
        assert paths.sends(paths.client, WORLD4, 9, bind=(CLIENT4, 0))
    assert CLIENT4 in {each.source for each in capture.packets if each.sent}
    assert TUNNEL4 not in {each.source for each in capture.packets if each.sent}


def test_no_icmp_error_about_the_tunnel_leaves_by_another_device(paths: Paths) -> None:
    """Not to the LAN either, which may have everything else: it would show what goes through the tunnel."""
    Client(paths).up()
    from4, from6 = (ip_address(address).packed for address in (TUNNEL4, TUNNEL6))
    other4, other6 = ip_address("192.168.77.2").packed, ip_address("fe80::2").packed

    def quote4(source: bytes) -> bytes:
        return struct.pack("!BBHI", 3, 1, 0, 0) + bytes(12) + source + bytes(12)

    def quote6(source: bytes) -> bytes:
        return struct.pack("!BBHI", 1, 3, 0, 0) + bytes(8) + source + bytes(24)

    with Capture(paths.client, "eth0") as capture, paths.client.entered():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            for source in (from4, other4):
                with suppress(PermissionError):
                    sock.sendto(quote4(source), (WORLD4, 0))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            for source in (from6, other6):
                with suppress(PermissionError):
                    sock.sendto(quote6(source), ("fe80::1", 0, 0, socket.if_nametoindex("eth0")))
    errors = [(p.protocol, p.size) for p in capture.sent() if p.protocol.startswith("icmp")]
    assert sorted(protocol for protocol, _ in errors) == ["icmp", "icmpv6"]


def test_nobody_connects_through_the_tunnel(paths: Paths) -> None:
    client = Client(paths).up()
    paths.listen(paths.client, TUNNEL4, 2222)
    paths.lab.address(paths.beyond, "far0", "198.18.0.1/32")
    paths.beyond.ip("route add 172.20.0.0/24 dev far0")
    with counted(client, "unsolicited"):
        paths.sends(paths.beyond, GUEST4, 9)
    knock = paths.make(paths.beyond, TUNNEL4, socket.SOCK_STREAM, bind=("198.18.0.1", 0))
    knock.setblocking(False)
    with counted(client, "unsolicited"), pytest.raises(BlockingIOError):
        knock.connect((TUNNEL4, 2222))


def test_a_neighbour_cannot_use_the_tunnel_or_the_forwarder(paths: Paths) -> None:
    """The client forwards, for its containers; a host on the LAN takes it for a router."""
    client = Client(paths).up()
    here = paths.udp(paths.client, TUNNEL4, DNS_PORT)
    paths.world.ip("addr del 8.8.8.8/32 dev lo")
    paths.world.ip("addr del 93.184.20.10/32 dev lo")
    with counted(client, "forwarded"):
        paths.sends(paths.world, RESOLVER4, 53)
    with counted(client, "forwarded"):
        assert paths.tcp(paths.world, PUBLIC4, 80) is None
    own = paths.udp(paths.client, TUNNEL4)
    own.sendto(b"own", (TUNNEL4, DNS_PORT))
    assert here.recv(10) == b"own"
    client.change(uplinks=frozenset())
    assert paths.tcp(paths.world, PUBLIC4, 80) == ("beyond", TUNNEL4)


# Containers


@BOTH
def test_containers_go_through_the_tunnel(paths: Paths, public: str) -> None:
    Client(paths).up()
    assert paths.tcp(paths.guest, public, 80) == ("beyond", tunnel_address(public))


@BOTH
def test_segments_of_containers_fit_the_tunnel(paths: Paths, public: str) -> None:
    Client(paths).up()
    listener = paths.listen(paths.beyond, public, 8080)
    made = paths.make(paths.guest, public, socket.SOCK_STREAM)
    made.connect((public, 8080))
    accepted, _ = listener.accept()
    headers = 60 if ":" in public else 40
    with accepted:
        for end in (made, accepted):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1280 - headers


@BOTH
def test_a_connection_of_a_container_from_before_is_reset(paths: Paths, public: str) -> None:
    paths.unroute()
    # Connections are tracked already, as where Docker runs.
    paths.client.nft(
        "table inet other {\nchain forward {\ntype filter hook forward priority 0;\nct state new\n}\n}\n"
    )
    paths.world.ip(f"route add 172.20.0.0/24 via {CLIENT4}")
    old = paths.make(paths.guest, public, socket.SOCK_STREAM)
    old.connect((public, 80))
    for ip in ("", "-6"):
        paths.client.ip(f"{ip} rule add priority 25490 lookup 25458")
    client = Client(paths).up()
    with Capture(paths.client, "eth0") as outside, Capture(paths.client, TUN) as inside:
        with counted(client, "stale"):
            old.send(b"leak")
            with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
                old.recv(10)
        assert paths.taken(80) is not None
        assert paths.tcp(paths.guest, public, 80) == ("beyond", tunnel_address(public))
    guest = GUEST6 if ":" in public else GUEST4
    assert not [each for each in (*outside.packets, *inside.packets) if each.sent and guest in each]


@pytest.mark.parametrize("allowed", [True, False])
def test_containers_and_the_lan(paths: Paths, allowed: bool) -> None:
    Client(paths, replace(SETTINGS, lan_allowed=allowed)).up()
    assert paths.tcp(paths.guest, WORLD4, 80) == (("world", GUEST4) if allowed else None)
    assert paths.tcp(paths.guest, WORLD4, 853) is None


# DNS


@pytest.mark.parametrize("who", ["client", "guest"])
@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6, VIRTUAL4, VIRTUAL6, WORLD4])
def test_dns_is_brought_to_the_forwarder(paths: Paths, who: str, resolver: str) -> None:
    client = Client(paths).up()
    own = tunnel_address(resolver)
    forwarder, streams = paths.udp(paths.client, own, DNS_PORT), paths.listen(paths.client, own, DNS_PORT)
    host = getattr(paths, who)
    asking = paths.make(host, resolver, socket.SOCK_DGRAM)
    asking.sendto(b"question", (resolver, 53))
    question, peer = forwarder.recvfrom(100)
    forwarder.sendto(b"answer", peer)
    answer, source = asking.recvfrom(100)
    assert (question, answer, source[:2]) == (b"question", b"answer", (resolver, 53))

    stream = paths.make(host, resolver, socket.SOCK_STREAM)
    stream.connect((resolver, 53))
    accepted, _ = streams.accept()
    with accepted:
        stream.send(b"question")
        assert accepted.recv(100) == b"question"
        accepted.send(b"answer")
        assert stream.recv(100) == b"answer"
    assert client.dropped("dns") == 0


def test_answers_reach_containers_although_the_lan_is_blocked(paths: Paths) -> None:
    Client(paths, replace(SETTINGS, lan_allowed=False, guests=frozenset())).up()
    forwarder = paths.udp(paths.client, TUNNEL4, DNS_PORT)
    asking = paths.make(paths.guest, RESOLVER4, socket.SOCK_DGRAM)
    asking.sendto(b"question", (RESOLVER4, 53))
    forwarder.sendto(b"answer", forwarder.recvfrom(100)[1])
    assert asking.recv(100) == b"answer"


def test_a_resolver_of_this_machine_is_left_alone(paths: Paths) -> None:
    Client(paths).up()
    for host, address in ((paths.client, "127.0.0.53"), (paths.guest, "172.20.0.1")):
        resolver = paths.udp(paths.client, address, 53)
        paths.make(host, address, socket.SOCK_DGRAM).sendto(b"question", (address, 53))
        assert resolver.recv(100) == b"question"


def test_dns_elsewhere_is_refused_before_the_lan_is_allowed(paths: Paths) -> None:
    client = Client(paths, replace(SETTINGS, dns_port=None)).up()
    for port in (53, 853, 5355):
        with counted(client, "dns"):
            assert not paths.sends(paths.client, WORLD4, port)
        with counted(client, "dns"):
            assert paths.tcp(paths.client, WORLD4, port) is None
    assert paths.sends(paths.client, WORLD4, 5353)


# Connections from outside


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("address", [CLIENT4, CLIENT6], ids=["ipv4", "ipv6"])
def test_connections_from_outside(paths: Paths, keep: bool, address: str) -> None:
    outside = EXIT6 if ":" in address else EXIT4
    listener = paths.listen(paths.client, "::" if ":" in address else "0.0.0.0", 22)

    def connect() -> tuple[socket.socket, socket.socket]:
        there = paths.make(paths.world, address, socket.SOCK_STREAM, bind=(outside, 0))
        there.connect((address, 22))
        here = listener.accept()[0]
        here.settimeout(LONG)
        return there, here

    paths.unroute()
    there, here = connect()
    outward = paths.make(paths.client, outside, socket.SOCK_STREAM)
    outward.connect((outside, 80))
    for ip in ("", "-6"):
        paths.client.ip(f"{ip} rule add priority 25490 lookup 25458")
    Client(paths, keep=keep).up()

    # The first to speak after the filter stands is this machine: the harder case.
    here.send(b"prompt")
    with here, there:
        if keep:
            assert there.recv(10) == b"prompt"
            there.send(b"command")
            assert here.recv(10) == b"command"
            there, here = connect()
            here.send(b"welcome")
            assert there.recv(10) == b"welcome"
            here.close()
        else:
            with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
                here.recv(10)
    # What was begun here goes through the tunnel in any case.
    outward.send(b"leak")
    with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
        outward.recv(10)


def test_datagrams_from_outside(paths: Paths) -> None:
    Client(paths, keep=True).up()

    def answered(port: int, source: int) -> bool:
        here = paths.udp(paths.client, CLIENT4, port)
        there = paths.udp(paths.world, EXIT4, source)
        there.sendto(b"hello", (CLIENT4, port))
        _, peer = here.recvfrom(100)
        try:
            here.sendto(b"welcome", peer)
        except PermissionError:
            return False
        assert there.recv(100) == b"welcome"
        return True

    assert answered(5000, 40000)
    # From here on the filter alone judges, not the kernel's reverse path filter before it.
    paths.client.sysctl("net.ipv4.conf.all.rp_filter", "0")
    # These may as well be answers to a socket from before.
    assert not answered(40000, 40001)
    assert not answered(123, 123)
    assert paths.world.attempt(["ping", "-c1", f"-W{LONG:g}", "-I", EXIT4, CLIENT4]).returncode == 0


# The pause


def test_a_pause_lets_new_connections_out_and_closes_by_itself(paths: Paths) -> None:
    client = Client(paths).up()
    listener = paths.listen(paths.beyond, PUBLIC4, 8080)
    before = paths.make(paths.client, PUBLIC4, socket.SOCK_STREAM)
    before.connect((PUBLIC4, 8080))
    tunnelled = listener.accept()[0]

    begun = time.monotonic()
    client.do(lambda each: each.pause(60))
    left = client.do(Filter.paused)
    # In whole seconds, so one may be missing.
    assert 60 - (time.monotonic() - begun) - 1 <= left <= 60
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    assert paths.tcp(paths.client, PUBLIC6, 80) == ("world", CLIENT6)
    portal = paths.udp(paths.world, WORLD4, 53)
    asking = paths.make(paths.client, VIRTUAL4, socket.SOCK_DGRAM)
    asking.sendto(b"question", (VIRTUAL4, 53))
    question, peer = portal.recvfrom(100)
    portal.sendto(b"answer", peer)
    assert (question, peer[0], asking.recv(100)) == (b"question", CLIENT4, b"answer")
    with before, tunnelled, Capture(paths.client, "eth0") as capture:
        before.send(b"still")
        assert tunnelled.recv(10) == b"still"
    assert not [each for each in capture.packets if TUNNEL4 in each or PUBLIC4 in each]
    # Containers are not let out.
    assert paths.tcp(paths.guest, PUBLIC4, 80) == ("beyond", TUNNEL4)
    client.change(lan_allowed=False)
    assert 0 < client.do(Filter.paused) <= left, "an update neither ends it nor begins it again"

    direct = paths.make(paths.client, EXIT4, socket.SOCK_STREAM)
    direct.connect((EXIT4, 80))
    assert paths.taken(80) == ("world", CLIENT4)
    client.do(lambda each: each.pause(1))
    shown = ["nft", "list", "set", "inet", "cryprq", "open"]
    until(lambda: "expires" not in paths.client.run(shown), "the pause is over")
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)
    with Capture(paths.client, "eth0") as capture:
        direct.send(b"late")
        direct.close()
        assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)
    assert not [each for each in capture.packets if each.sent and each.protocol == "tcp"]


def test_a_pause_without_a_tunnel(paths: Paths) -> None:
    """The captive portal is what keeps the link from coming up."""
    paths.unroute()
    client = Client(paths, replace(SETTINGS, tunnel4=None, tunnel6=None, dns_port=None)).up()
    assert paths.tcp(paths.client, PUBLIC4, 80) is None
    client.do(lambda each: each.pause(60))
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    assert paths.sends(paths.client, WORLD4, 53)
    client.do(lambda each: each.pause(1))
    shown = ["nft", "list", "set", "inet", "cryprq", "open"]
    until(lambda: "expires" not in paths.client.run(shown), "the pause is over")
    assert paths.tcp(paths.client, PUBLIC4, 80) is None
    assert client.do(Filter.paused) == 0
    for seconds in (0, 3601):
        with paths.client.entered(), pytest.raises(LocalError):
            client.filter.pause(seconds)


# The table


def test_the_kill_switch_off(paths: Paths) -> None:
    client = Client(paths, replace(SETTINGS, kill_switch=False)).up()
    forwarder = paths.udp(paths.client, TUNNEL4, DNS_PORT)
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)
    assert paths.tcp(paths.guest, PUBLIC4, 80) == ("beyond", TUNNEL4)
    assert paths.sends(paths.client, WORLD4, 853)
    assert paths.tcp(paths.client, PUBLIC4, 80, source=CLIENT4) is None
    asking = paths.make(paths.client, RESOLVER4, socket.SOCK_DGRAM)
    asking.sendto(b"question", (RESOLVER4, 53))
    forwarder.sendto(b"answer", forwarder.recvfrom(10)[1])
    assert asking.recv(10) == b"answer"
    paths.world.ip(f"route add {TUNNEL4} via {CLIENT4}")
    with counted(client, "guard"):
        paths.sends(paths.world, TUNNEL4, 9)
    paths.unroute()
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    client.change(lan_allowed=False)
    assert paths.tcp(paths.client, WORLD4, 80) is None


def test_the_filter_outlives_the_process(paths: Paths) -> None:
    """Killed in the middle of replacing the table again and again."""
    paths.unroute()
    program = f"""
from dataclasses import replace
from ipaddress import ip_address
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.linux.firewall.filter import Filter
settings = FilterSettings(tun={TUN!r}, mark={MARK}, exits=frozenset({{ExitEndpoint(ip_address({EXIT4!r}), 443)}}))
filter = Filter.up(settings, lambda entry: None, ours=True)
print("up", flush=True)
while True:
    filter.update(replace(filter.settings, lan_allowed=not filter.settings.lan_allowed))
"""
    root = Path(__file__).parent.parent.parent
    for _ in range(5):
        child = paths.client.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root)
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        assert paths.tcp(paths.client, PUBLIC4, 80) is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert paths.tcp(paths.client, PUBLIC4, 80) is None
        assert paths.tcp(paths.client, EXIT4, 443, mark=MARK) == ("world", CLIENT4)


def test_up_and_down_leave_nothing(paths: Paths) -> None:
    before = paths.client.snapshot()
    client = Client(paths).up()
    assert list(client.journal) == [{"kind": "nft_table", "table": "cryprq"}]
    assert client.do(Filter.standing)
    paths.client.run(["nft", "flush", "ruleset"])
    assert not client.do(Filter.standing)
    assert client.do(Filter.counters)["guard"].packets == 0
    client.do(Filter.restore)
    assert client.do(Filter.standing)
    for _ in range(2):
        with paths.client.entered():
            nft.UNDO["nft_table"](client.journal[0])
    assert paths.client.snapshot() == before


def test_counters_go_on_through_an_update(paths: Paths) -> None:
    """In packets and bytes. The kernel says things of its own in between, so neither has an exact number."""
    datagram = 20 + 8 + 1
    client = Client(paths).up()
    with counted(client, "blocked"):
        assert not paths.sends(paths.client, EXIT4, 80, mark=MARK)
    before = client.do(Filter.counters)["blocked"]
    client.change(lan_allowed=False)
    after = client.do(Filter.counters)["blocked"]
    assert after.packets >= before.packets and after.bytes >= before.bytes >= datagram
    with counted(client, "blocked"):
        assert not paths.sends(paths.client, EXIT4, 80, mark=MARK)
    assert client.do(Filter.counters)["blocked"].bytes >= after.bytes + datagram


def test_a_table_of_somebody_else(paths: Paths) -> None:
    paths.client.nft("table inet cryprq {\n}\n")
    before = paths.client.snapshot()
    client = Client(paths)
    with pytest.raises(ConfigError, match="has not recorded"):
        client.up()
    assert (paths.client.snapshot(), list(client.journal)) == (before, [])
    with paths.client.entered():
        Filter.up(SETTINGS, client.journal.append, ours=True)
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)


@pytest.mark.parametrize("table", [nft.CLIENT, nft.EXIT])
def test_a_table_that_was_put_to_sleep_is_found_changed(lab: Lab, table: str) -> None:
    """It filters nothing. nft 1.0.6 prints garbage for its flags: for an empty table no JSON."""
    host = lab.namespace("host")
    host.nft(f"table inet {table} {{ }}\n")
    with host.entered():
        standing = Standing(table)
        standing.written()
        host.nft(f"table inet {table} {{ flags dormant; }}\n")
        assert f"the table inet {table} was changed" in standing.look()
        assert nft.exists(table)


def test_nft_takes_extreme_settings(lab: Lab) -> None:
    host = lab.namespace("host")
    prefixes = ("0.0.0.0/0", "::/0", "255.255.255.255/32", "::ffff:1.2.3.4/128", "10.0.0.0/8", "10.1.0.0/16")
    half = ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
    for chosen in (frozenset(map(ip_network, prefixes)), frozenset(map(ip_network, half))):
        extreme = FilterSettings(
            tun="a.b-c:d_e",
            mark=0xFFFFFFFB,
            exits=frozenset({ExitEndpoint(ip_address("::"), 1), ExitEndpoint(ip_address("0.0.0.0"), 65535)}),
            tunnel4=ip_address("255.255.255.255"),  # type: ignore[arg-type]
            tunnel6=ip_address("::ffff:1.2.3.4"),  # type: ignore[arg-type]
            dns_port=65535,
            lan=chosen,
            guests=chosen,
            uplinks=frozenset({"0", "fifteen-letters"}),
            excluded=chosen,
            included=chosen,
            excluded_uids=frozenset({0, 0xFFFFFFFE}),
            rules=FilterRules(
                tuple(
                    FilterRule(verdict, networks, ((1, 65535), (22, 22)))
                    for verdict in (Verdict.BLOCK, Verdict.DIRECT, Verdict.TUNNEL)
                    for networks in (None, tuple(chosen))
                ),
                Verdict.DIRECT,
            ),
            portal_resolvers=(ip_address("fe80::1"), ip_address("127.0.0.1")),
        )
        with host.entered():
            made = Filter.up(extreme, Journal().append, ours=True, keep_inbound=True)
            made.update(replace(extreme, exits=frozenset(), lan_allowed=False, kill_switch=False))
            made.pause(3600)
            assert made.paused() > 3590


def test_a_refused_script_changes_nothing(paths: Paths) -> None:
    Client(paths).up()
    before = paths.client.snapshot()
    with paths.client.entered(), pytest.raises(nft.NftError, match="refused it"):
        nft.run("delete table inet cryprq\nadd table inet cryprq nonsense\n")
    assert paths.client.snapshot() == before


def test_without_the_right(paths: Paths) -> None:
    def without() -> str:
        os.setuid(UID)
        try:
            Filter.up(SETTINGS, Journal().append, ours=True)
        except nft.NftError as error:
            return str(error)
        return "up"

    assert "run this as root" in paths.client.call(without)
