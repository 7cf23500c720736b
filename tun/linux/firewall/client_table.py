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
    dns_out    output, NAT         brings our own DNS to the forwarder, and programs to our own page
    output                         the kill switch; calls `tunnel` for what enters the tunnel
    sources    postrouting, NAT    containers get the tunnel address
    leaving    postrouting         a wrong source, or our own address as destination, never leaves, whatever
                                   another chain has done

Nothing is accepted for being established: a socket that was open before the tunnel is not. What goes past the tunnel
on purpose is known by the mark of its connection (client_marks.py).

In output hooks `oifname` is the device that was chosen *before* marks and NAT changed the route. Hence `fib daddr
type local` next to `oifname lo`, and marked connections are judged before the tunnel's rule.

Devices are matched by name, so all of this stands before the tunnel device exists and after it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ...firewall.filter_rules import prefixes
from ...firewall.filter_settings import NOTHING_OPEN, FilterSettings, Openings
from ...firewall.inbound import NOT_KEPT, Address, Inbound
from ...settings import CLEAR_DNS_PORTS, DISCOVERY, RESOLVER4, RESOLVER6
from ...system import NO_COUNTS, Count
from .client_marks import Given, earlier, mark_in, mark_out, marked, over
from .client_words import (
    AFTER_NAT,
    BEFORE_OTHERS_DNAT,
    BEFORE_OTHERS_SNAT,
    DNS_SET,
    base_chain,
    families,
    tunnels,
)
from .marks import FIRST_MARKS, MarkKind, Marks
from .nft import CLAMP, CLIENT, REFUSE, TUNNELS, block, counters, name, replacing, set_of
from .page_rules import ASKS_FOR_OWN_NAME, to_page
from .user_rules import rule_chains, rule_sets

RUN: Final = "run"
"""The set with the number of the run: what the next process must not take, if this one does not end in order."""
COUNTERS: Final = ("dns", "blocked", "stale", "guard", "unsolicited", "forwarded", "by_rule")
"""What was kept in, by cause: DNS past the forwarder; anything else past the tunnel; packets whose source address
does not belong to the device that they leave by; packets to the tunnel address from other devices; new connections
out of the tunnel; packets of containers and neighbours; what a person's rule blocks."""

# What discovery on the LAN is sent to: of the link and, for SSDP, of the site (RFC 2365, RFC 4291 section 2.7), with
# any flags.
_DISCOVERY: Final = (
    "ip daddr { " + ", ".join(map(str, DISCOVERY)) + " }",
    "ip6 daddr & ff0f:: == { ff02::, ff05:: }",
)
# Each is one comparison, as every packet into the tunnel meets it. For IPv4 with what is reserved, and broadcast.
_GROUPS: Final = ("ip daddr 224.0.0.0/3", "ip6 daddr ff00::/8")
_CLEAR_DNS: Final = f"{{ {', '.join(map(str, CLEAR_DNS_PORTS))} }}"
_ASKS: Final = f"meta l4proto {{ tcp, udp }} th dport {_CLEAR_DNS}"
_PORT_53: Final = "meta l4proto { tcp, udp } th dport 53"
# ICMP errors (RFC 792, RFC 4443), and the source address in the packet that they quote.
_QUOTES: Final = {
    "ip": "icmp type { 3, 4, 5, 11, 12 } @th,160,32",
    "ip6": "icmpv6 type { 1, 2, 3, 4 } @th,128,128",
}


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
        ("earlier", earlier(settings, given)),
        ("over", over(given)),
        ("guard", _guard(settings)),
        ("mark_in", mark_in(settings, inbound, given)),
        ("dns_in", _dns_in(settings)),
        ("input", _input(settings)),
        ("forward", _forward(settings, given)),
        ("mark_out", mark_out(settings, given)),
        ("dns_out", _dns_out(settings, given)),
        ("dns_past", _dns_past(settings)),
        ("tunnel", _tunnel(settings)),
        ("marked", marked(given)),
        ("link", _link(settings)),
        ("output", _output(settings)),
        ("sources", _sources(settings, given)),
        ("leaving", _leaving(settings, given)),
    ):
        lines += block(f"chain {title}", rules)
    return replacing(CLIENT, lines)


def _sets(settings: FilterSettings, inbound: Inbound, openings: Openings) -> list[str]:
    paused = [f"{protocol} timeout {openings.pause}s" for protocol in ("ipv4", "ipv6") if openings.pause]
    lines = set_of("open", "nf_proto", "timeout", paused)
    lines += set_of("uids", "uid", "", map(str, sorted(settings.excluded_uids)))
    lines += set_of("uplinks", "ifname", "", map(name, sorted(settings.uplinks)))
    for family in families(settings):
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
    yield base_chain("filter", "prerouting", "raw")
    for ip, tunnel in tunnels(settings):
        yield f'iifname != {{ {name(settings.tun)}, "lo" }} {ip} daddr {tunnel} counter name guard drop'


def _dns_in(settings: FilterSettings) -> Iterable[str]:
    """Before the redirections of other programs. A resolver of this machine's own keeps its clients."""
    yield base_chain("nat", "prerouting", BEFORE_OTHERS_DNAT)
    yield f'iifname {{ {name(settings.tun)}, "lo" }} return'
    yield "iifname @uplinks return"
    yield from _to_resolver(settings)
    yield "fib daddr type local return"
    yield from _to_forwarder(settings)


