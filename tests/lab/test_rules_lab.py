"""A person's rules with real packets: what goes past the tunnel, what is refused, and in which order that is decided.

The first half loads the filter alone, on the topology of paths.py; the second half runs the program.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict, parse_cidr, parse_ports
from tests.support.agreed_rules import SEEDS, accepted
from tests.support.lab.capture import Capture
from tests.support.lab.filters import DNS_PORT, SETTINGS, UID, Client, Journal, counted
from tests.support.lab.net import LONG, Lab, Namespace, until
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
    TUN,
    TUNNEL4,
    TUNNEL6,
    WORLD4,
    Paths,
    open_tun,
)
from tun.firewall.filter_rules import FilterRules
from tun.firewall.policy import Policy
from tun.linux.firewall.filter import Filter

BOTH = pytest.mark.parametrize("public", [PUBLIC4, PUBLIC6], ids=["ipv4", "ipv6"])
TUNNEL, DIRECT, BLOCK = Verdict.TUNNEL, Verdict.DIRECT, Verdict.BLOCK
OUTSIDE = {PUBLIC4: CLIENT4, PUBLIC6: CLIENT6, EXIT4: CLIENT4, EXIT6: CLIENT6}
INSIDE = {PUBLIC4: TUNNEL4, PUBLIC6: TUNNEL6, EXIT4: TUNNEL4, EXIT6: TUNNEL6}


@pytest.fixture
def paths(lab: Lab) -> Iterator[Paths]:
    made = Paths(lab)
    made.listen_everywhere(80)
    made.listen_everywhere(443)
    yield made


def rule(verdict: Verdict, *cidrs: str, ports: str = "") -> Rule:
    return Rule(
        action=RuleAction(verdict),
        cidrs=tuple(map(parse_cidr, cidrs)),
        ports=tuple(map(parse_ports, ports.split())),
    )


def compiled(*rules: Rule, default: Verdict = TUNNEL) -> FilterRules:
    return Policy(RuleSet(rules, RuleAction(default))).filter


def ruled(paths: Paths, *rules: Rule, default: Verdict = TUNNEL, **changes: object) -> Client:
    settings = replace(SETTINGS, rules=compiled(*rules, default=default), **changes)  # type: ignore[arg-type]
    return Client(paths, settings).up()


# --- the filter ---


@BOTH
def test_direct_by_prefix_leaves_with_the_hosts_own_address(paths: Paths, public: str) -> None:
    ruled(paths, rule(DIRECT, "93.184.20.0/25", "2606:2800:20::/64"))
    with Capture(paths.client, TUN) as inside:
        assert paths.tcp(paths.client, public, 80) == ("world", OUTSIDE[public])
        there = paths.udp(paths.world, public, 5000)
        here = paths.make(paths.client, public, socket.SOCK_DGRAM)
        here.sendto(b"question", (public, 5000))
        question, peer = there.recvfrom(100)
        assert (question, peer[0]) == (b"question", OUTSIDE[public])
        there.sendto(b"answer", peer)
        assert here.recv(100) == b"answer"
        assert not paths.client.attempt(["ping", "-n", "-c1", f"-W{LONG:g}", public]).returncode
    assert not [each for each in inside.packets if public in each]
    assert paths.tcp(paths.client, EXIT4, 80) == ("beyond", TUNNEL4)


@BOTH
def test_containers_go_past_the_tunnel_too(paths: Paths, public: str) -> None:
    client = ruled(paths, rule(DIRECT, public), rule(BLOCK, EXIT4, EXIT6))
    guest = GUEST6 if public == PUBLIC6 else GUEST4
    assert paths.tcp(paths.guest, public, 80) == ("world", guest), (
        "as without the tunnel: nobody translates here"
    )
    with counted(client, "by_rule"):
        assert paths.tcp(paths.guest, EXIT6 if public == PUBLIC6 else EXIT4, 80) is None
    assert client.dropped("forwarded") == 0


@BOTH
@pytest.mark.parametrize("kill_switch", [True, False])
def test_what_is_blocked_is_refused_at_once(paths: Paths, public: str, kill_switch: bool) -> None:
    client = ruled(paths, rule(BLOCK, public, ports="80"), rule(BLOCK, WORLD4), kill_switch=kill_switch)
    with Capture(paths.client, "eth0") as outside, Capture(paths.client, TUN) as inside:
        assert paths.tcp(paths.client, public, 443) == ("beyond", INSIDE[public])
        assert client.dropped("by_rule") == 0
        for address, port in ((public, 80), (WORLD4, 7)):
            with counted(client, "by_rule"):
                assert not paths.sends(paths.client, address, port)
        for host in (paths.client, paths.guest):
            with counted(client, "by_rule"):
                assert paths.tcp(host, public, 80) is None
    seen = [
        each for each in (*outside.packets, *inside.packets) if each.sent and each.destination_port in (7, 80)
    ]
    assert not seen
    # A rule with ports says nothing of what has none.
    with Capture(paths.client, TUN) as inside:
        paths.client.attempt(["ping", "-n", "-c1", "-W1", public])
    assert [each for each in inside.packets if each.sent and each.destination == public]


def test_the_first_rule_that_applies_decides(paths: Paths) -> None:
    client = ruled(
        paths,
        rule(TUNNEL, PUBLIC4, ports="80"),
        rule(BLOCK, ports="80"),
        rule(DIRECT, PUBLIC4, EXIT4),
        rule(BLOCK, "0.0.0.0/0"),
    )
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("beyond", TUNNEL4)
    assert paths.tcp(paths.client, EXIT4, 80) is None
    assert paths.tcp(paths.client, PUBLIC4, 443) == ("world", CLIENT4)
    assert paths.tcp(paths.client, EXIT4, 443) == ("world", CLIENT4)
    assert paths.tcp(paths.client, RESOLVER4, 443) is None
    assert paths.tcp(paths.client, PUBLIC6, 443) == ("beyond", TUNNEL6)
    client.change(rules=compiled(rule(BLOCK, ports="80"), rule(TUNNEL, PUBLIC4, ports="80")))
    assert paths.tcp(paths.client, PUBLIC4, 80) is None


def test_an_ipv4_address_in_ipv6_is_an_ipv4_address(paths: Paths) -> None:
    ruled(paths, rule(BLOCK, "::/0"), rule(DIRECT, f"::ffff:{PUBLIC4}"))
    with paths.client.entered():
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    with made:
        made.settimeout(LONG)
        made.connect((f"::ffff:{PUBLIC4}", 80))
        while (taken := paths.taken(80)) is None:
            pass
        assert taken == ("world", CLIENT4)


def test_the_default_is_direct(paths: Paths) -> None:
    """What is left is the wish of a person, and still a wrong source, DNS and the link stay what they are."""
    client = ruled(paths, rule(TUNNEL, PUBLIC4, PUBLIC6), rule(BLOCK, ports="443"), default=DIRECT)
    for public, other in ((PUBLIC4, EXIT4), (PUBLIC6, EXIT6)):
        assert paths.tcp(paths.client, public, 80) == ("beyond", INSIDE[public])
        assert paths.tcp(paths.client, other, 80) == ("world", OUTSIDE[other])
        assert paths.tcp(paths.client, other, 443, mark=MARK) == ("world", OUTSIDE[other])
    assert paths.tcp(paths.client, EXIT4, 443) is None
    assert paths.tcp(paths.client, WORLD4, 80) == ("world", CLIENT4)
    forwarder = paths.udp(paths.client, TUNNEL4, DNS_PORT)
    paths.make(paths.client, RESOLVER4, socket.SOCK_DGRAM).sendto(b"question", (RESOLVER4, 53))
    assert forwarder.recv(100) == b"question"
    with Capture(paths.client, "eth0") as outside:
        for port in (53, 853, 5355):
            paths.sends(paths.client, RESOLVER4, port)
            paths.sends(paths.guest, RESOLVER4, port)
        assert paths.tcp(paths.client, EXIT4, 80) == ("world", CLIENT4)
    assert not [each for each in outside.packets if each.sent and RESOLVER4 in each]
    assert client.dropped("blocked") == 0


def test_the_default_is_block(paths: Paths) -> None:
    client = ruled(paths, rule(TUNNEL, PUBLIC4), rule(DIRECT, EXIT4, ports="80"), default=BLOCK)
    assert paths.tcp(paths.client, PUBLIC4, 443) == ("beyond", TUNNEL4)
    assert paths.tcp(paths.client, EXIT4, 80) == ("world", CLIENT4)
    # The default judges what the kernel says by itself too, at times of its own: the counter may be above 0 already.
    for host, refused in (
        *((paths.client, address) for address in (RESOLVER4, PUBLIC6, WORLD4, GUEST4)),
        (paths.guest, RESOLVER4),
    ):
        with counted(client, "by_rule"):
            assert paths.tcp(host, refused, 80) is None
    # The link, neighbours, DHCP and the forwarder are no target of rules.
    paths.client.ip("-6 neigh flush all")
    for address in (EXIT4, EXIT6):
        assert paths.tcp(paths.client, address, 443, mark=MARK) == ("world", OUTSIDE[address])
    there = paths.udp(paths.world, WORLD4, 67)
    assert paths.sends(paths.client, WORLD4, 67, bind=(CLIENT4, 68))
    assert there.recv(10) == b"x"
    forwarder = paths.udp(paths.client, TUNNEL4, DNS_PORT)
    paths.make(paths.client, RESOLVER4, socket.SOCK_DGRAM).sendto(b"question", (RESOLVER4, 53))
    assert forwarder.recv(100) == b"question"
    # Nor is who connects to this machine, or what goes on inside of it.
    listener = paths.listen(paths.client, "0.0.0.0", 2222)
    for host, address in ((paths.world, CLIENT4), (paths.guest, "172.20.0.1"), (paths.client, "127.0.0.1")):
        made = paths.make(host, address, socket.SOCK_STREAM)
        made.connect((address, 2222))
        with listener.accept()[0] as accepted:
            accepted.send(b"hello")
            assert made.recv(10) == b"hello"


def test_rules_go_before_the_other_settings(paths: Paths) -> None:
    """But for users who are excluded: no rule concerns them."""
    paths.client.ip("rule add priority 25411 to 93.184.20.0/24 lookup main")
    paths.client.ip(f"rule add priority 25412 uidrange {UID}-{UID} lookup main")
    client = ruled(
        paths,
        rule(BLOCK, PUBLIC4, ports="80"),
        rule(DIRECT, WORLD4),
        rule(TUNNEL, PUBLIC4),
        excluded=frozenset({ip_network("93.184.20.0/24")}),
        excluded_uids=frozenset({UID}),
        lan_allowed=False,
    )
    assert paths.tcp(paths.client, PUBLIC4, 80) is None
    assert paths.tcp(paths.client, PUBLIC4, 80, uid=UID) == ("world", CLIENT4)
    assert paths.tcp(paths.client, PUBLIC4, 443) == ("world", CLIENT4), (
        "what is for the tunnel may be excluded"
    )
    assert paths.tcp(paths.client, WORLD4, 80) == ("world", CLIENT4)
    client.change(rules=FilterRules())
    assert paths.tcp(paths.client, WORLD4, 80) is None


def test_a_neighbour_gets_nothing_of_it(paths: Paths) -> None:
    client = ruled(paths, rule(DIRECT, RESOLVER4), default=DIRECT)
    for address in (PUBLIC4, RESOLVER4):
        paths.world.ip(f"addr del {address}/32 dev lo")
        with counted(client, "forwarded"):
            assert paths.tcp(paths.world, address, 80) is None


@BOTH
def test_other_rules_end_what_goes_past_the_tunnel_without_a_reason_and_nothing_else(
    paths: Paths, public: str
) -> None:
    """In the tunnel, a connection keeps the verdict that it began with."""
    client = ruled(paths, rule(DIRECT, public, ports="8080"))
    with ExitStack() as stack:
        connections = []
        for port, where in ((8080, paths.world), (8081, paths.beyond)):
            listener = paths.listen(where, public, port)
            made = paths.make(paths.client, public, socket.SOCK_STREAM)
            made.connect((public, port))
            connections.append((made, stack.enter_context(listener.accept()[0])))
        direct, tunnelled = connections
        unanswered = paths.make(paths.client, public, socket.SOCK_DGRAM)
        there = paths.udp(paths.beyond, public, 5000)
        unanswered.sendto(b"first", (public, 5000))
        assert there.recv(10) == b"first"

        def goes_on(made: socket.socket, taken: socket.socket) -> None:
            made.send(b"still")
            assert taken.recv(10) == b"still"
            taken.send(b"here")
            assert made.recv(10) == b"here"

        for rules in (
            compiled(default=DIRECT),
            compiled(rule(DIRECT, public, ports="5000 8080-8081"), default=BLOCK),
            compiled(rule(BLOCK, public)),
            FilterRules(),
        ):
            client.change(rules=rules)
            if rules.sends_past_the_tunnel(ip_address(public), socket.IPPROTO_TCP, 8080):
                goes_on(*direct)
            goes_on(*tunnelled)
            unanswered.sendto(b"again", (public, 5000))
            assert there.recv(10) == b"again"
        with pytest.raises(OSError):
            direct[0].send(b"over")
            direct[0].recv(10)
        client.change(rules=compiled(rule(BLOCK, public)))
        assert paths.tcp(paths.client, public, 80) is None


def test_a_pause_is_a_pause_of_the_rules_as_well(paths: Paths) -> None:
    client = ruled(paths, rule(BLOCK, PUBLIC4))
    client.do(lambda each: each.pause(60))
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    client.do(lambda each: each.pause(1))
    shown = ["nft", "list", "set", "inet", "cryprq", "open"]
    until(lambda: "expires" not in paths.client.run(shown), "the pause is over")
    assert paths.tcp(paths.client, PUBLIC4, 80) is None


def test_many_prefixes(paths: Paths) -> None:
    """Ten thousand of them, loaded and replaced in the time that a start takes anyway."""
    many = [
        f"{first}.{second}.{third}.0/25" for first in (1, 2) for second in range(50) for third in range(100)
    ]
    client = ruled(
        paths, rule(BLOCK, *many), rule(DIRECT, f"{PUBLIC4}/32", *(f"11.{n}.0.0/17" for n in range(250)))
    )
    assert not paths.sends(paths.client, "2.49.99.127", 7)
    assert paths.sends(paths.client, "2.49.99.128", 7)
    assert paths.tcp(paths.client, PUBLIC4, 80) == ("world", CLIENT4)
    client.change(rules=compiled(rule(TUNNEL, *many[:5000]), rule(BLOCK, *many)))
    assert paths.sends(paths.client, "1.49.99.127", 7)
    assert not paths.sends(paths.client, "2.49.99.127", 7)


# --- the kernel's word on generated rules ---

_WITNESS = """
table inet witness {
    set outside4 { type ipv4_addr . inet_service; flags dynamic; size 65535; }
    set outside6 { type ipv6_addr . inet_service; flags dynamic; size 65535; }
    set inside4 { type ipv4_addr . inet_service; flags dynamic; size 65535; }
    set inside6 { type ipv6_addr . inet_service; flags dynamic; size 65535; }
    chain sent {
        type filter hook postrouting priority 400;
        oifname eth0 ip saddr 198.18.0.1 add @outside4 { ip daddr . udp dport }
        oifname eth0 ip6 saddr 2001:db9::1 add @outside6 { ip6 daddr . udp dport }
        oifname cryprq0 ip saddr 198.18.0.2 add @inside4 { ip daddr . udp dport }
        oifname cryprq0 ip6 saddr fd63:7279:7071::2 add @inside6 { ip6 daddr . udp dport }
    }
}
"""


def _crossroads(lab: Lab) -> Namespace:
    """A host with two ways out that lead nowhere, and whose own addresses are in no rule."""
    host = lab.namespace("crossroads")
    for device, addresses in (
        ("eth0", ("198.18.0.1/32", "2001:db9::1/128")),
        (TUN, (f"{TUNNEL4}/32", f"{TUNNEL6}/128")),
    ):
        lab.on_close(functools.partial(os.close, open_tun(host, device)))
        lab.address(host, device, *addresses)
    for ip in ("", "-6"):
        host.ip(f"{ip} route add default dev eth0")
        host.ip(f"{ip} route add default dev {TUN} table 25458")
        host.ip(f"{ip} rule add priority 25400 fwmark {MARK} lookup main")
        host.ip(f"{ip} rule add priority 25490 lookup 25458")
    return host


def _sent(host: Namespace, device: str) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for version in (4, 6):
        listed = json.loads(host.run(["nft", "-j", "list", "set", "inet", "witness", f"{device}{version}"]))
        for each in listed["nftables"]:
            for element in each.get("set", {}).get("elem", ()):
                address, port = element.get("elem", {}).get("val", element)["concat"]
                found.add((str(ip_address(address)), port))
    return found


def _routable(target: Destination) -> bool:
    address = ip_address(target.host)
    mapped = getattr(address, "ipv4_mapped", None) or address
    return not (
        mapped.is_loopback
        or mapped.is_multicast
        or mapped.is_unspecified
        or mapped.is_link_local
        # The tunnel refuses the reserved addresses with the groups of IPv4, which lie below them.
        or (mapped.version == 4 and mapped.packed[0] in {0, *range(240, 256)})
        or target.port == 53
    )


def test_the_kernel_decides_as_the_rules_do(lab: Lab) -> None:
    """Thousands of addresses and ports, a hundred rules, several times: by which device does a datagram leave?"""
    host = _crossroads(lab)
    seen: Counter[Verdict] = Counter()
    for seed in SEEDS:
        rules, targets = accepted(seed)
        asked = [target for target in targets if target.is_ip and _routable(target)]
        settings = replace(SETTINGS, rules=Policy(rules).filter, lan=frozenset(), guests=frozenset())
        host.attempt(["nft", "delete", "table", "inet", "witness"])
        host.nft(_WITNESS)
        refused: set[Destination] = set()
        with host.entered():
            Filter.up(settings, Journal().append, ours=seed > 0)
            four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with four, six:
            for target in asked:
                try:
                    (six if ":" in target.host else four).sendto(b"x", target)
                except PermissionError:
                    refused.add(target)
        outside, inside = _sent(host, "outside"), _sent(host, "inside")
        assert not outside & inside
        for target in asked:
            address = ip_address(target.host)
            key = str(getattr(address, "ipv4_mapped", None) or address), target.port
            verdict = rules.decide(*target).action.verdict
            seen[verdict] += 1
            got = (target in refused, key in outside, key in inside)
            assert got == (verdict is BLOCK, verdict is DIRECT, verdict is TUNNEL), (seed, target, verdict)
    assert min(seen[verdict] for verdict in (TUNNEL, DIRECT, BLOCK)) > 1000, seen
