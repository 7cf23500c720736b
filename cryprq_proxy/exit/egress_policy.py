"""The egress policy: which targets the exit lets its clients reach.

Without a policy each client could reach the exit's loopback, its LAN and the metadata service of its cloud.
The policy is asked twice. `check_name` comes before a name is resolved and saves a useless query.
`check_address` judges the literal that the next `connect` or `sendto` gets. Only the second one protects: a
name may resolve to any address, and to another one each time.

An IPv6 address can carry an IPv4 address that a translator or tunnel takes out again. Such an address has
several *faces*: itself, and each IPv4 address that it may mean. Every face must pass.

The operator writes three lists with entries of the form `HOST`, `HOST:PORTS` or `:PORTS`. HOST is an address
or CIDR (IPv6 in brackets if ports follow), a name, or `*.name` for all names below it. PORTS is `80` or
`8000-9000`.

    deny   These never pass, whatever the other lists say. A name here does not forbid its addresses.
    allow  Exceptions from the built-in denials: addresses and CIDRs only. A name here is an error, because
           its owner could point it at the exit's loopback.
    only   If not empty, nothing else passes: the port and the name, or the port and the address, must match
           an entry. It permits nothing by itself: a private network must be in `allow` as well.

The tables below are built in. `allow_private` lifts PRIVATE, the exit's own addresses and the ban on the
names of loopback. The addresses of METADATA (they can give away control of the machine) and of the exit are
*guarded*: an entry of `allow` lifts one only if the entry lies within the guarded prefix. So "10.0.0.0/8"
opens a LAN, but neither the exit's own 10.0.0.5 nor a metadata service inside of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from ..address import is_localhost
from ..errors import ConfigError
from ..rules.ranges import LAST_PORT, AddressSet, IPNetwork, without
from .egress_rules import EgressRule, RuleList, faces, normalise, parse_rule

PRIVATE: Final = (
    "10.0.0.0/8",  # RFC 1918
    "100.64.0.0/10",  # RFC 6598, shared with the provider; Tailscale
    "127.0.0.0/8",
    "169.254.0.0/16",  # RFC 3927, link-local
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "64:ff9b:1::/48",  # RFC 8215, NAT64 of the local network, to private IPv4 too
    "fc00::/7",  # RFC 4193, unique local
    "fe80::/10",
    "fec0::/10",  # RFC 3879, site-local, deprecated
)
SPECIAL: Final = (
    "0.0.0.0/8",  # RFC 1122: this host; Linux connects 0.0.0.0 to loopback
    "192.0.0.0/24",  # RFC 6890, IETF protocol assignments
    "192.0.2.0/24",  # RFC 5737, documentation; also 198.51.100.0 and 203.0.113.0
    "192.88.99.0/24",  # RFC 7526, 6to4 relays, deprecated
    "198.18.0.0/15",  # RFC 2544, benchmarking
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # RFC 5771, multicast
    "240.0.0.0/4",  # RFC 1112, reserved; the last one is broadcast
    # Only 2000::/3 is global unicast (RFC 4291). The rest holds the unspecified address, discard-only
    # 100::/64, segment ids 5f00::/16, multicast and unassigned prefixes. TRANSLATED is not part of this table.
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",  # RFC 2928, IETF protocol assignments: Teredo, benchmarking, ORCHID
    "2001:db8::/32",  # RFC 3849, documentation
    "3fff::/20",  # RFC 9637, documentation
)
METADATA: Final = (
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure's host agent, a public address
    "169.254.0.23/32",  # Tencent
    "169.254.42.42/32",  # Scaleway; also fd00:42::42
    "169.254.169.0/24",  # AWS, Azure, Google, Oracle and most others
    "169.254.170.0/24",  # AWS containers
    "192.0.0.192/32",  # Oracle Classic
    "fd00:42::42/128",
    "fd00:c1::/32",  # Oracle
    "fd00:ec2::/32",  # AWS
    "fd20:ce::/32",  # Google
    "fe80::a9fe:a9fe/128",  # OpenStack
)
TRANSLATED: Final = ("::ffff:0:0/96", "64:ff9b::/96")
"""Outside of 2000::/3, and allowed if the IPv4 address inside is: v4-mapped, and NAT64 (RFC 6052)."""


class EgressPolicy:
    """Decides whether a client may reach a target. The module's text explains the lists.

    `own_addresses` are the exit's, as addresses or CIDRs (base/own_addresses.py). Call `update_own_addresses` when
    they change. Raises `ConfigError` for an invalid entry.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        only: Iterable[str] = (),
        allow_private: bool = False,
        own_addresses: Iterable[str] = frozenset(),
    ) -> None:
        self._deny = RuleList(parse_rule(entry, "deny") for entry in deny)
        self._only = RuleList(parse_rule(entry, "only") for entry in only)
        self._allow_rules = [_parse_exception(entry) for entry in allow]
        self._allow = RuleList(self._allow_rules)
        self._allow_private = allow_private
        self.update_own_addresses(own_addresses)

    def update_own_addresses(self, addresses: Iterable[str]) -> None:
        """Replace the exit's own addresses; ignore what is neither an address nor a CIDR."""
        own = [] if self._allow_private else [*filter(_is_guardable, map(_network_or_none, addresses))]
        guarded = [*map(ip_network, METADATA), *(n for n in own if n is not None)]
        blocked = list(map(ip_network, SPECIAL))
        private = list(map(ip_network, PRIVATE))
        blocked = without(blocked, [*map(ip_network, TRANSLATED), *private])
        if not self._allow_private:
            blocked += private
        self._guarded = AddressSet(guarded)
        self._blocked = AddressSet([*blocked, *guarded])
        self._allow_guarded = RuleList(
            rule for rule in self._allow_rules if any(_covers(network, rule.network) for network in guarded)
        )

    def check_name(self, name: str, port: int) -> bool:
        """Whether to resolve `name`, in A-labels. A literal is judged as by `check_address`.

        True does not permit a connection: each address found needs `check_address(address, port, name)`.
        """
        name = normalise(name)
        if faces(name):
            return self.check_address(name, port)
        if not 1 <= port <= LAST_PORT or not name or not name.isascii():
            return False
        if not self._allow_private and is_localhost(name):
            return False
        if self._deny and self._deny.has_name(name, port):
            return False
        return not self._only or self._only.has_name(name, port) or self._only.may_have_address(port)

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        """Whether a socket may be connected, or a datagram sent, to the literal `ip`; False for other text.

        `name` is the requested name if `ip` came from the resolver; the names of `only` need it.
        """
        if not 1 <= port <= LAST_PORT:
            return False
        seen = faces(ip)
        for face in seen:
            if self._deny and self._deny.has_address(face, port):
                return False
            if face in self._blocked:
                allow = self._allow_guarded if face in self._guarded else self._allow
                if not allow.has_address(face, port):
                    return False
        if self._only and seen:
            if name is not None and self._only.has_name(normalise(name), port):
                return True
            return any(self._only.has_address(face, port) for face in seen)
        return bool(seen)


def _parse_exception(entry: str) -> EgressRule:
    rule = parse_rule(entry, "allow")
    if rule.network is None:
        raise ConfigError(
            f"allow: {entry!r} has no address, but allow takes addresses and CIDRs only;"
            " to permit certain names or ports and nothing else, use the list only"
        )
    return rule


def _network_or_none(text: str) -> IPNetwork | None:
    try:
        return ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None


def _is_guardable(network: IPNetwork | None) -> bool:
    """False for loopback: it is in PRIVATE, and an entry like 127.0.0.0/8 in `allow` must lift all of it."""
    return network is not None and not network.is_loopback


def _covers(outer: IPNetwork, inner: IPNetwork | None) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)