def _to_resolver(settings: FilterSettings) -> Iterable[str]:
    """What asks the system's resolver in the tunnel, also where a device of this machine has its address."""
    if settings.dns_port is None:
        return
    for ip, tunnel in tunnels(settings):
        resolver = RESOLVER4 if tunnel.version == 4 else RESOLVER6
        yield f"{ip} daddr {resolver} {_PORT_53} {_dnat(ip, tunnel, settings.dns_port)}"


def _to_forwarder(settings: FilterSettings) -> Iterable[str]:
    if settings.dns_port is None:
        return
    for ip, tunnel in tunnels(settings):
        yield f"{_PORT_53} {_dnat(ip, tunnel, settings.dns_port)}"


def _dnat(ip: str, address: Address, port: int) -> str:
    return f"dnat {ip} to " + (f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}")


def _input(settings: FilterSettings) -> Iterable[str]:
    """The exit carries our traffic; it and its other clients are not let into our services."""
    yield base_chain("filter", "input", "filter")
    yield f"iifname {name(settings.tun)} ct state new counter name unsolicited drop"


def _forward(settings: FilterSettings, given: Given) -> Iterable[str]:
    tun = name(settings.tun)
    yield base_chain("filter", "forward", "filter", "drop" if settings.kill_switch else "accept")
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
    if any(tunnels(settings)):
        # Before, its packets would have no address that can be answered.
        yield f"oifname {tun} accept"
    if lasting := given.lasting():
        yield f"ct mark {lasting} accept"
    yield f"meta l4proto {{ tcp, udp }} th dport {DNS_SET} counter name dns goto refuse"
    for family in families(settings):
        version, ip = family.version, family.ip
        yield f"{ip} daddr @excluded{version} accept"
        yield f"{ip} saddr @excluded{version} ct state established,related accept"
        if settings.included:
            yield f"{ip} daddr != @included{version} {ip} daddr != @lan{version} accept"
            yield f"{ip} saddr != @included{version} ct state established,related accept"
        inside = "lan" if settings.lan_allowed else "guests"
        yield f"{ip} saddr @{inside}{version} {ip} daddr @{inside}{version} accept"
    yield "counter name forwarded goto refuse"


def _dns_out(settings: FilterSettings, given: Given) -> Iterable[str]:
    yield base_chain("nat", "output", BEFORE_OTHERS_DNAT)
    for rule in _to_resolver(settings):
        yield f'oifname "lo" {rule}'
    for rule in to_page(settings):
        yield f'oifname "lo" {rule}'
    yield 'oifname "lo" return'
    if settings.dns_port is not None and given.paused:
        # The network's resolvers, which are asked in a pause, never hear of this one.
        for ip, tunnel in tunnels(settings):
            yield f"{ASKS_FOR_OWN_NAME} {_dnat(ip, tunnel, settings.dns_port)}"
    for family in families(settings):
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
    for ip, tunnel in tunnels(settings):
        yield f"{ip} saddr {tunnel} accept"
    yield "counter name stale goto refuse"


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
    yield base_chain("filter", "output", "filter", "drop" if settings.kill_switch else "accept")
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
    yield f"meta l4proto {{ tcp, udp }} th dport {DNS_SET} counter name dns goto refuse"
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
    yield base_chain("nat", "postrouting", BEFORE_OTHERS_SNAT)
    for ip, tunnel in tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} masquerade"
        if marks := given.to_other_sources():
            yield f'oifname != {{ {tun}, "lo" }} {ip} saddr {tunnel} ct mark {marks} masquerade'


def _leaving(settings: FilterSettings, given: Given) -> Iterable[str]:
    """After NAT: the device is the true one. And the link's own connections get their mark here, once they have been
    let through."""
    tun, mark = name(settings.tun), settings.mark
    yield base_chain("filter", "postrouting", AFTER_NAT)
    for ip, tunnel in tunnels(settings):
        yield f"oifname {tun} {ip} saddr != {tunnel} counter name stale drop"
    yield f'oifname {{ {tun}, "lo" }} accept'
    for ip, tunnel in tunnels(settings):
        yield f"{ip} saddr {tunnel} counter name stale drop"
        # A socket bound to another device asks for a name: `dns_out` has sent the question to the forwarder, but the
        # kernel still routes it through that device, where it would leave in the clear.
        yield f"{ip} daddr {tunnel} counter name dns drop"
        yield f"{_QUOTES[ip]} {int(tunnel):#x} counter name stale drop"
    if settings.kill_switch:
        # `output` lets it pass as what stays on this machine, but IPv6 sends it out of the device of a bound socket.
        yield f"meta mark != {mark:#x} fib daddr type local counter name blocked drop"
        # Whatever other chains, NAT or the entry of an earlier run have made of it.
        clear = f"meta mark != {mark:#x} meta l4proto {{ tcp, udp }}"
        yield f"{clear} th dport {_CLEAR_DNS} counter name dns drop"
        yield f"{clear} ct direction original ct original proto-dst {_CLEAR_DNS} counter name dns drop"
    yield f"meta mark {mark:#x} ct mark 0 ct mark set {given.mark(MarkKind.BYPASS)}"
