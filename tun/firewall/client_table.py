"""The client's packet filter as a script for nft: what may leave this machine, and where.

`script` is a pure function from settings to text. The table has these chains, in the order in which packets meet
them:

    guard      prerouting, first   packets to the tunnel address that did not come through the tunnel
    mark_in    prerouting          gives answers of connections that go past the tunnel the mark of the link, and
                                   calls `rules` for containers
    dns_in     prerouting, NAT     brings the DNS of containers to the forwarder
    input                          no connection to this machine comes in through the tunnel
    forward                        containers and virtual machines: into the tunnel, or to the LAN
    mark_out   output, routing     gives the mark to what goes past the tunnel, and calls `rules` for this machine
    dns_out    output, NAT         brings our own DNS to the forwarder
    output                         the kill switch
    sources    postrouting, NAT    containers get the tunnel address
    leaving    postrouting         a wrong source, or our own address as destination, never leaves, whatever
                                   another chain has done

Nothing is accepted for being established: a socket that was open before the tunnel is not. What goes past the tunnel
on purpose is known by its conntrack mark, which has four values: BYPASS for the link and excluded users, INBOUND
for connections from outside, PAUSED for those begun while the filter is open for a captive portal, DIRECT for those
that a person's rule sends there (user_rules.py). All four get the link's fwmark, so that a single routing rule
serves, and the kernel's reverse path filter sees the right route. A fifth value, BLOCKED, is for what a rule refuses.

In output hooks `oifname` is the device that was chosen *before* marks and NAT changed the route. Hence `fib daddr
type local` next to `oifname lo`, and marked connections are judged before the tunnel's rule.

Devices are matched by name, so all of this stands before the tunnel device exists and after it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from ..settings import DISCOVERY
from .filter_settings import BLOCKED, BYPASS, DIRECT, INBOUND, NOTHING_OPEN, PAUSED, FilterSettings, Openings
from .inbound import NOT_KEPT, Address, Inbound
from .nft import CLAMP, CLIENT, NO_COUNTS, REFUSE, Count, block, counters, name, prefixes, replacing, set_of
from .user_rules import DNS_PORTS, rule_chains, rule_sets

COUNTERS: Final = ("dns", "blocked", "stale", "guard", "unsolicited", "forwarded", "by_rule")
"""What was kept in, by cause: DNS past the forwarder; anything else past the tunnel; packets whose source address
does not belong to the device that they leave by; packets to the tunnel address from other devices; new connections
out of the tunnel; packets of containers and neighbours; what a person's rule blocks."""

# Priorities as numbers: older versions of nft know no name for NAT in the output hook.
BEFORE_OTHERS_DNAT: Final = "-105"
BEFORE_OTHERS_SNAT: Final = "95"
AFTER_NAT: Final = "300"
# What discovery on the LAN is sent to: of the link and, for SSDP, of the site (RFC 2365, RFC 4291 section 2.7), with
# any flags.
_DISCOVERY: Final = (
    "ip daddr { " + ", ".join(map(str, DISCOVERY)) + " }",
    "ip6 daddr & ff0f:: == { ff02::, ff05:: }",
)
_GROUPS: Final = ("ip daddr { 224.0.0.0/4, 255.255.255.255 }", "ip6 daddr ff00::/8")
_DNS_PORTS: Final = f"{{ {', '.join(map(str, DNS_PORTS))} }}"
_PORT_53: Final = "meta l4proto { tcp, udp } th dport 53"
# A connection has no mark and is not known to conntrack before its first packet is let through.
_FIRST: Final = "ct state new ct mark 0 ct status & confirmed == 0"
_TCP_SYN: Final = "tcp flags & (syn | ack) == syn"


class _Family(NamedTuple):
    """The words in which IPv4 and IPv6 differ."""

    version: int
    ip: str
    kind: str
    tunnel: Address | None
    resolver: Address | None


def _families(settings: FilterSettings) -> tuple[_Family, _Family]:
    resolvers = {address.version: address for address in reversed(settings.portal_resolvers)}
    return (
        _Family(4, "ip", "ipv4_addr", settings.tunnel4, resolvers.get(4)),
        _Family(6, "ip6", "ipv6_addr", settings.tunnel6, resolvers.get(6)),
    )


def _tunnels(settings: FilterSettings) -> Iterator[tuple[str, Address]]:
    """`ip` or `ip6` and the tunnel address, for each family that enters the tunnel."""
    for family in _families(settings):
        if family.tunnel is not None:
            yield family.ip, family.tunnel


