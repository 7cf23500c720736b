"""What leaves the client while system-wide mode stands: the link to the exit, and nothing else.

Each test has a capture on the client's outer interface, or asks the far server whom it has seen: packets past the
tunnel come from the home's router (IPv4) or the client itself (IPv6), all others from the exit.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.support.lab.capture import Capture, is_neighbourly
from tests.support.lab.hosts import (
    DIRECT,
    EXIT4,
    EXIT6,
    ROUTER_LAN4,
    ROUTER_LAN6,
    ROUTER_SERVER4,
    SERVER4,
    SERVER6,
    THROUGH,
)
from tests.support.lab.links import PORT
from tests.support.lab.net import LONG, SILENCE, Namespace, until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import Stage, beside_the_link, host_of
from tun.settings import RESOLVER6

GUEST4, GUEST6 = "172.20.0.2", "fd20::2"


# --- everything ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit", [f"{EXIT4}:{PORT}", f"[{EXIT6}]:{PORT}", f"exit.test:{PORT}"])
def test_everything_arrives_from_the_exit_and_only_the_link_is_on_the_wire(stage: Stage, exit: str) -> None:
    """From before the start until after the end."""
    stage.resolver.dns.answers[("exit.test.", "A")] = [EXIT4]
    stage.resolver.forget()
    with (
        stage.wire() as wire,
        Capture(stage.hosts.server, "eth0") as arrivals,
        stage.tunnel(address=exit) as client,
    ):
        client.says("datagram lane is up")
        for address, seen in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
            assert stage.fetch(address) == seen
            assert stage.echo(address) == seen
            assert stage.ping(address)
        assert "192.0.2.7" in stage.client.run(["dig", "+short", "a.example.com"])
    named = exit.startswith("exit.test")
    beside = {(p.protocol, p.destination, p.destination_port) for p in beside_the_link(wire)}
    assert beside == ({("udp", ROUTER_LAN4, 53)} if named else set())
    assert {visit.what for visit in stage.resolver.visits} == (
        {"exit.test. A", "exit.test. AAAA"} if named else set()
    )
    link = {p.protocol for p in wire.packets if p.sent and p.destination_port == PORT}
    assert link == {"tcp", "udp"}
    kinds = {(p.protocol, p.source) for p in arrivals.packets if not p.sent and not is_neighbourly(p)}
    assert kinds == {(kind, EXIT4) for kind in ("tcp", "udp", "icmp")} | {
        (kind, EXIT6) for kind in ("tcp", "udp", "icmpv6")
    }


# --- what the network says ----------------------------------------------------------------------------------------


def push_routes(host: Namespace) -> None:
    """What a hostile DHCP server or access point can do: routes with a gateway, and a public prefix on the link."""
    for prefix in ("0.0.0.0/1", "128.0.0.0/1", "93.184.20.0/24"):
        host.ip(f"route add {prefix} via {ROUTER_LAN4} dev eth0")
    for prefix in ("2000::/3", "2606:2800:20::/64"):
        host.ip(f"-6 route add {prefix} via {ROUTER_LAN6} dev eth0")


def move_next_door(host: Namespace) -> None:
    """The server seems to be on the client's own link."""
    host.ip("addr add 93.184.20.77/25 dev eth0")
    host.ip("addr add 2606:2800:20::77/65 dev eth0 nodad")


def take_back(host: Namespace) -> None:
    # A closed IPv6 socket may still repeat its end from the tunnel's address, after the tunnel: to a neighbour that
    # does not exist here, so that the kernel gives up seconds later, with an ICMP error in the middle of the next test.
    host.attempt(["ss", "-K", "-6", "src", f"[{RESOLVER6}]/64"])
    host.ip("-6 neigh flush dev eth0 nud incomplete")
    host.ip("addr del 93.184.20.77/25 dev eth0")
    host.ip("addr del 2606:2800:20::77/65 dev eth0")
    for prefix in ("0.0.0.0/1", "128.0.0.0/1", "93.184.20.0/24"):
        host.ip(f"route del {prefix} via {ROUTER_LAN4} dev eth0")
    for prefix in ("2000::/3", "2606:2800:20::/64"):
        host.ip(f"-6 route del {prefix} via {ROUTER_LAN6} dev eth0")


