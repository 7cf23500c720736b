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
    output                         the kill switch; calls `tunnel` for what enters the tunnel
    sources    postrouting, NAT    containers get the tunnel address
    leaving    postrouting         a wrong source, or our own address as destination, never leaves, whatever
                                   another chain has done

Nothing is accepted for being established: a socket that was open before the tunnel is not. What goes past the tunnel
on purpose is known by its conntrack mark (marks.py), which has a kind: BYPASS for the link and excluded users, INBOUND
for connections from outside, PAUSED for those begun while the filter is open for a captive portal, DIRECT for those
that a person's rule sends there (user_rules.py), EXCLUDED for those of excluded cgroups. All of these get the link's
fwmark, so that a single routing rule serves, and the kernel's reverse path filter sees the right route. BLOCKED is for
what a rule refuses.

A mark holds as long as its reason. It bears the numbers of its run and pause, and each accept stands in the table only
while its setting does. A mark of an earlier run is taken off, and its connection is judged anew (`earlier`); one of a
pause that is over is refused before anything else, since NAT has sent its connection elsewhere.

In output hooks `oifname` is the device that was chosen *before* marks and NAT changed the route. Hence `fib daddr
type local` next to `oifname lo`, and marked connections are judged before the tunnel's rule.

Devices are matched by name, so all of this stands before the tunnel device exists and after it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from ..settings import CLEAR_DNS_PORTS, DISCOVERY
from .cgroups import match
from .filter_settings import NOTHING_OPEN, FilterSettings, Openings
from .inbound import NOT_KEPT, Address, Inbound
from .marks import FIRST_MARKS, KIND_MASK, OURS, OURS_MASK, RUN_MASK, MarkKind, Marks
from .nft import (
    CLAMP,
    CLIENT,
    NO_COUNTS,
    REFUSE,
    TUNNELS,
    Count,
    block,
    counters,
    name,
    prefixes,
    replacing,
    set_of,
)
from .user_rules import DNS_PORTS, rule_chains, rule_sets

COUNTERS: Final = ("dns", "blocked", "stale", "guard", "unsolicited", "forwarded", "by_rule")
"""What was kept in, by cause: DNS past the forwarder; anything else past the tunnel; packets whose source address
does not belong to the device that they leave by; packets to the tunnel address from other devices; new connections
out of the tunnel; packets of containers and neighbours; what a person's rule blocks."""

# Priorities as numbers: older versions of nft know no name for NAT in the output hook.
BEFORE_MANGLE: Final = "-160"
"""After conntrack (-200), and before the reverse path rules of others in mangle (-150)."""
BEFORE_OTHERS_DNAT: Final = "-105"
BEFORE_OTHERS_SNAT: Final = "95"
AFTER_NAT: Final = "300"
# What discovery on the LAN is sent to: of the link and, for SSDP, of the site (RFC 2365, RFC 4291 section 2.7), with
# any flags.
_DISCOVERY: Final = (
    "ip daddr { " + ", ".join(map(str, DISCOVERY)) + " }",
    "ip6 daddr & ff0f:: == { ff02::, ff05:: }",
)
# Each is one comparison, as every packet into the tunnel meets it. For IPv4 with what is reserved, and broadcast.
_GROUPS: Final = ("ip daddr 224.0.0.0/3", "ip6 daddr ff00::/8")
_DNS_PORTS: Final = f"{{ {', '.join(map(str, DNS_PORTS))} }}"
_CLEAR_DNS: Final = f"{{ {', '.join(map(str, CLEAR_DNS_PORTS))} }}"
_ASKS: Final = f"meta l4proto {{ tcp, udp }} th dport {_CLEAR_DNS}"
_PORT_53: Final = "meta l4proto { tcp, udp } th dport 53"
# A connection has no mark and is not known to conntrack before its first packet is let through.
_FIRST: Final = "ct state new ct mark 0 ct status & confirmed == 0"
# ICMP errors (RFC 792, RFC 4443), and the source address in the packet that they quote.
_QUOTES: Final = {
    "ip": "icmp type { 3, 4, 5, 11, 12 } @th,160,32",
    "ip6": "icmpv6 type { 1, 2, 3, 4 } @th,128,128",
}
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


RUN: Final = "run"
"""The set with the number of the run: what the next process must not take, if this one does not end in order."""


