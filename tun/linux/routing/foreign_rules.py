"""Routing rules of other programs that stand before ours and decide for our packets.

VPN programs add rules of their own: wg-quick takes the priorities just before ours, Tailscale some far before. Such a
rule matters if its selector can match our packets and its table has a route for them that is not ours:

    the link              marked packets to an exit     must leave as the main table says
    this machine's        unmarked packets              must enter the tunnel

Nothing leaks by them, since the filter stands; but the link does not come up, or nothing works. We remove no rules of
others: they are named. A rule for single ports, protocols or users is named where it leads some of this machine's
traffic elsewhere; for the link such rules do not count.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET
from typing import Any, Final, NamedTuple

from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.errors import CryprqError

from ...reconciler import Fact
from ...routing.lan import Network
from ...settings import TUNNEL_NETWORKS
from .networks import MAIN, UNICAST, DeviceAddress, KernelRoute, NetlinkMessage, NetworkDevice
from .route_rules import LINK, LOOKUP, REST

type Address = IPv4Address | IPv6Address

_LOCAL_TABLE: Final = 255
_INVERTED: Final = 0x2  # FIB_RULE_INVERT
_REFUSALS: Final = frozenset({6, 7, 8})
"""Blackhole, unreachable and prohibit, as actions of rules and as types of routes."""
_ACTIONS: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
_PARTS: Final = {"FRA_IP_PROTO": "ipproto", "FRA_SPORT_RANGE": "sport", "FRA_DPORT_RANGE": "dport"}
"""Conditions that only some packets of a program match, as ip-rule(8) writes them."""
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_NARROW: Final = ("FRA_TUN_ID", "FRA_L3MDEV")
_ALL_USERS: Final = (0, 0xFFFF_FFFF)
_NOWHERE: Final = "nowhere"


class ForeignRule(NamedTuple):
    """One rule; a None matches everything."""

    version: int
    priority: int
    action: int = LOOKUP
    table: int = MAIN
    shortest: int = 0
    """Routes with a shorter prefix do not count (`suppress_prefixlength`, and one more)."""
    mark: tuple[int, int] | None = None
    """Value and mask."""
    source: Network | None = None
    to: Network | None = None
    users: tuple[int, int] = _ALL_USERS
    narrow: bool = False
    """It has conditions that no packets of this machine's programs match, or few."""
    inverted: bool = False
    parts: tuple[str, ...] = ()
    """Its protocol and ports, in words."""

    @property
    def is_partial(self) -> bool:
        """Whether only some packets match, by who sends them or by their ports."""
        return bool(self.parts) or self.users != _ALL_USERS

    def __str__(self) -> str:
        words = ["not"] if self.inverted else []
        if self.source is not None:
            words.append(f"from {self.source}")
        if self.to is not None:
            words.append(f"to {self.to}")
        if self.mark is not None:
            value, mask = self.mark
            words.append(f"fwmark {value:#x}" + ("" if mask == 0xFFFF_FFFF else f"/{mask:#x}"))
        if self.users != _ALL_USERS:
            words.append(f"uidrange {self.users[0]}-{self.users[1]}")
        words += self.parts
        lookup = f"lookup {self.table}"
        words.append(lookup if self.action == LOOKUP else _ACTIONS.get(self.action, f"action {self.action}"))
        return f"IPv{self.version} rule {self.priority} ({' '.join(words)})"


def read_foreign_rule(message: NetlinkMessage) -> ForeignRule:
    """A rule of RTM_NEWRULE."""
    attributes: Mapping[str, Any] = dict(message["attrs"])
    mark, suppressed = attributes.get("FRA_FWMARK"), attributes.get("FRA_SUPPRESS_PREFIXLEN", 0xFFFF_FFFF)
    first, _, last = attributes.get("FRA_UID_RANGE", "").partition(":")
    devices = {attributes.get("FRA_IIFNAME", "lo"), attributes.get("FRA_OIFNAME", "lo")}
    return ForeignRule(
        4 if message["family"] == AF_INET else 6,
        attributes.get("FRA_PRIORITY", 0),
        message["action"],
        attributes.get("FRA_TABLE", message["table"]),
        0 if suppressed == 0xFFFF_FFFF else suppressed + 1,
        None if mark is None else (mark, attributes.get("FRA_FWMASK", 0xFFFF_FFFF)),
        _prefix(attributes.get("FRA_SRC"), message.get("src_len", 0)),
        _prefix(attributes.get("FRA_DST"), message["dst_len"]),
        (int(first), int(last)) if last else _ALL_USERS,
        # Our packets come from this machine, and no socket of ours has chosen a device.
        devices != {"lo"} or bool(message.get("tos")) or any(name in attributes for name in _NARROW),
        bool(message.get("flags", 0) & _INVERTED),
        tuple(_part(name, attributes[name]) for name in _PARTS if name in attributes),
    )


def _part(name: str, value: int | str) -> str:
    if isinstance(value, int):
        return f"{_PARTS[name]} {_PROTOCOLS.get(value, value)}"
    first, _, last = value.partition(":")
    return f"{_PARTS[name]} {first}" + ("" if last in ("", first) else f"-{last}")