def script(
    settings: FilterSettings,
    inbound: Inbound = NOT_KEPT,
    openings: Openings = NOTHING_OPEN,
    counts: Mapping[str, Count] = NO_COUNTS,
) -> str:
    """The whole table as one transaction, which replaces the table that stands.

    `counts` are what the counters begin with. The constructor of `settings` has checked every text in it.
    """
    lines = counters(COUNTERS, counts)
    lines += _sets(settings, inbound, openings)
    lines += REFUSE
    lines += rule_chains(settings.rules, settings.mark + DIRECT, settings.mark + BLOCKED)
    for title, rules in (
        ("guard", _guard(settings)),
        ("mark_in", _mark_in(settings, inbound)),
        ("dns_in", _dns_in(settings)),
        ("input", _input(settings)),
        ("forward", _forward(settings)),
        ("mark_out", _mark_out(settings)),
        ("dns_out", _dns_out(settings)),
        ("tunnel", _tunnel(settings)),
        ("output", _output(settings)),
        ("sources", _sources(settings)),
        ("leaving", _leaving(settings)),
    ):
        lines += block(f"chain {title}", rules)
    return replacing(CLIENT, lines)


def _hook(kind: str, hook: str, priority: str, policy: str = "accept") -> str:
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


def _sets(settings: FilterSettings, inbound: Inbound, openings: Openings) -> list[str]:
    paused = [f"{protocol} timeout {openings.pause}s" for protocol in ("ipv4", "ipv6") if openings.pause]
    lines = set_of("open", "nf_proto", "timeout", paused)
    lines += set_of("uids", "uid", "", map(str, sorted(settings.excluded_uids)))
    lines += set_of("uplinks", "ifname", "", map(name, sorted(settings.uplinks)))
    for family in _families(settings):
        version, kind = family.version, family.kind
        exits = [
            f"{address} . {port}"
            for address, port in sorted(settings.exits, key=str)
            if address.version == version
        ]
        resolvers = [
            f"{address} timeout {left}s"
            for address, left in sorted(openings.bootstrap.items(), key=str)
            if address.version == version and left > 0
        ]
        lines += set_of(f"exits{version}", f"{kind} . inet_service", "", exits)
        lines += set_of(f"bootstrap{version}", kind, "timeout", resolvers)
        lines += set_of(
            f"kept{version}",
            f"{kind} . inet_service . {kind} . inet_service",
            "",
            [
                f"{connection.local} . {connection.local_port} . {connection.remote} . {connection.remote_port}"
                for connection in sorted(inbound.connections, key=str)
                if connection.local.version == connection.remote.version == version
            ],
        )
        for title, networks in (
            ("lan", settings.lan),
            ("guests", settings.guests),
            ("excluded", settings.excluded),
            ("included", settings.included),
        ):
            lines += set_of(f"{title}{version}", kind, "interval", prefixes(networks, version))
    lines += rule_sets(settings.rules)
    return lines


def _guard(settings: FilterSettings) -> Iterable[str]:
    """CVE-2019-14899: a neighbour probes the tunnel address. Before NAT, as redirected DNS is sent to it after."""
    yield _hook("filter", "prerouting", "raw")
    for ip, tunnel in _tunnels(settings):
        yield f'iifname != {{ {name(settings.tun)}, "lo" }} {ip} daddr {tunnel} counter name guard drop'


def _mark_in(settings: FilterSettings, inbound: Inbound) -> Iterable[str]:
    mark = settings.mark
    yield _hook("filter", "prerouting", "mangle")
    yield f'iifname {{ {name(settings.tun)}, "lo" }} return'
    if inbound.keep:
        fresh = "ct state new ct mark 0 fib daddr type local"
        low, high = inbound.ephemeral
        yield f"{fresh} {_TCP_SYN} ct mark set {mark + INBOUND:#x}"
        yield f"{fresh} udp sport >= 1024 udp dport != {low}-{high} ct mark set {mark + INBOUND:#x}"
        yield f"{fresh} icmp type echo-request ct mark set {mark + INBOUND:#x}"
        yield f"{fresh} icmpv6 type echo-request ct mark set {mark + INBOUND:#x}"
        # Also where the other end is the first to send: without the mark, a strict reverse path filter drops it.
        for version, ip in ((4, "ip"), (6, "ip6")):
            yield (
                f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @kept{version} "
                f"ct mark set {mark + INBOUND:#x}"
            )
    if settings.rules:
        yield f"iifname != @uplinks fib daddr type != local {_FIRST} jump rules"
    yield f"ct mark {mark + BYPASS:#x}-{mark + DIRECT:#x} meta mark set {mark:#x}"