class Given(NamedTuple):
    """The marks of the present, and which kinds any setting gives."""

    marks: Marks
    inbound: bool
    direct: bool
    paused: bool
    excluded: bool

    @classmethod
    def of(cls, settings: FilterSettings, inbound: Inbound, openings: Openings, marks: Marks) -> Given:
        return cls(
            marks,
            inbound.keep,
            settings.rules.may_be_direct,
            openings.pause > 0,
            bool(settings.excluded_cgroups),
        )

    def mark(self, kind: MarkKind) -> str:
        return f"{self.marks.of(kind):#x}"

    def lasting(self, *others: MarkKind) -> str:
        """The set of those that hold for all of the run, and of `others`; empty if there are none."""
        kinds = [
            *others,
            *((MarkKind.INBOUND,) if self.inbound else ()),
            *((MarkKind.DIRECT,) if self.direct else ()),
            *((MarkKind.EXCLUDED,) if self.excluded else ()),
        ]
        return f"{{ {', '.join(map(self.mark, kinds))} }}" if kinds else ""

    def to_other_sources(self) -> str:
        """The set of those whose connections may have begun with the tunnel's address."""
        kinds = [
            *((MarkKind.PAUSED,) if self.paused else ()),
            *((MarkKind.DIRECT,) if self.direct else ()),
            *((MarkKind.EXCLUDED,) if self.excluded else ()),
        ]
        return f"{{ {', '.join(map(self.mark, kinds))} }}" if kinds else ""