def arrives_through_the_tunnel(stage: Stage) -> None:
    for address, seen in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
        assert stage.fetch(address) == seen
        assert stage.echo(address) == seen
        assert stage.ping(address)


@pytest.mark.parametrize("early", [True, False], ids=["before", "while it runs"])
def test_routes_and_prefixes_from_the_network_lead_nothing_past_the_tunnel(stage: Stage, early: bool) -> None:
    """CVE-2024-3661 and CVE-2023-36672."""
    client = stage.client
    with ExitStack() as stack:
        if early:
            push_routes(client)
            move_next_door(client)
            stack.callback(take_back, client)
        with stage.wire() as wire, stage.tunnel():
            arrives_through_the_tunnel(stage)
            if not early:
                push_routes(client)
                arrives_through_the_tunnel(stage)
                move_next_door(client)
                # A private address comes last: when its rule is there, the changes before it have been seen.
                client.ip("addr add 10.77.0.1/24 dev eth0")
                until(lambda: "10.77.0.0/24" in client.ip("rule"), "the rule for a new LAN prefix")
                arrives_through_the_tunnel(stage)
                client.ip("addr del 10.77.0.1/24 dev eth0")
                until(lambda: "10.77.0.0/24" not in client.ip("rule"), "the rule is gone")
                take_back(client)
        assert not beside_the_link(wire)


# --- what was there before ----------------------------------------------------------------------------------------


def test_sockets_from_before_do_not_leak(stage: Stage) -> None:
    """TCP is reset, UDP is refused; what is bound to no address goes on, through the tunnel."""
    stage.server.forget()
    with ExitStack() as stack:
        streams, datagrams, free = {}, {}, {}
        for version, address in ((4, SERVER4), (6, SERVER6)):
            streams[version] = stack.enter_context(stage.socket(address))
            streams[version].connect((address, ECHO_PORT))
            streams[version].sendall(b"before")
            assert streams[version].recv(100) == b"before"
            datagrams[version] = stack.enter_context(stage.socket(address, socket.SOCK_DGRAM))
            datagrams[version].connect((address, ECHO_PORT))
            datagrams[version].send(b"before")
            assert datagrams[version].recv(100) == b"before"
            free[version] = stack.enter_context(stage.socket(address, socket.SOCK_DGRAM))
            free[version].sendto(b"before", (address, ECHO_PORT))
            assert free[version].recv(100) == b"before"
        assert stage.server.sources("echo") == set(DIRECT.values())
        with stage.wire() as wire, stage.tunnel():
            stage.server.forget()
            for version in (4, 6):
                with pytest.raises(ConnectionResetError):
                    streams[version].sendall(b"after")
                    streams[version].recv(100)
                with pytest.raises(OSError) as refused:
                    for _ in range(2):  # the first refusal may be told at the second call
                        datagrams[version].send(b"after")
                        datagrams[version].recv(100)
                assert not isinstance(refused.value, TimeoutError)
            assert not stage.server.visits
            for version, address in ((4, SERVER4), (6, SERVER6)):
                free[version].sendto(b"after", (address, ECHO_PORT))
                assert free[version].recv(100) == b"after"
            assert stage.server.sources("echo") == set(THROUGH.values())
            assert stage.status()["kill_switch"]["kept_in"]["stale"] >= 4
        assert not beside_the_link(wire)


# --- containers ---------------------------------------------------------------------------------------------------


@contextmanager
def container(stage: Stage) -> Iterator[Namespace]:
    """A namespace behind a bridge, with the masquerading and the resolver that a container engine gives it."""
    client = stage.client
    forwarding = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    before = {key: client.sysctl(key) for key in forwarding}
    client.ip("link add name br0 type bridge")
    client.ip("link set br0 up")
    stage.lab.address(client, "br0", "172.20.0.1/24", "fd20::1/64")
    guest = stage.lab.namespace("guest")
    stage.lab.veth(client, "guest", guest, "eth0")
    client.ip("link set guest master br0")
    stage.lab.address(guest, "eth0", f"{GUEST4}/24", f"{GUEST6}/64")
    guest.ip("route add default via 172.20.0.1")
    guest.ip("-6 route add default via fd20::1")
    guest.resolv_conf.write_text(f"nameserver {ROUTER_LAN4}\n")
    stage.lab.forward(client)
    client.nft(
        "table inet engine { chain post { type nat hook postrouting priority 100;"
        " iifname br0 oifname != br0 masquerade; }; }"
    )
    try:
        yield guest
    finally:
        client.nft("delete table inet engine")
        guest.close()
        client.ip("link del br0")
        for key, value in before.items():
            client.sysctl(key, value)