def _dns_in(settings: FilterSettings) -> Iterable[str]:
    """Before the redirections of other programs. A resolver of this machine's own keeps its clients."""
    yield _hook("nat", "prerouting", BEFORE_OTHERS_DNAT)
    yield f'iifname {{ {name(settings.tun)}, "lo" }} return'
    yield "iifname @uplinks return"
    yield "fib daddr type local return"
    yield from _to_forwarder(settings)


def _to_forwarder(settings: FilterSettings) -> Iterable[str]:
    if settings.dns_port is None:
        return
    for ip, tunnel in _tunnels(settings):
        yield f"{_PORT_53} {_dnat(ip, tunnel, settings.dns_port)}"


def _dnat(ip: str, address: Address, port: int) -> str:
    return f"dnat {ip} to " + (f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}")


def _input(settings: FilterSettings) -> Iterable[str]:
    """The exit carries our traffic; it and its other clients are not let into our services."""
    yield _hook("filter", "input", "filter")
    yield f"iifname {name(settings.tun)} ct state new counter name unsolicited drop"


def _forward(settings: FilterSettings) -> Iterable[str]:
    tun, mark = name(settings.tun), settings.mark
    yield _hook("filter", "forward", "filter", "drop" if settings.kill_switch else "accept")
    yield f"oifname {tun} {CLAMP}"
    yield f"iifname {tun} {CLAMP}"
    yield f"iifname {tun} ct state established,related accept"
    yield f"iifname {tun} counter name unsolicited drop"
    yield f"ct mark {mark + BLOCKED:#x} counter name by_rule goto refuse"
    if not settings.kill_switch:
        return
    yield f"oifname {tun} iifname @uplinks counter name forwarded goto refuse"
    # Begun before the filter, so without our NAT: its other end could not answer.
    yield f"oifname {tun} ct state established ct status & snat == 0 counter name stale goto refuse"
    yield f"oifname {tun} accept"
    yield f"ct mark {{ {mark + INBOUND:#x}, {mark + DIRECT:#x} }} accept"
    yield f"meta l4proto {{ tcp, udp }} th dport {_DNS_PORTS} counter name dns goto refuse"
    for family in _families(settings):
        version, ip = family.version, family.ip
        yield f"{ip} daddr @excluded{version} accept"
        yield f"{ip} saddr @excluded{version} ct state established,related accept"
        if settings.included:
            yield f"{ip} daddr != @included{version} {ip} daddr != @lan{version} accept"
            yield f"{ip} saddr != @included{version} ct state established,related accept"
        inside = "lan" if settings.lan_allowed else "guests"
        yield f"{ip} saddr @{inside}{version} {ip} daddr @{inside}{version} accept"
    yield "counter name forwarded goto refuse"


def _mark_out(settings: FilterSettings) -> Iterable[str]:
    """The kernel looks up the route again where the mark has changed (a chain of type route)."""
    mark = settings.mark
    yield _hook("route", "output", "mangle")
    yield 'oifname "lo" return'
    yield "fib daddr type local return"
    yield f"meta skuid @uids ct mark 0 ct mark set {mark + BYPASS:#x}"
    for version, ip in ((4, "ip"), (6, "ip6")):
        yield (
            f"{ip} saddr . tcp sport . {ip} daddr . tcp dport @kept{version} ct mark set {mark + INBOUND:#x}"
        )
    yield f"meta mark != {mark:#x} ct state new ct mark 0 meta nfproto @open ct mark set {mark + PAUSED:#x}"
    if settings.rules:
        yield f"meta mark != {mark:#x} {_FIRST} jump rules"
    yield f"ct mark {{ {mark + INBOUND:#x}, {mark + DIRECT:#x} }} meta mark set {mark:#x}"
    yield f"ct mark {mark + PAUSED:#x} meta nfproto @open meta mark set {mark:#x}"


def _dns_out(settings: FilterSettings) -> Iterable[str]:
    yield _hook("nat", "output", BEFORE_OTHERS_DNAT)
    yield 'oifname "lo" return'
    for family in _families(settings):
        if family.resolver is not None:
            paused = f"ct mark {settings.mark + PAUSED:#x} {_PORT_53}"
            yield f"{paused} {_dnat(family.ip, family.resolver, 53)}"
    yield f"meta mark {settings.mark:#x} return"
    yield from _to_forwarder(settings)


def _tunnel(settings: FilterSettings) -> Iterable[str]:
    """A socket from before the tunnel has another source address, and learns here that it is over."""
    yield "ip6 saddr { ::, fe80::/10 } drop"  # the kernel's own reports on multicast (RFC 3810 section 5.2.13)
    for groups in _GROUPS:
        yield f"{groups} counter name blocked goto refuse"
    for ip, tunnel in _tunnels(settings):
        yield f"{ip} saddr {tunnel} accept"
    yield "counter name stale goto refuse"