def _prefix(address: str | None, length: int) -> Network | None:
    return None if address is None else ipaddress.ip_network((address, length), strict=False)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The kernel's routes, devices and addresses, and what is ours."""

    routes: Collection[KernelRoute]
    links: Collection[NetworkDevice]
    addresses: Collection[DeviceAddress]
    own: str
    """Name of the TUN device."""
    mark: int
    everything: bool = True
    """All traffic is to enter the tunnel, not only that to some networks."""

    def name(self, device: int | None) -> str:
        return next((link.name for link in self.links if link.device == device), "another device")

    def sources(self, *, own: bool) -> list[Address]:
        """The addresses of the TUN device, or of the others."""
        return [
            address.interface.ip
            for address in self.addresses
            if (self.name(address.device) == self.own) == own
        ]

    def leads_to(self, table: int, shortest: int, version: int, covers: Callable[[Network], bool]) -> str:
        """The device of the most specific route of `table` whose prefix covers; empty if there is none."""
        found = [
            route
            for route in self.routes
            if route.table == table and route.version == version
            if route.prefix.prefixlen >= shortest and covers(route.prefix)
        ]
        if not found:
            return ""
        best = max(found, key=lambda route: (route.prefix.prefixlen, -route.metric))
        if best.kind == UNICAST:
            return self.name(best.hops[0].device if best.hops else None)
        return _NOWHERE if best.kind in _REFUSALS else ""


def decide_before_ours(
    rules: Iterable[ForeignRule], surroundings: Surroundings, exits: Collection[Address]
) -> str:
    """Which rules decide for our packets, in words; empty if none does."""
    found: dict[ForeignRule, list[str]] = {}
    for rule in sorted(rules, key=lambda rule: (rule.version, rule.priority)):
        if rule.table == _LOCAL_TABLE and rule.action == LOOKUP:
            continue
        for what, device in (*_link(rule, surroundings, exits), *_machine(rule, surroundings)):
            found.setdefault(rule, []).append(f"{what} to {device}")
    return "; ".join(
        f"{rule} stands before ours: it sends {' and '.join(dict.fromkeys(what))}"
        for rule, what in found.items()
    )


def _link(
    rule: ForeignRule, surroundings: Surroundings, exits: Collection[Address]
) -> Iterator[tuple[str, str]]:
    uid = os.geteuid()
    if rule.priority >= LINK:
        return
    for exit in exits:
        if exit.version != rule.version:
            continue

        def covers(prefix: Network, exit: Address = exit) -> bool:
            return exit in prefix

        matched = (
            _has_mark(rule, surroundings.mark)
            and (rule.to is None or exit in rule.to)
            and _has_source(rule, surroundings.sources(own=False))
            and rule.users[0] <= uid <= rule.users[1]
            and not rule.narrow
            and not rule.parts
        )
        if matched == rule.inverted:
            continue
        device = _leads(rule, surroundings, covers)
        if device and device != surroundings.leads_to(MAIN, 0, rule.version, covers):
            yield "the link", device
            return


def _machine(rule: ForeignRule, surroundings: Surroundings) -> Iterator[tuple[str, str]]:
    if rule.priority >= REST or not surroundings.everything:
        return
    matched = (
        _has_mark(rule, 0)
        and (rule.to is None or rule.to.prefixlen <= 1)
        and _has_source(rule, surroundings.sources(own=True))
        and not rule.narrow
    )
    # What a partial rule leaves out is all the rest.
    if (matched and not rule.is_partial) if rule.inverted else not matched:
        return
    what = (
        "some of this machine's traffic"
        if rule.is_partial and not rule.inverted
        else "this machine's traffic"
    )
    # Two halves of all addresses do what a default route does.
    device = _leads(rule, surroundings, lambda prefix: prefix.prefixlen <= 1)
    if not device:
        names = [network for network in TUNNEL_NETWORKS if network.version == rule.version]
        device = _leads(
            rule, surroundings, lambda prefix: any(net.network_address in prefix for net in names)
        )
    if device and device != surroundings.own:
        yield what, device


def _leads(rule: ForeignRule, surroundings: Surroundings, covers: Callable[[Network], bool]) -> str:
    if rule.action == LOOKUP:
        return surroundings.leads_to(rule.table, rule.shortest, rule.version, covers)
    return _NOWHERE if rule.action in _REFUSALS else ""


def _has_mark(rule: ForeignRule, mark: int) -> bool:
    return rule.mark is None or mark & rule.mark[1] == rule.mark[0] & rule.mark[1]


def _has_source(rule: ForeignRule, sources: Iterable[Address]) -> bool:
    return rule.source is None or any(source in rule.source for source in sources)


class ForeignRules(Fact):
    """Trouble only: nothing of it is put back."""

    changes = staticmethod(netlink_changes)
    name = "rules of others"

    def __init__(self, find: Callable[[], Awaitable[str]]) -> None:
        """`find` says which rules of others decide before ours."""
        self._find = find
        self._found = ""

    async def look(self) -> str:
        self._found = await self._find()
        return self._found

    async def put_back(self) -> None:
        raise CryprqError(self._found)
