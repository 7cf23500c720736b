"""The parts of a rule: its action, and its names, addresses, ports and lists.

The parsers here give the canonical form of a person's text. So the proxy, the PAC file and system-wide mode compare
equal values, and none of them checks again:

    "Corp.example"   corp.example      exactly this name
    ".corp.example"  .corp.example     this name and all below it
    "*.corp.example" *.corp.example    all below it: a * is any run of characters, also empty, also with dots
    "10.0.0.0/8"     a network         an IPv4-mapped IPv6 network is the IPv4 network in it
    "6000-6100"      (6000, 6100)      ports

Names in other scripts become A-labels. A rule applies if its host part and its ports both match. The host part is any
of domains, networks and lists; without them every host matches, and without ports every port. Names match domains and
lists, address literals match networks; no name is resolved for a match.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, NamedTuple

from ..address import AddressError, Destination, canonical_host
from ..errors import ConfigError
from . import ranges
from .ranges import LAST_PORT, IPNetwork

MAX_LABEL: Final = 60
"""Characters in the name of a rule."""
_EXIT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_STARS: Final = re.compile(r"\*+")
_PART_OF_ADDRESS: Final = re.compile(r"[0-9]+[0-9*]*(?:\.[0-9*]+)+\.?")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


class Verdict(Enum):
    """The route of a connection."""

    TUNNEL = "tunnel"
    """Through the active exit."""
    DIRECT = "direct"
    """From this machine, past the exit."""
    BLOCK = "block"
    """Refused."""
    EXIT = "exit"
    """Through one exit, by name."""


class RuleAction(NamedTuple):
    """A verdict, and the exit's name if it is `EXIT`."""

    verdict: Verdict
    exit: str = ""

    def __str__(self) -> str:
        return f"exit:{self.exit}" if self.verdict is Verdict.EXIT else self.verdict.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, with values from the parsers below."""

    action: RuleAction
    domains: tuple[str, ...] = ()
    cidrs: tuple[IPNetwork, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    """First and last."""
    lists: tuple[Path, ...] = ()
    name: str = ""
    """The name for people, instead of "rule 3"."""

    @property
    def any_host(self) -> bool:
        """Whether the rule matches every host."""
        return not (self.domains or self.cidrs or self.lists)


def shown(rules: Sequence[Rule], index: int) -> str:
    """The name for people of the rule with this index (-1: of the default)."""
    return "default" if index < 0 else rules[index].name or f"rule {index + 1}"


def parse_action(text: str) -> RuleAction:
    """Read "tunnel", "direct", "block" or "exit:NAME". Raises ConfigError."""
    kind, colon, name = text.partition(":")
    if kind == "exit" and colon:
        if _EXIT.fullmatch(name):
            return RuleAction(Verdict.EXIT, name)
    elif not colon and kind in ("tunnel", "direct", "block"):
        return RuleAction(Verdict(kind))
    raise ConfigError(f'expected "tunnel", "direct", "block" or "exit:NAME", got {text[:80]!a}')


def parse_label(text: str) -> str:
    """Read the name of a rule. Raises ConfigError."""
    if 1 <= len(text) <= MAX_LABEL and text.isprintable():
        return text
    raise ConfigError(f"expected 1 to {MAX_LABEL} characters, and no control characters, got {text[:80]!a}")


def parse_domain(text: str) -> str:
    """Read a name, ".name" or a pattern with *. Raises ConfigError."""
    below = text.startswith(".")
    pattern = _STARS.sub("*", text.removeprefix("."))
    try:
        if below and "*" in pattern:
            raise ValueError("a dot at the beginning and a * exclude each other")
        pattern = ".".join(map(_ascii_label, pattern.lower().split(".")))
        # A star may be empty, but then a label may be empty, which no name has.
        example = pattern.replace("*", "x")
        name = canonical_host(example.encode("ascii"))
        if Destination(name, 0).is_ip:
            raise ValueError("addresses belong into cidrs")
        if _PART_OF_ADDRESS.fullmatch(pattern):
            raise ValueError("addresses belong into cidrs, as 10.0.0.0/8")
    except ValueError as error:
        reason = "" if isinstance(error, AddressError) else f" ({error})"
        raise ConfigError(
            f"{text[:80]!a} is not understood{reason}; expected is a name like corp.example, .corp.example for"
            " all below it as well, or a pattern like ad*.example"
        ) from None
    pattern = pattern.removesuffix(".")
    return f".{pattern}" if below else pattern


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    if "*" in label:
        raise ValueError("a * cannot stand beside letters of other scripts than ASCII")
    try:
        return label.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError("it is not a name that IDNA can express") from None


def parse_cidr(text: str) -> IPNetwork:
    """Read a network or an address. Raises ConfigError."""
    try:
        network = ranges.parse_network(text)
    except ValueError as error:
        raise ConfigError(
            f"{text[:80]!a} is not understood ({error}); expected is an address or a network like 10.0.0.0/8"
        ) from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.subnet_of(_MAPPED):
        inner = IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
        return IPv4Network((inner, network.prefixlen - 96))
    return network


def parse_ports(text: str) -> tuple[int, int]:
    """Read "443" or "6000-6100". Raises ConfigError."""
    try:
        return ranges.parse_ports(text)
    except ValueError as error:
        raise ConfigError(
            f"{text[:80]!a} is not understood ({error}); expected is a port from 1 to {LAST_PORT}, or a range"
            " like 6000-6100"
        ) from None