def _own_packets(settings: FilterSettings) -> Iterable[str]:
    """What this program sends past the tunnel: the link, and questions for names that are not asked through it."""
    mark = settings.mark
    for version, ip in ((4, "ip"), (6, "ip6")):
        yield f"meta mark {mark:#x} meta l4proto {{ tcp, udp }} {ip} daddr . th dport @exits{version} accept"
        yield f"meta mark {mark:#x} {_PORT_53} {ip} daddr @bootstrap{version} accept"
        servers = sorted(str(address) for address in settings.name_servers if address.version == version)
        if servers:
            yield f"meta mark {mark:#x} {_PORT_53} {ip} daddr {{ {', '.join(servers)} }} accept"


def _output(settings: FilterSettings) -> Iterable[str]:
    tun, mark = name(settings.tun), settings.mark
    yield _hook("filter", "output", "filter", "drop" if settings.kill_switch else "accept")
    yield 'oifname "lo" accept'
    yield "fib daddr type local accept"
    yield from _own_packets(settings)
    yield f"ct mark {mark + BLOCKED:#x} counter name by_rule goto refuse"
    yield f"ct mark {{ {mark + INBOUND:#x}, {mark + DIRECT:#x} }} accept"
    yield f"ct mark {mark + PAUSED:#x} meta nfproto @open accept"
    if settings.kill_switch:
        # RFC 2131, RFC 8415, RFC 4861 (133 router solicitation, 135 and 136 neighbours), RFC 3810.
        outside = f"oifname != {tun}"
        yield f"{outside} meta nfproto ipv4 udp sport 68 udp dport 67 accept"
        yield (
            f"{outside} ip6 saddr fe80::/10 ip6 daddr {{ fe80::/10, ff02::1:2 }} "
            "udp sport 546 udp dport 547 accept"
        )
        yield f"{outside} ip6 hoplimit 255 icmpv6 type {{ 133, 135, 136 }} accept"
        yield f"{outside} ip6 daddr ff02::/16 icmpv6 type {{ 131, 132, 143 }} accept"
    yield f"oifname {tun} goto tunnel"
    if not settings.kill_switch:
        if not settings.lan_allowed:
            for version, ip in ((4, "ip"), (6, "ip6")):
                yield f"{ip} daddr @guests{version} accept"
                yield f"{ip} daddr @lan{version} counter name blocked goto refuse"
            for groups in _DISCOVERY:
                yield f"{groups} counter name blocked goto refuse"
        return
    if settings.dns_port is not None:
        yield f"ct direction reply ct status dnat th sport {settings.dns_port} accept"
    yield f"meta l4proto {{ tcp, udp }} th dport {_DNS_PORTS} counter name dns goto refuse"
    yield "meta skuid @uids accept"
    for version, ip, discovery in ((4, "ip", _DISCOVERY[0]), (6, "ip6", _DISCOVERY[1])):
        yield f"{ip} daddr @excluded{version} accept"
        yield f"{ip} daddr @guests{version} accept"
        if settings.lan_allowed:
            yield f"{ip} daddr @lan{version} accept"
            yield f"{discovery} accept"
        if settings.included:
            if not settings.lan_allowed:
                yield f"{discovery} counter name blocked goto refuse"
            yield f"{ip} daddr != @included{version} {ip} daddr != @lan{version} accept"
    yield "counter name blocked goto refuse"


def _sources(settings: FilterSettings) -> Iterable[str]:
    tun = name(settings.tun)
    yield _hook("nat", "postrouting", BEFORE_OTHERS_SNAT)
    for ip, tunnel in _tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} masquerade"
        yield (
            f'oifname != {{ {tun}, "lo" }} {ip} saddr {tunnel} '
            f"ct mark {{ {settings.mark + PAUSED:#x}, {settings.mark + DIRECT:#x} }} masquerade"
        )


def _leaving(settings: FilterSettings) -> Iterable[str]:
    """After NAT. And the link's own connections get their mark here, once they have been let through."""
    tun, mark = name(settings.tun), settings.mark
    yield _hook("filter", "postrouting", AFTER_NAT)
    for ip, tunnel in _tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} counter name stale drop"
        yield f'oifname != {{ {tun}, "lo" }} {ip} saddr {tunnel} counter name stale drop'
        # A socket bound to another device asks for a name: `dns_out` has sent the question to the forwarder, but the
        # kernel still routes it through that device, where it would leave in the clear.
        yield f'oifname != {{ {tun}, "lo" }} {ip} daddr {tunnel} counter name dns drop'
    yield f"meta mark {mark:#x} ct mark 0 ct mark set {mark + BYPASS:#x}"
