"""The client's filter on macOS as the text of a pf anchor: what may leave this Mac, and by which interface.

`anchor_rules` is a pure function from settings to text in the words of pf.conf(5). pf differs from nft so much that
the rules are others, though they let out the same (tests/tun/macos/test_same_packets.py):

    no marks        routes lead packets into the tunnel or past it; a rule sees only the interface that was chosen. The
                    link's own sockets are known as root's, at the addresses and ports of exits.
    last match      wins, unless a rule is `quick`. So a person's rules stand in reverse order and give tags, and
                    the tag of the last that matches, which is the first of the person's, decides.
    states          let packets through before any rule is asked, and live on when rules change. So rules make none,
                    but where an answer could not be known without one. These are bound to an interface.
    other routes    `route-to` sends a packet of the tunnel by the uplink instead. There it meets the rules again, with
                    the tag that says so, and gets the uplink's address by `nat`, which rules see as its source.

What enters the tunnel and asks UDP port 53 is answered in this process. A question by TCP is refused there, so that
programs ask by UDP or fail. Multicast needs `allow-opts`, as IGMP and MLD packets have IP options.

Not yet run on a Mac.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from typing import Final

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork, borders
from cryprq_proxy.rules.syntax import Verdict

from ..device.names import checked_name
from ..firewall.filter_rules import DNS_PORTS, prefixes
from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import NOT_KEPT, Address, Inbound
from ..routing.lan import Uplink
from ..settings import DISCOVERY, RESOLVER4, RESOLVER6
from .asked import FIRST
from .pf_from_outside import FromOutside
from .pf_words import BOUND, KINDS, TCP_UDP, gateway, label

COUNTERS: Final = ("dns", "blocked", "stale", "guard", "unsolicited", "by_rule")
"""Labels of the rules that keep something in, by cause, as for Linux (tun/linux/firewall/client_table.py)."""
NO_CGROUPS: Final = "macOS has no cgroups: leave --exclude-cgroup out, and exclude prefixes or users instead"
PAST: Final = "cryprq_past"
"""Tag of a packet that `route-to` has taken out of the tunnel."""
_TAGS: Final = {
    Verdict.TUNNEL: "cryprq_tunnel",
    Verdict.DIRECT: "cryprq_direct",
    Verdict.BLOCK: "cryprq_block",
}
_USER: Final = "cryprq_user"
_GROUPS: Final = "{ 224.0.0.0/3, ff00::/8 }"
# What discovery on the LAN is sent to: of the link and, for SSDP, of the site (RFC 2365, RFC 4291 section 2.7), with
# any flags.
_DISCOVERY: Final[tuple[IPNetwork, ...]] = (
    *DISCOVERY,
    *(IPv6Network(f"ff{flags:x}{scope}::/16") for scope in (2, 5) for flags in range(16)),
)


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open for a time. The rules that open it have the label `mark`, so that they are known when they stand."""

    mark: str = ""
    paused: bool = False
    resolvers: frozenset[Address] = field(default=frozenset())
    """Whom the link may ask for an exit's address."""


CLOSED: Final = Opened()


def refuse(settings: FilterSettings) -> None:
    """Raise ConfigError for what pf cannot do."""
    if settings.excluded_cgroups:
        raise ConfigError(NO_CGROUPS)


def anchor_rules(
    settings: FilterSettings,
    inbound: Inbound = NOT_KEPT,
    opened: Opened = CLOSED,
    uplinks: Mapping[int, Uplink] | None = None,
) -> str:
    """All that stands in the anchor. `uplinks`: IP version -> how traffic leaves past the tunnel, as far as it does.

    The constructor of `settings` has checked every text in it. Raises ConfigError for what pf cannot do.
    """
    refuse(settings)
    return "\n".join([*_Writer(settings, inbound, opened, uplinks or {}).lines(), ""])


