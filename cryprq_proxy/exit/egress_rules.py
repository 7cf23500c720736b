"""Egress rules as a person writes them, compiled for one look-up per new connection.

An address becomes an integer. A list of rules becomes sorted ranges (rules/ranges.py) for each group of ports, and a
look-up is one bisection. An IPv6 address with an IPv4 address inside has several `faces`; egress_policy.py judges them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..address import canonical_host
from ..errors import ConfigError
from ..rules.ranges import LAST_PORT, AddressSet, Face, IPNetwork, parse_network, parse_ports

_LOCAL_NAT64: Final = 0x0064_FF9B_0001
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_BRACKETED: Final = re.compile(r"\[([^\[\]]*)\](?::(.*))?")


def faces(ip: str) -> tuple[Face, ...]:
    """`ip` itself, then each IPv4 address that it may become; empty if `ip` is no literal or has a zone."""
    try:
        if ":" not in ip:
            return (Face(4, int.from_bytes(socket.inet_pton(socket.AF_INET, ip))),)
        value = int.from_bytes(socket.inet_pton(socket.AF_INET6, ip))
    except (OSError, ValueError):
        return ()
    return Face(6, value), *(Face(4, inner) for inner in _inside(value))


def _inside(value: int) -> Sequence[int]:
    """The IPv4 addresses that an IPv6 address may stand for."""
    high, low = value >> 32, value & 0xFFFF_FFFF
    if high == 0xFFFF or high == 0x0064_FF9B << 64:  # v4-mapped, NAT64
        return (low,)
    if high == 0:  # v4-compatible, except :: and ::1
        return (low,) if low > 1 else ()
    if value >> 112 == 0x2002:  # 6to4, RFC 3056
        return (value >> 80 & 0xFFFF_FFFF,)
    if value >> 96 == 0x2001 << 16:  # Teredo, RFC 4380 section 4: the server, and the client inverted
        return value >> 64 & 0xFFFF_FFFF, low ^ 0xFFFF_FFFF
    if value >> 80 == _LOCAL_NAT64:
        return _inside_local_nat64(value)
    return ()


def _inside_local_nat64(value: int) -> Sequence[int]:
    """RFC 6052 section 2.2: prefixes of 48, 56, 64 and 96 bits; bits 64 to 71 are skipped.

    The local translator's prefix length is not known here, so all four are judged. A wrong length often gives
    0.x.x.x, which is no host's address. It is ignored, unless all four give such an address.
    """
    joined = (value >> 64) << 56 | value & (1 << 56) - 1
    shifted = (joined >> shift & 0xFFFF_FFFF for shift in (40, 32, 24))
    return [inner for inner in (*shifted, value & 0xFFFF_FFFF) if inner >> 24] or [0]


class EgressRule(NamedTuple):
    """One decoded entry of a list. Without network and name it holds for any host."""

    network: IPNetwork | None
    name: str
    """Lower case; "*.example.com" for all below; "" for none."""
    first_port: int
    last_port: int


def parse_rule(entry: str, where: str = "egress rule") -> EgressRule:
    """Decode one entry. `where` begins the error's text, like "deny" or "egress.deny in exit.toml".

    Raises `ConfigError`, with the entry and what is expected.
    """
    text = entry.strip()
    bracketed = _BRACKETED.fullmatch(text)
    host: str
    ports: str | None
    if bracketed:
        host, ports = bracketed[1], bracketed[2]
    elif text.count(":") > 1:
        host, ports = text, None
    else:
        host, colon, rest = text.partition(":")
        ports = rest if colon else None
    try:
        first, last = (1, LAST_PORT) if ports is None else parse_ports(ports)
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        # A dot at the end makes no name of an address: the C resolver drops it too.
        undotted = host.removesuffix(".")
        if bracketed or ":" in host or "/" in host or _NUMBER.fullmatch(undotted.rpartition(".")[2].lower()):
            if host.isdecimal():
                raise ValueError("write a port alone with a colon before it, as :25")
            network = parse_network(host if bracketed or ":" in host else undotted)
            if bracketed and network.version == 4:
                raise ValueError("only IPv6 addresses have brackets")
            return EgressRule(network, "", first, last)
        if host or ports is None:
            return EgressRule(None, _parse_name(host), first, last)
        return EgressRule(None, "", first, last)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {entry!r} is invalid ({error}); expected an address or CIDR, a name or"
            " *.name, with :PORT or :FROM-TO after it or alone, like 10.0.0.0/8, *.example.com, :25 or"
            " [2001:db8::/32]:80-90"
        ) from None


def _parse_name(text: str) -> str:
    name = text.removeprefix("*.")
    if "*" in name:
        raise ValueError("a * is allowed only at the beginning, as *.name")
    name = canonical_host(name.encode("ascii"))
    return f"*.{name}" if text.startswith("*.") else name


def normalise(name: str) -> str:
    return name.lower().removesuffix(".")


class _PortGroup:
    """All rules of one list with the same ports."""

    __slots__ = ("addresses", "anywhere", "first", "has_addresses", "last", "names", "parents")

    def __init__(self, first: int, last: int, rules: Sequence[EgressRule]) -> None:
        self.first = first
        self.last = last
        networks = [rule.network for rule in rules if rule.network is not None]
        self.addresses = AddressSet(networks)
        self.has_addresses = bool(networks)
        self.anywhere = any(rule.network is None and not rule.name for rule in rules)
        self.names = frozenset(rule.name for rule in rules if rule.name)
        self.parents = any(name.startswith("*.") for name in self.names)

    def has_name(self, name: str) -> bool:
        if name in self.names:
            return True
        if self.parents:
            dot = name.find(".")
            while dot >= 0:
                if "*" + name[dot:] in self.names:
                    return True
                dot = name.find(".", dot + 1)
        return False


class RuleList:
    """A list of rules, grouped by ports: few groups, whatever the number of rules."""

    __slots__ = ("_groups",)

    def __init__(self, rules: Iterable[EgressRule]) -> None:
        by_ports: dict[tuple[int, int], list[EgressRule]] = {}
        for rule in rules:
            by_ports.setdefault((rule.first_port, rule.last_port), []).append(rule)
        self._groups = [_PortGroup(*ports, group) for ports, group in by_ports.items()]

    def __bool__(self) -> bool:
        return bool(self._groups)

    def has_address(self, face: Face, port: int) -> bool:
        for group in self._groups:
            if group.first <= port <= group.last and (group.anywhere or face in group.addresses):
                return True
        return False

    def has_name(self, name: str, port: int) -> bool:
        for group in self._groups:
            if group.first <= port <= group.last and (group.anywhere or group.has_name(name)):
                return True
        return False

    def may_have_address(self, port: int) -> bool:
        """Whether `has_address` finds any address with this port."""
        return any(g.first <= port <= g.last and (g.anywhere or g.has_addresses) for g in self._groups)
