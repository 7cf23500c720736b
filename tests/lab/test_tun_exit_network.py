"""The exit's network interface among other programs: what they take away opens nothing, and comes back."""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import EXIT4, EXIT6, SERVER4, SERVER6
from tests.support.lab.links import Role
from tests.support.lab.net import LONG, SILENCE, until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import Stage, beside_the_link

DEVICE: Final = "cryprq-exit0"
PAGE_PORT: Final = 9000
OUTER: Final = 20.0
"""Seconds for one repair on a machine that is busy with other things."""
REPAIR: Final = 2.0
"""Seconds that the median of all repairs may take."""
COMMANDS: Final = 5
"""On a machine that is busy with other things, it may take as long as so many short commands take there."""


def exit_addresses(stage: Stage) -> list[IPv4Address | IPv6Address]:
    """The exit's own inside the tunnel."""
    listed = json.loads(stage.hosts.exit.ip(f"-j addr show dev {DEVICE}"))
    return [ip_address(found["local"]) for found in listed[0]["addr_info"]]


@dataclass(frozen=True)
class Change:
    """What another program does on the exit's machine."""

    fact: str
    command: str
    found: str


# What is found twice within ten seconds is told once, so no two in sequence may be told in the same words.
CHANGES: Final = (
    [Change("packet filter", "nft flush chain inet cryprq_exit sources", "was changed")],
    [Change("packet filter", "nft flush ruleset", "was removed")],
    # nft 1.0.6 lists such a table as JSON that cannot be read, or, as its memory happens to be, as JSON that can.
    [Change("packet filter", "nft add table inet cryprq_exit { flags dormant; }", "was changed")],
    [Change("device", f"ip addr flush dev {DEVICE}", "was removed")],
    [Change("device", f"ip link set {DEVICE} down", "it was down")],
    [Change("device", f"ip link set {DEVICE} mtu 1300", "its MTU was 1300")],
    [
        Change("IPv4 forwarding", "sysctl -qw net.ipv4.ip_forward=0", "ip_forward was 0"),
        Change("IPv6 forwarding", "sysctl -qw net.ipv6.conf.all.forwarding=0", "was 0"),
        Change("router advertisements", "sysctl -qw net.ipv6.conf.eth0.accept_ra=1", "was 1"),
        Change("connection tracking", "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0", "was 0"),
    ],
    [Change("IPv4 forwarding", "sysctl -qw net.ipv4.conf.eth0.forwarding=0", "eth0.forwarding was 0")],
    [Change("IPv4 forwarding", f"sysctl -qw net.ipv4.conf.{DEVICE}.forwarding=0", "exit0.forwarding was 0")],
)


def repairs(stage: Stage) -> dict[str, int]:
    return {fact["name"]: fact["repairs"] for fact in stage.exit_status()["repairs"]}


def test_what_others_change_on_the_exit_comes_back(stage: Stage) -> None:
    exit = stage.hosts.exit
    before = exit.snapshot()
    took, commands = {}, []
    with stage.tunnel():
        for changes in CHANGES:
            asked = time.monotonic()
            counted, since = repairs(stage), stage.exit.written
            begun = time.monotonic()
            commands.append(begun - asked)
            for change in changes:
                exit.run(change.command.split())
            for change in changes:
                said = f"{change.fact}: another program changed it: .*{change.found}.*; it is put back"
                stage.exit.says(said, since=since, seconds=OUTER)
                took[change.command] = time.monotonic() - begun
                assert len([line for line in stage.exit.lines[since:] if f"{change.fact}: " in line]) == 1
            until(lambda: all(repairs(stage)[c.fact] > counted[c.fact] for c in changes), "counted")  # noqa: B023
            for server, seen in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
                assert stage.fetch(server) == seen, changes
        until(lambda: not any(fact["found"] for fact in stage.exit_status()["repairs"]), "all stands")
        assert exit.snapshot() == before
    print({what: round(seconds, 2) for what, seconds in took.items()})
    assert statistics.median(took.values()) < max(REPAIR, COMMANDS * statistics.median(commands)), took