class _Writer:
    def __init__(
        self, settings: FilterSettings, inbound: Inbound, opened: Opened, uplinks: Mapping[int, Uplink]
    ) -> None:
        self._settings = settings
        self._inbound = inbound
        self._opened = opened
        self._tun = checked_name(settings.tun)
        self._tunnels = [one for one in (settings.tunnel4, settings.tunnel6) if one is not None]
        self._uplinks = {version: each for version, each in uplinks.items() if each.gateway and each.source}
        self._from_outside = FromOutside(settings, inbound, self._uplinks, paused=opened.paused)
        self._users = "{ " + ", ".join(_ranges(settings.excluded_uids)) + " }"

    def lines(self) -> Iterator[str]:
        yield from self._tables()
        yield from self._translations()
        yield f"pass quick on lo0 all no state{label(FIRST)}"
        yield from self._guard()
        yield from self._to_resolver()
        yield from self._from_tunnel()
        yield from self._from_outside.lines()
        yield from self._link()
        if self._tunnels:
            yield from self._sources()
        yield f"pass out quick on ! {self._tun} all tagged {PAST} {BOUND}"
        if self._opened.paused:
            yield f"pass out quick on ! {self._tun} all no state allow-opts{self._opening()}"
        yield from self._of_every_network()
        yield from self._questions()
        yield from self._verdicts()
        yield from self._into_tunnel()
        yield from self._past_tunnel()

    # --- tables and translations, which stand first ---

    def _tables(self) -> Iterator[str]:
        settings = self._settings
        named: list[tuple[str, Iterable[IPNetwork]]] = [
            ("lan", settings.lan),
            ("guests", settings.guests),
            ("excluded", settings.excluded),
            ("included", settings.included),
            ("discovery", _DISCOVERY),
            ("answered", self._from_outside.answered()),
        ]
        if settings.rules:
            named += [(f"rule{at}", rule.networks or ()) for at, rule in enumerate(settings.rules.rules, 1)]
        for title, networks in named:
            if networks:
                listed = ", ".join([*prefixes(networks, 4), *prefixes(networks, 6)])
                yield f"table <{title}> const {{ {listed} }}"

    def _translations(self) -> Iterator[str]:
        for tunnel in self._tunnels:
            uplink = self._uplinks.get(tunnel.version)
            if uplink is not None:
                kind = KINDS[tunnel.version]
                device = checked_name(uplink.name)
                yield f"nat on {device} {kind} from {tunnel} to any tagged {PAST} -> {uplink.source}"
        page = self._settings.page
        if page is not None:
            meant = f"inet proto tcp from any to {page.address} port 80"
            yield f"rdr pass on lo0 {meant} -> {page.address} port {page.port}"

    # --- what comes in ---

    def _guard(self) -> Iterator[str]:
        """CVE-2019-14899: a neighbour probes the tunnel address."""
        for tunnel in self._tunnels:
            yield f"block drop in quick on ! {self._tun} from any to {tunnel}{label('guard')}"

    def _to_resolver(self) -> Iterator[str]:
        """Programs ask an address of the device itself. Those packets may leave by it and come back."""
        for tunnel in self._tunnels:
            resolver = RESOLVER4 if tunnel.version == 4 else RESOLVER6
            ours = f"{{ {tunnel}, {resolver} }}"
            yield f"pass quick on {self._tun} {TCP_UDP} from {ours} to {resolver} port 53 no state"
            yield f"pass quick on {self._tun} {TCP_UDP} from {resolver} port 53 to {ours} no state"

    def _from_tunnel(self) -> Iterator[str]:
        """Answers only. Those of UDP are known by a state; TCP needs none, as it begins with a SYN."""
        on = f"in quick on {self._tun}"
        if self._tunnels:
            yield f"block drop {on} proto tcp all flags S/SA{label('unsolicited')}"
        for tunnel in self._tunnels:
            yield f"pass {on} proto tcp from any to {tunnel} no state"
            errors = "inet proto icmp" if tunnel.version == 4 else "inet6 proto ipv6-icmp"
            kinds = "icmp-type { 3, 4, 5, 11, 12 }" if tunnel.version == 4 else "icmp6-type { 1, 2, 3, 4 }"
            yield f"pass {on} {errors} from any to {tunnel} {kinds} no state"
        yield f"block drop {on} all{label('unsolicited')}"

    # --- what leaves ---

    def _link(self) -> Iterator[str]:
        """What this program sends past the tunnel: the link, and questions for names that are not asked through it."""
        yield from self._to_exits(f"pass out quick on ! {self._tun}", " no state")
        # Without the exit's host route it would go into its own tunnel.
        yield from self._to_exits(f"block return out quick on {self._tun}", label("blocked"))
        asked = f"pass out quick on ! {self._tun} {TCP_UDP} from any to"
        for resolver in sorted(self._opened.resolvers, key=str):
            yield f"{asked} {resolver} port 53 user = 0 no state{self._opening()}"
        for server in sorted(self._settings.name_servers, key=str):
            yield f"{asked} {server} port 53 user = 0 no state"

    def _to_exits(self, begin: str, end: str) -> Iterator[str]:
        for address, port in sorted(self._settings.exits, key=str):
            yield f"{begin} {TCP_UDP} from any to {address} port {port} user = 0{end}"

    def _sources(self) -> Iterator[str]:
        """The tunnel's address never leaves by another interface."""
        for tunnel in self._tunnels:
            yield f"block drop out quick on ! {self._tun} from {tunnel} to any{label('stale')}"

    def _of_every_network(self) -> Iterator[str]:
        """RFC 2131, RFC 8415, RFC 4861 (133 router solicitation, 135 and 136 neighbours), RFC 3810.

        DHCP is configd's, as root; on macOS low ports are not root's alone."""
        out = f"pass out quick on ! {self._tun}"
        yield f"{out} inet proto udp from any port 68 to any port 67 user = 0 no state"
        link = "from fe80::/10 port 546 to { fe80::/10, ff02::1:2 } port 547"
        yield f"{out} inet6 proto udp {link} user = 0 no state"
        yield f"{out} inet6 proto ipv6-icmp all icmp6-type {{ 133, 135, 136 }} no state"
        yield f"{out} inet6 proto ipv6-icmp from any to ff02::/16 icmp6-type {{ 131, 132, 143 }} no state allow-opts"

    def _questions(self) -> Iterator[str]:
        """No rule of a person's is about DNS; it is answered here, or stays in."""
        settings = self._settings
        if settings.dns_port is not None:
            yield f"block return out quick on {self._tun} proto tcp from any to any port 53{label('dns')}"
        for tunnel in self._tunnels:
            yield f"pass out quick on {self._tun} proto udp from {tunnel} to any port 53 {BOUND}"
            if settings.dns_port is None:
                yield f"pass out quick on {self._tun} proto tcp from {tunnel} to any port 53 no state"
        if settings.kill_switch or settings.dns_port is not None:
            yield f"block return out quick on ! {self._tun} {TCP_UDP} from any to any port 53{label('dns')}"

    def _verdicts(self) -> Iterator[str]:
        settings = self._settings
        rules = settings.rules
        if rules:
            yield f"pass out all no state allow-opts tag {_TAGS[rules.default]}"
            for at, rule in reversed(list(enumerate(rules.rules, 1))):
                if rule.networks == ():
                    continue
                hosts = "all" if rule.networks is None else f"from any to <rule{at}>"
                if rule.ports:
                    hosts = hosts.replace("all", "from any to any") + f" port {_ports(rule.ports)}"
                    hosts = f"{TCP_UDP} {hosts}"
                yield f"pass out {hosts} no state allow-opts tag {_TAGS[rule.verdict]}"
            asks = f"pass out {TCP_UDP} from any to any port {{ {', '.join(map(str, DNS_PORTS))} }}"
            yield f"{asks} tagged {_TAGS[Verdict.DIRECT]} no state tag {_TAGS[Verdict.TUNNEL]}"
            for kind, ports in (("inet", (68, 67)), ("inet6", (546, 547))):
                dhcp = f"pass out {kind} proto udp from any port {ports[0]} to any port {ports[1]}"
                yield f"{dhcp} no state tag {_TAGS[Verdict.TUNNEL]}"
        if settings.excluded_uids:
            yield f"pass out {TCP_UDP} all user {self._users} no state tag {_USER}"
        if rules:
            yield f"block return out quick all tagged {_TAGS[Verdict.BLOCK]}{label('by_rule')}"

    def _into_tunnel(self) -> Iterator[str]:
        """A socket from before the tunnel has another source address, and learns here that it is over."""
        on = f"out quick on {self._tun}"
        for tag in self._tags_past():
            if tag == _USER:
                kept = ", ".join(str(port) for port in DNS_PORTS if port != 53)
                for tunnel in self._tunnels:
                    yield f"pass {on} {TCP_UDP} from {tunnel} to any port {{ {kept} }} tagged {tag} {BOUND}"
            for version, uplink in self._uplinks.items():
                by = f"route-to ({checked_name(uplink.name)} {gateway(uplink)}) {KINDS[version]}"
                yield f"pass {on} {by} all tagged {tag} no state tag {PAST}"
        # The kernel's own reports on multicast (RFC 3810 section 5.2.13).
        yield f"block drop {on} inet6 from {{ ::, fe80::/10 }} to any"
        yield f"block return {on} from any to {_GROUPS}{label('blocked')}"
        for tunnel in self._tunnels:
            yield f"pass {on} proto tcp from {tunnel} to any no state"
            yield f"pass {on} from {tunnel} to any {BOUND}"
        yield f"block return {on} all{label('stale')}"

    def _tags_past(self) -> Iterator[str]:
        if self._settings.excluded_uids:
            yield _USER
        if self._settings.rules and self._settings.rules.may_be_direct:
            yield _TAGS[Verdict.DIRECT]

    def _past_tunnel(self) -> Iterator[str]:
        """By now, only packets that leave by another interface are judged."""
        settings = self._settings
        if not settings.kill_switch:
            if not settings.lan_allowed:
                yield from self._to("guests")
                yield from self._to("lan", f"block return out quick from any to <lan>{label('blocked')}")
                yield f"block return out quick from any to <discovery>{label('blocked')}"
            return
        yield f"pass out quick all tagged {_TAGS[Verdict.DIRECT]} no state allow-opts"
        closed = ", ".join(str(port) for port in DNS_PORTS if port != 53)
        yield f"block return out quick {TCP_UDP} from any to any port {{ {closed} }}{label('dns')}"
        if settings.excluded_uids:
            yield f"pass out quick all tagged {_USER} no state"
        yield from self._to("excluded")
        yield from self._to("guests")
        if settings.lan_allowed:
            yield from self._to("lan")
            yield "pass out quick from any to <discovery> no state allow-opts"
        if settings.included:
            if not settings.lan_allowed:
                yield f"block return out quick from any to <discovery>{label('blocked')}"
                yield from self._to("lan", f"block return out quick from any to <lan>{label('blocked')}")
            yield "pass out quick from any to ! <included> no state"
        yield f"block return out quick all{label('blocked')}"

    def _to(self, title: str, rule: str = "") -> Iterator[str]:
        """A rule about a table, if there is one."""
        if getattr(self._settings, title):
            yield rule or f"pass out quick from any to <{title}> no state"

    def _opening(self) -> str:
        return label(self._opened.mark) if self._opened.mark else ""


def _ports(ports: Iterable[tuple[int, int]]) -> str:
    edges = borders(ports)
    pairs = zip(edges[::2], edges[1::2], strict=True)
    found = [str(first) if first == behind - 1 else f"{first}:{behind - 1}" for first, behind in pairs]
    return f"{{ {', '.join(found)} }}"


def _ranges(uids: Iterable[int]) -> Iterator[str]:
    """As pf.conf writes user ids: a single one, or all between two others that are not meant."""
    first = last = None
    for uid in [*sorted(uids), None]:
        if first is not None and last is not None and uid != last + 1:
            if first == last:
                yield f"= {first}"
            elif first == 0:
                yield f"<= {last}"
            else:
                yield f"{first - 1} >< {last + 1}"
            first = None
        if first is None:
            first = uid
        last = uid