def script(
    settings: FilterSettings,
    inbound: Inbound = NOT_KEPT,
    openings: Openings = NOTHING_OPEN,
    counts: Mapping[str, Count] = NO_COUNTS,
    marks: Marks = FIRST_MARKS,
) -> str:
    """The whole table as one transaction, which replaces the table that stands.

    `counts` are what the counters begin with, `marks` the numbers that connections are marked with. The constructor
    of `settings` has checked every text in it.
    """
    lines = counters(COUNTERS, counts)
    lines += _sets(settings, inbound, openings)
    lines += set_of(RUN, "mark", "", [f"{marks.this_run:#x}"])
    lines += REFUSE
    lines += rule_chains(settings.rules, marks.of(MarkKind.DIRECT), marks.of(MarkKind.BLOCKED))
    given = Given.of(settings, inbound, openings, marks)
    for title, rules in (
        ("earlier", _earlier(settings, given)),
        ("over", _over(given)),
        ("guard", _guard(settings)),
        ("mark_in", _mark_in(settings, inbound, given)),
        ("dns_in", _dns_in(settings)),
        ("input", _input(settings)),
        ("forward", _forward(settings, given)),
        ("mark_out", _mark_out(settings, given)),
        ("dns_out", _dns_out(settings, given)),
        ("dns_past", _dns_past(settings)),
        ("tunnel", _tunnel(settings)),
        ("marked", _marked(given)),
        ("link", _link(settings)),
        ("output", _output(settings)),
        ("sources", _sources(settings, given)),
        ("leaving", _leaving(settings, given)),
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
        tunnel = [] if family.tunnel is None else [str(family.tunnel)]
        lines += set_of(f"{TUNNELS}{version}", kind, "", tunnel)
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


def _earlier(settings: FilterSettings, given: Given) -> Iterable[str]:
    """For a mark of an earlier run, or of earlier rules: taken over, or taken off and judged as at the first packet.

    An answer is not judged, since rules are about where a connection goes to: its mark waits for a packet out.
    """
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.PAUSED.any_run:#x} return"
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.BYPASS.any_run:#x} ct mark set {given.mark(MarkKind.BYPASS)} return"
    if given.inbound:
        inbound = f"ct mark & {KIND_MASK:#x} == {MarkKind.INBOUND.any_run:#x}"
        yield f"{inbound} ct mark set {given.mark(MarkKind.INBOUND)} return"
    for cgroup in sorted(settings.excluded_cgroups):
        excluded = f"ct mark & {KIND_MASK:#x} == {MarkKind.EXCLUDED.any_run:#x} {match(cgroup)}"
        yield f"{excluded} ct mark set {given.mark(MarkKind.EXCLUDED)} return"
    if settings.rules:
        yield f"ct mark & {KIND_MASK:#x} == {MarkKind.DIRECT.any_run:#x} ct direction reply return"
    yield "ct mark set 0"
    if settings.rules:
        yield (
            f"meta mark != {settings.mark:#x} ct direction original iifname != @uplinks fib daddr type != local "
            "jump rules"
        )


def _is_earlier(given: Given) -> str:
    return f"ct mark & {OURS_MASK:#x} == {OURS:#x} ct mark & {RUN_MASK:#x} != {given.marks.this_run:#x}"


def _over(given: Given) -> Iterable[str]:
    """What is refused for its mark, wherever it goes. In a pause, `marked` has let its connections out before."""
    yield f"ct mark {given.mark(MarkKind.BLOCKED)} counter name by_rule goto refuse"
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.PAUSED.any_run:#x} counter name stale goto refuse"


def _mark_in(settings: FilterSettings, inbound: Inbound, given: Given) -> Iterable[str]:
    yield _hook("filter", "prerouting", BEFORE_MANGLE)
    yield f'iifname {{ {name(settings.tun)}, "lo" }} return'
    yield f"{_is_earlier(given)} jump earlier"
    if inbound.keep:
        fresh = "ct state new ct mark 0 fib daddr type local"
        marked = f"ct mark set {given.mark(MarkKind.INBOUND)}"
        low, high = inbound.ephemeral
        yield f"{fresh} {_TCP_SYN} {marked}"
        yield f"{fresh} udp sport >= 1024 udp dport != {low}-{high} {marked}"
        yield f"{fresh} icmp type echo-request {marked}"
        yield f"{fresh} icmpv6 type echo-request {marked}"
        # Also where the other end is the first to send: without the mark, a strict reverse path filter drops it.
        for version, ip in ((4, "ip"), (6, "ip6")):
            yield f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @kept{version} {marked}"
    if settings.rules:
        yield f"iifname != @uplinks fib daddr type != local {_FIRST} jump rules"
    yield f"ct mark {given.lasting(MarkKind.BYPASS)} meta mark set {settings.mark:#x}"
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open meta mark set {settings.mark:#x}"


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


def _forward(settings: FilterSettings, given: Given) -> Iterable[str]:
    tun = name(settings.tun)
    yield _hook("filter", "forward", "filter", "drop" if settings.kill_switch else "accept")
    yield f"oifname {tun} {CLAMP}"
    yield f"iifname {tun} {CLAMP}"
    yield f"iifname {tun} ct state established,related accept"
    yield f"iifname {tun} counter name unsolicited drop"
    yield "ct mark != 0 jump over"
    if not settings.kill_switch:
        return
    yield f"oifname {tun} iifname @uplinks counter name forwarded goto refuse"
    # Begun before the filter, so without our NAT: its other end could not answer.
    yield f"oifname {tun} ct state established ct status & snat == 0 counter name stale goto refuse"
    yield f"oifname {tun} {_ASKS} jump dns_past"
    yield f"oifname {tun} accept"
    if lasting := given.lasting():
        yield f"ct mark {lasting} accept"
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


def _mark_out(settings: FilterSettings, given: Given) -> Iterable[str]:
    """The kernel looks up the route again where the mark has changed (a chain of type route)."""
    mark = settings.mark
    yield _hook("route", "output", "mangle")
    yield 'oifname "lo" return'
    yield "fib daddr type local return"
    yield f"{_is_earlier(given)} jump earlier"
    if settings.excluded_uids:
        yield f"meta skuid @uids ct mark 0 ct mark set {given.mark(MarkKind.BYPASS)}"
    for cgroup in sorted(settings.excluded_cgroups):
        for packets in (
            "meta l4proto != { tcp, udp }",
            f"meta l4proto {{ tcp, udp }} th dport != {_DNS_PORTS}",
        ):
            yield f"{match(cgroup)} {_FIRST} {packets} ct mark set {given.mark(MarkKind.EXCLUDED)}"
    if given.inbound:
        for version, ip in ((4, "ip"), (6, "ip6")):
            yield (
                f"{ip} saddr . tcp sport . {ip} daddr . tcp dport @kept{version} "
                f"ct mark set {given.mark(MarkKind.INBOUND)}"
            )
    if given.paused:
        fresh = f"meta mark != {mark:#x} ct state new ct mark 0 meta nfproto @open"
        yield f"{fresh} ct mark set {given.mark(MarkKind.PAUSED)}"
    if settings.rules:
        yield f"meta mark != {mark:#x} {_FIRST} jump rules"
    if lasting := given.lasting():
        yield f"ct mark {lasting} meta mark set {mark:#x}"
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open meta mark set {mark:#x}"


def _dns_out(settings: FilterSettings, given: Given) -> Iterable[str]:
    yield _hook("nat", "output", BEFORE_OTHERS_DNAT)
    yield 'oifname "lo" return'
    for family in _families(settings):
        if family.resolver is not None and given.paused:
            paused = f"ct mark {given.mark(MarkKind.PAUSED)} {_PORT_53}"
            yield f"{paused} {_dnat(family.ip, family.resolver, 53)}"
    yield f"meta mark {settings.mark:#x} return"
    yield from _to_forwarder(settings)


def _dns_past(settings: FilterSettings) -> Iterable[str]:
    """A question that only the rules for names (route_rules.py) have routed into the tunnel, and that the forwarder
    did not get: refused like all that asks past the tunnel."""
    refused = "counter name dns goto refuse"
    if settings.excluded_uids:
        yield f"meta skuid @uids {refused}"
    inside = "lan" if settings.lan_allowed else "guests"
    for version, ip in ((4, "ip"), (6, "ip6")):
        yield f"{ip} daddr @excluded{version} {refused}"
        yield f"{ip} daddr @{inside}{version} {refused}"
        if settings.included:
            yield f"{ip} daddr != @included{version} {refused}"


def _tunnel(settings: FilterSettings) -> Iterable[str]:
    """A socket from before the tunnel has another source address, and learns here that it is over."""
    yield "ip6 saddr { ::, fe80::/10 } drop"  # the kernel's own reports on multicast (RFC 3810 section 5.2.13)
    for groups in _GROUPS:
        yield f"{groups} counter name blocked goto refuse"
    if settings.kill_switch:
        yield f"{_ASKS} jump dns_past"
    for ip, tunnel in _tunnels(settings):
        yield f"{ip} saddr {tunnel} accept"
    yield "counter name stale goto refuse"


def _marked(given: Given) -> Iterable[str]:
    """For connections of this machine that bear a mark, perhaps another program's."""
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open accept"
    yield from _over(given)
    if lasting := given.lasting():
        yield f"ct mark {lasting} accept"


def _link(settings: FilterSettings) -> Iterable[str]:
    """What this program sends past the tunnel: the link, and questions for names that are not asked through it."""
    for version, ip in ((4, "ip"), (6, "ip6")):
        yield f"meta l4proto {{ tcp, udp }} {ip} daddr . th dport @exits{version} accept"
        yield f"{_PORT_53} {ip} daddr @bootstrap{version} accept"
        servers = sorted(str(address) for address in settings.name_servers if address.version == version)
        if servers:
            yield f"{_PORT_53} {ip} daddr {{ {', '.join(servers)} }} accept"


def _output(settings: FilterSettings) -> Iterable[str]:
    tun, mark = name(settings.tun), settings.mark
    yield _hook("filter", "output", "filter", "drop" if settings.kill_switch else "accept")
    yield 'oifname "lo" accept'
    yield "fib daddr type local accept"
    yield "ct mark != 0 jump marked"
    yield f"meta mark {mark:#x} jump link"
    yield f"oifname {tun} goto tunnel"
    if settings.kill_switch:
        # RFC 2131, RFC 8415, RFC 4861 (133 router solicitation, 135 and 136 neighbours), RFC 3810.
        yield "meta nfproto ipv4 udp sport 68 udp dport 67 accept"
        yield "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept"
        yield "ip6 hoplimit 255 icmpv6 type { 133, 135, 136 } accept"
        yield "ip6 daddr ff02::/16 icmpv6 type { 131, 132, 143 } accept"
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


def _sources(settings: FilterSettings, given: Given) -> Iterable[str]:
    tun = name(settings.tun)
    yield _hook("nat", "postrouting", BEFORE_OTHERS_SNAT)
    for ip, tunnel in _tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} masquerade"
        if marks := given.to_other_sources():
            yield f'oifname != {{ {tun}, "lo" }} {ip} saddr {tunnel} ct mark {marks} masquerade'


def _leaving(settings: FilterSettings, given: Given) -> Iterable[str]:
    """After NAT: the device is the true one. And the link's own connections get their mark here, once they have been
    let through."""
    tun, mark = name(settings.tun), settings.mark
    yield _hook("filter", "postrouting", AFTER_NAT)
    for ip, tunnel in _tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} counter name stale drop"
    yield f'oifname {{ {tun}, "lo" }} accept'
    for ip, tunnel in _tunnels(settings):
        yield f"{ip} saddr {tunnel} counter name stale drop"
        # A socket bound to another device asks for a name: `dns_out` has sent the question to the forwarder, but the
        # kernel still routes it through that device, where it would leave in the clear.
        yield f"{ip} daddr {tunnel} counter name dns drop"
        yield f"{_QUOTES[ip]} {int(tunnel):#x} counter name stale drop"
    if settings.kill_switch:
        # Whatever other chains, NAT or the entry of an earlier run have made of it.
        clear = f"meta mark != {mark:#x} meta l4proto {{ tcp, udp }}"
        yield f"{clear} th dport {_CLEAR_DNS} counter name dns drop"
        yield f"{clear} ct direction original ct original proto-dst {_CLEAR_DNS} counter name dns drop"
    yield f"meta mark {mark:#x} ct mark 0 ct mark set {given.mark(MarkKind.BYPASS)}"