def test_without_the_table_nothing_more_of_the_exit_is_reached(stage: Stage) -> None:
    """The judge is the exit's device: what the kernel does not get there, no filter needs to refuse."""
    exit = stage.hosts.exit
    web = exit.popen([sys.executable, "-m", "http.server", str(PAGE_PORT), "--bind", "::"])
    until(
        lambda: bool(exit.attempt(["ss", "-Hltn", f"sport = {PAGE_PORT}"]).stdout),
        "the exit's page is served",
    )
    with stage.tunnel(), Capture(exit, DEVICE) as device:
        own = exit_addresses(stage)
        others = [address + 100 for address in own]
        broadcast = ip_address(int(own[0]) | 0xFFFF)
        for address in (*own, *others, broadcast, ip_address(EXIT4), ip_address(EXIT6)):
            exit.run(["nft", "flush", "ruleset"])
            host = f"[{address}]" if address.version == 6 else str(address)
            done = stage.client.attempt(
                ["curl", "-s", "--max-time", f"{LONG:g}", f"http://{host}:{PAGE_PORT}/"]
            )
            assert done.returncode == 7, (address, done.stdout)
        exit.run(["nft", "flush", "ruleset"])
        # What a client sends is withheld until the table is back.
        until(lambda: all(stage.ping(str(address), seconds=1) for address in own), "pings of the exit")
        assert not any(stage.ping(str(address), seconds=SILENCE) for address in others)
    web.kill()
    written = {(p.protocol, p.destination) for p in device.packets if not p.sent}
    pings = {("icmp" if address.version == 4 else "icmpv6", str(address)) for address in own}
    assert written == pings


def test_an_address_that_comes_while_the_exit_runs_is_its_own_at_once(stage: Stage) -> None:
    """The program refuses it by itself, and so also while there is no table. The judge is what the program counts."""
    exit = stage.hosts.exit

    def forbidden() -> int:
        counted: int = stage.exit_status()["drops"].get("forbidden by the policy", 0)
        return counted

    def refused(address: str) -> bool:
        before = forbidden()
        stage.client.attempt(["ping", "-n", "-c", "1", "-W", "1", address])
        return forbidden() > before

    came = ["93.184.30.1", "2606:2800:30::1"]
    with stage.tunnel():
        for address in came:
            assert not refused(address)
            exit.ip(f"addr add {address} dev eth0")
            until(lambda address=address: refused(address), f"{address} is the exit's", OUTER)  # type: ignore[misc]
            exit.run(["nft", "flush", "ruleset"])
            assert not stage.ping(address)
            exit.ip(f"addr del {address} dev eth0")
            until(lambda address=address: not refused(address), f"{address} is no more", OUTER)  # type: ignore[misc]


def test_the_exit_takes_addresses_that_are_free_on_its_machine(stage: Stage) -> None:
    exit = stage.hosts.exit

    def occupy() -> None:
        exit.ip("link add name other0 type bridge")
        exit.ip("addr add 198.18.7.1/24 dev other0")
        exit.ip("-6 route add blackhole fd63:7279:7071::/64")

    stage.restart_exit(occupy)
    with stage.tunnel():
        assert [str(address) for address in exit_addresses(stage)] == ["198.19.0.1", "fd63:7279:7071:1::1"]
        assert stage.fetch(SERVER4) == EXIT4
        assert stage.fetch(SERVER6) == EXIT6

    def release() -> None:
        exit.ip("link del other0")
        exit.ip("-6 route del blackhole fd63:7279:7071::/64")

    stage.restart_exit(release)


FOLLOWS: Final = """
table ip follows {
    chain forward {
        type filter hook forward priority 0;
        ct state established accept
    }
}
"""
"""Of another program, for which the kernel follows connections."""


def test_a_flow_that_began_without_nat_goes_on_with_it(stage: Stage) -> None:
    """Conntrack knows it as one without NAT, and an entry that is used does not end by itself."""
    with stage.tunnel(), stage.socket(SERVER4, socket.SOCK_DGRAM) as sock:
        since = stage.exit.written
        stage.hosts.exit.nft(FOLLOWS)
        stage.hosts.exit.run(["nft", "delete", "table", "inet", "cryprq_exit"])
        sock.sendto(b"echo", (SERVER4, ECHO_PORT))
        stage.exit.says("packet filter: .*put back", since=since)
        sock.settimeout(0.2)

        def answered() -> bool:
            sock.sendto(b"echo", (SERVER4, ECHO_PORT))
            try:
                return sock.recv(100) == b"echo"
            except TimeoutError:
                return False

        until(answered, "an answer")
        stage.hosts.exit.nft("delete table ip follows")


def advertise(stage: Stage, lifetime: int) -> None:
    """The router tells the exit that it is a default router for so many seconds (RFC 4861, section 4.2); 0: no more."""
    with stage.hosts.router.entered():
        device = socket.if_nametoindex("to-exit")
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, device)
            sock.sendto(struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0), ("ff02::1", 0, 0, device))


