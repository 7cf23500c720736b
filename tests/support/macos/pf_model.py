"""What pf does with a packet: the rules of `state.Pf`, evaluated as pf.conf(5) says.

`judge` is a pure function. States are not kept: whoever plays a whole conversation keeps them (`Judgement.keeps`), and
asks no rule about a packet that has one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tests.support.macos.pf_grammar import parse
from tests.support.macos.pf_names import below
from tests.support.macos.pf_rule import Host, PfRule
from tests.support.macos.state import Anchor, Pf


@dataclass(frozen=True)
class PfPacket:
    """What pf sees of a packet."""

    direction: str
    interface: str
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    proto: str
    """tcp, udp, icmp, ipv6-icmp, igmp or a number."""
    source_port: int = 0
    destination_port: int = 0
    flags: str = "S"
    """Of TCP, as letters."""
    icmp_type: int = 0
    uid: int | None = None
    """Of the socket; None where the kernel or nobody has it."""
    tag: str = ""
    options: bool = False
    """Whether it has IP options."""


@dataclass(frozen=True)
class Judgement:
    """What becomes of it."""

    passes: bool
    returns: bool = False
    """A refusal that the sender hears of."""
    label: str = ""
    route_to: tuple[str, str] | None = None
    """Interface and gateway, in place of those that were chosen."""
    reply_to: tuple[str, str] | None = None
    tag: str = ""
    packet: PfPacket | None = None
    """As it goes on: with what `nat` or `rdr` has made of it."""
    keeps: bool = False
    """Whether a state is made, as for each translation."""
    bound: bool = False
    """Whether that state is for this interface only."""


PASSED = Judgement(True)
MAX_DEPTH = 64
"""Anchors inside anchors that the kernel goes into; it passes over what lies deeper."""


def judge(pf: Pf, packet: PfPacket) -> Judgement:
    """A packet without a state."""
    if not pf.enabled or packet.interface in pf.skipped:
        return replace(PASSED, packet=packet, tag=packet.tag)
    translated, rule = _translated(pf, packet)
    keeps = rule is not None
    if rule is not None and rule.tag:
        translated = replace(translated, tag=rule.tag)
    if rule is not None and rule.policy == "pass":
        return Judgement(True, packet=translated, keeps=True, tag=translated.tag)
    walk = _Walk(pf, translated)
    walk.through("", pf.main)
    found = walk.last
    if found is None:
        return replace(PASSED, packet=translated, keeps=keeps, tag=translated.tag)
    passes = found.kind == "pass" and (not packet.options or found.allow_opts)
    route = (found.route_interface, found.route_gateway)
    return Judgement(
        passes,
        returns=found.kind == "block" and found.policy == "return",
        label=found.label,
        route_to=route if found.route == "route-to" else None,
        reply_to=route if found.route == "reply-to" else None,
        tag=walk.tag,
        packet=replace(translated, tag=walk.tag),
        keeps=passes and (keeps or found.state == "keep"),
        bound="if-bound" in found.state_options,
    )


class _Walk:
    """Through all rulesets; the last rule that matches wins, or the first quick one. A quick anchor ends it too, where
    a rule in it has matched."""

    def __init__(self, pf: Pf, packet: PfPacket) -> None:
        self._pf = pf
        self._packet = packet
        self.tag = packet.tag
        self.last: PfRule | None = None
        self._matched = 0
        """How many rules have matched."""

    def through(self, path: str, anchor: Anchor, depth: int = 0) -> bool:
        """Returns whether that is the end."""
        for rule in _parsed(anchor.rules, _declared(anchor)):
            if rule.kind.startswith(("scrub", "dummynet")):
                continue
            if not matches(rule, replace(self._packet, tag=self.tag), self._tables(path)):
                continue
            if rule.tag:
                self.tag = rule.tag
            if rule.kind == "anchor":
                if depth < MAX_DEPTH and self._into(path, rule, depth + 1):
                    return True
                continue
            self._matched += 1
            self.last = rule
            if rule.quick:
                return True
        return False

    def _into(self, path: str, rule: PfRule, depth: int) -> bool:
        before = self._matched
        for name, inner in below(self._pf.anchors, path, rule.anchor):
            if self.through(name, inner, depth):
                return True
        return rule.quick and self._matched > before

    def _tables(self, path: str) -> Callable[[str], Sequence[str]]:
        return functools.partial(_members, self._pf, path)


def _members(pf: Pf, path: str, name: str) -> Sequence[str]:
    own = pf.anchors[path].tables if path else pf.main.tables
    return own[name] if name in own else pf.main.tables[name]


def _declared(anchor: Anchor) -> tuple[str, ...]:
    return tuple(sorted(anchor.tables))


@functools.lru_cache(maxsize=512)
def _parsed(text: str, tables: tuple[str, ...]) -> tuple[PfRule, ...]:
    declared = "".join(f"table <{name}>\n" for name in tables)
    found = parse(declared + text)
    return (*found.nat, *found.rules)


def _translated(pf: Pf, packet: PfPacket) -> tuple[PfPacket, PfRule | None]:
    kind = "nat" if packet.direction == "out" else "rdr"
    rule = _translation(pf, packet, kind, "", pf.main)
    if rule is None:
        return packet, None
    if kind == "rdr":
        port = int(rule.target_port) if rule.target_port else packet.destination_port
        return replace(packet, destination=ip_address(rule.target), destination_port=port), rule
    if rule.target.startswith("("):
        return packet, rule
    return replace(packet, source=ip_address(rule.target)), rule


def _translation(
    pf: Pf, packet: PfPacket, kind: str, path: str, anchor: Anchor, depth: int = 0
) -> PfRule | None:
    for rule in _parsed(anchor.nat, _declared(anchor)):
        if rule.kind not in (kind, f"{kind}-anchor"):
            continue
        if not matches(rule, packet, functools.partial(_members, pf, path)):
            continue
        if rule.kind == kind:
            return rule
        for name, inner in below(pf.anchors, path, rule.anchor) if depth < MAX_DEPTH else ():
            found = _translation(pf, packet, kind, name, inner, depth + 1)
            if found is not None:
                return found
    return None


def matches(rule: PfRule, packet: PfPacket, tables: Callable[[str], Sequence[str]]) -> bool:
    if rule.direction and rule.direction != packet.direction:
        return False
    if rule.interface and (_is_on(rule.interface, packet.interface) == rule.not_interface):
        return False
    if rule.family and rule.family != ("inet" if packet.source.version == 4 else "inet6"):
        return False
    if rule.proto and rule.proto != packet.proto:
        return False
    if not _host_matches(rule.source, packet.source, tables):
        return False
    if not _host_matches(rule.destination, packet.destination, tables):
        return False
    if rule.source_port and not rule.source_port.holds(packet.source_port):
        return False
    if rule.destination_port and not rule.destination_port.holds(packet.destination_port):
        return False
    # A packet without a socket has the user id UID_MAX, which only `!=` or `>` would match.
    if rule.user and (packet.uid is None or not rule.user.holds(packet.uid)):
        return False
    if rule.flags and packet.proto == "tcp" and not _flags_match(rule.flags, packet.flags):
        return False
    if rule.icmp_type and int(rule.icmp_type) != packet.icmp_type:
        return False
    return not rule.tagged or rule.tagged == packet.tag


def _is_on(name: str, interface: str) -> bool:
    """An interface, or with a name without a number all of its group."""
    return name == interface or (name.isalpha() and interface.rstrip("0123456789") == name)


def _flags_match(wanted: str, flags: str) -> bool:
    if wanted == "any":
        return True
    on, _, of = wanted.partition("/")
    return {flag for flag in flags if flag in of} == set(on)


def _host_matches(
    host: Host, address: IPv4Address | IPv6Address, tables: Callable[[str], Sequence[str]]
) -> bool:
    if host.text == "any":
        return True
    inside = tables(host.text[1:-1]) if host.text.startswith("<") else [host.text]
    return _within(tuple(inside), address) != host.negated


@functools.lru_cache(maxsize=65536)
def _within(networks: tuple[str, ...], address: IPv4Address | IPv6Address) -> bool:
    """By the longest prefix that holds it, which may be one with `!`."""
    best, found = -1, False
    for text in networks:
        network = ip_network(text.removeprefix("!"))
        if address in network and network.prefixlen > best:
            best, found = network.prefixlen, not text.startswith("!")
    return found


def with_anchor(path: str, text: str, others: Iterable[tuple[str, Anchor]] = ()) -> Pf:
    """macOS's pf, enabled, with this text loaded in one anchor."""
    found = parse(text)
    pf = Pf(
        enabled=True,
        main=Anchor(
            'anchor "com.apple/*" all\n', 'nat-anchor "com.apple/*" all\nrdr-anchor "com.apple/*" all\n'
        ),
        anchors=dict(others),
    )
    pf.anchors[path] = Anchor(
        "".join(f"{rule}\n" for rule in found.rules),
        "".join(f"{rule}\n" for rule in found.nat),
        found.tables,
    )
    return pf