def container_is_tunnelled(stage: Stage, guest: Namespace) -> None:
    for address, seen in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
        assert stage.fetch(address, host=guest) == seen
        assert stage.echo(address, guest) == seen
        assert stage.ping(address, guest)
        with stage.socket(address, host=guest) as sock:
            sock.connect((address, ECHO_PORT))
            sock.sendall(b"x" * 100_000)
            left = 100_000
            while left:
                left -= len(sock.recv(left))
    stage.server.dns.answers[("guest.example.com.", "A")] = ["192.0.2.9"]
    for resolver in ((), ("@8.8.8.8",), ("@2001:4860:4860::8888",), ("+tcp",), ("+tcp", "@8.8.8.8")):
        answer = guest.run(["dig", "+short", "+tries=1", f"+time={LONG:g}", *resolver, "guest.example.com"])
        assert answer.strip() == "192.0.2.9", resolver
    assert stage.server.sources("dns") == {EXIT4}
    assert not stage.resolver.visits


def test_a_container_from_before_is_tunnelled_with_its_dns(stage: Stage) -> None:
    with container(stage) as guest:
        assert stage.fetch(SERVER4, host=guest) == ROUTER_SERVER4
        with stage.socket(SERVER4, host=guest) as old:
            old.connect((SERVER4, ECHO_PORT))
            old.sendall(b"before")
            assert old.recv(100) == b"before"
            with stage.wire() as wire, stage.tunnel():
                stage.server.forget()
                stage.resolver.forget()
                with suppress(ConnectionResetError):
                    old.sendall(b"after")
                    assert not old.recv(100), "an old connection of a container goes on past the tunnel"
                container_is_tunnelled(stage, guest)
            assert not beside_the_link(wire)
        assert stage.fetch(SERVER4, host=guest) == ROUTER_SERVER4


def test_a_container_made_while_it_runs_is_tunnelled_with_its_dns(stage: Stage) -> None:
    with stage.wire() as wire, stage.tunnel(), container(stage) as guest:
        until(lambda: "172.20.0.0/24" in stage.client.ip("rule"), "the rule for the bridge")
        stage.server.forget()
        stage.resolver.forget()
        container_is_tunnelled(stage, guest)
    assert not beside_the_link(wire)


# --- half an exit -------------------------------------------------------------------------------------------------


def test_ipv6_is_unreachable_where_the_exit_has_none(namespaces: None) -> None:
    """At once, and never direct."""
    with Stage(ipv6=False) as stage:
        stage.server.dns.answers |= {
            ("b.example.com.", "A"): ["192.0.2.7"],
            ("b.example.com.", "AAAA"): ["2001:db8::7"],
        }
        with stage.wire() as wire, stage.tunnel():
            assert not stage.status()["ipv6"]
            assert not stage.ping(SERVER6, seconds=SILENCE)
            assert stage.refuses(SERVER6), "a program would wait"
            with stage.socket(SERVER6, socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as refused:
                sock.sendto(b"x", (SERVER6, ECHO_PORT))
            assert not isinstance(refused.value, TimeoutError)
            answer = stage.client.run(["dig", "b.example.com", "AAAA"])
            assert "status: NOERROR" in answer and "ANSWER: 0" in answer
            assert stage.client.run(["dig", "+short", "b.example.com", "A"]) == "192.0.2.7\n"
            assert stage.fetch(SERVER4) == EXIT4
            for device in ((), ("--interface", "eth0")):
                url = f"http://{host_of(SERVER6)}/address"
                assert stage.client.attempt(
                    ["curl", "-s", "--max-time", f"{SILENCE:g}", *device, url]
                ).returncode
        assert not beside_the_link(wire)