def test_ipv6_that_comes_by_a_router_advertisement_and_goes(stage: Stage) -> None:
    exit = stage.hosts.exit

    def leave() -> None:
        exit.ip("-6 route del default")
        exit.sysctl("net.ipv6.conf.eth0.accept_ra", "1")

    def addresses() -> int:
        return len(stage.status()["addresses"])

    stage.restart_exit(leave)
    with stage.tunnel() as role, stage.wire() as wire:
        assert stage.refuses(SERVER6) and addresses() == 1
        since = role.written
        advertise(stage, 1800)
        until(lambda: addresses() == 2, "the client has an IPv6 address")
        assert stage.fetch(SERVER6) == EXIT6
        assert stage.fetch(SERVER4) == EXIT4
        assert exit.sysctl("net.ipv6.conf.eth0.accept_ra") == "2"
        advertise(stage, 0)
        until(lambda: addresses() == 1, "the client's IPv6 address is gone")
        assert stage.refuses(SERVER6)
        assert stage.fetch(SERVER4) == EXIT4
        advertise(stage, 1800)
        until(lambda: addresses() == 2, "it is back")
        assert stage.fetch(SERVER6) == EXIT6
        assert not [line for line in role.lines[since:] if "link down" in line or "link up" in line]
    assert not beside_the_link(wire)

    def back() -> None:
        advertise(stage, 0)
        exit.ip("-6 route add default via 2a01:4f8:10::1")
        exit.sysctl("net.ipv6.conf.eth0.accept_ra", "0")

    stage.restart_exit(back)


def address_of(stage: Stage) -> str:
    """The client's own inside the tunnel, over IPv4."""
    address: str = stage.status()["addresses"][0]
    return address


@contextmanager
def network_around(stage: Stage) -> Iterator[Callable[[Role], str]]:
    """A bridge of the client whose network holds the address that the exit hands out. Gives what waits until a role has
    asked for another one, and returns that."""
    client = stage.client
    with stage.tunnel():
        first = address_of(stage)
    lan = ip_network(f"{first}/24", strict=False)
    client.ip("link add name other0 type bridge")
    client.ip("link set other0 up")
    client.ip(f"addr add {lan[1]}/24 dev other0")

    def another(role: Role) -> str:
        role.says(
            rf"hands out {first}.*, which lies in a local network here \({lan}\): it is asked for another"
        )
        second = address_of(stage)
        assert ip_address(second) not in lan
        return second

    try:
        yield another
    finally:
        client.ip("link del other0")


def test_a_network_of_another_range_around_the_client(stage: Stage) -> None:
    """As one of a laboratory: it is no LAN by its addresses, and holds the tunnel address all the same."""
    client = stage.client
    with network_around(stage) as another, stage.tunnel() as role, stage.wire() as wire:
        second = another(role)
        assert stage.fetch(SERVER4) == EXIT4
        # One that comes later: this time exactly the address.
        client.ip(f"addr add {second}/32 dev other0")
        role.says(rf"hands out {second}.*, which lies in a local network here", seconds=OUTER)
        until(lambda: another(role) != second, "a third address")
        until(lambda: stage.fetches(SERVER4) == EXIT4, "IPv4 flows", OUTER)
        client.ip(f"addr del {second}/32 dev other0")
    assert not beside_the_link(wire)


def test_another_device_of_the_client_has_the_resolvers_address(stage: Stage) -> None:
    """Over an exit without IPv6 it is the only one. What asks there reaches the forwarder all the same."""
    exit, client = stage.hosts.exit, stage.client
    stage.restart_exit(lambda: exit.ip("-6 route del default"))
    client.ip("link add name other1 type bridge")
    client.ip("link set other1 up")
    stage.server.dns.answers["b.example.com.", "A"] = ["192.0.2.8"]
    for prefix in ("198.18.255.53/32", "198.18.255.53/24"):
        client.ip(f"addr add {prefix} dev other1")
        with stage.tunnel() as role, stage.wire() as wire:
            assert client.run(["getent", "ahostsv4", "a.example.com"]).startswith("192.0.2.7")
            client.ip("-4 addr flush dev other1")
            client.ip(f"addr add {prefix} dev other1")
            assert client.run(["getent", "ahostsv4", "b.example.com"]).startswith("192.0.2.8")
            assert role.process.poll() is None
        assert not beside_the_link(wire)
        client.ip("-4 addr flush dev other1")
    client.ip("link del other1")
    stage.restart_exit(lambda: exit.ip("-6 route add default via 2a01:4f8:10::1"))


def test_an_address_that_a_network_around_the_client_holds(namespaces: None) -> None:
    """It is refused, and another one asked for; where the exit has none, both sides say so in a sentence."""
    with Stage(exit_settings={"tun": {"pool4": "10.50.0.0/16"}}) as stage:
        client = stage.client
        with network_around(stage) as another:
            with stage.tunnel() as role, stage.wire() as wire:
                another(role)
                assert stage.fetch(SERVER4) == EXIT4
                assert stage.fetch(SERVER6) == EXIT6
                assert stage.ping("10.50.0.1")
            assert not beside_the_link(wire)
            client.ip("addr flush dev other0")
            client.ip("addr add 10.50.255.254/16 dev other0")
            failing = stage.links.client(client, ready="its operator must choose another pool")
            assert failing.wait() == 1
            stage.exit.says("has no address for it outside of 10.50.0.0/16")
            stage.links.roles.remove(failing)
