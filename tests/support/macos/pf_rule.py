"""One rule of pf, with one value for each of its parts, and how pfctl prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

type Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Host:
    """Addresses of one end: any, a network or a table."""

    text: str = "any"
    negated: bool = False

    @property
    def network(self) -> Network | None:
        return None if self.text == "any" or self.text.startswith("<") else ip_network(self.text)

    def __str__(self) -> str:
        return ("! " if self.negated else "") + self.text


@dataclass(frozen=True)
class Range:
    """A comparison of a port or a user id: an operator and one or two numbers."""

    operator: str
    first: int
    second: int = 0

    def holds(self, value: int) -> bool:
        match self.operator:
            case "=":
                return value == self.first
            case "!=":
                return value != self.first
            case ">=":
                return value >= self.first
            case "<=":
                return value <= self.first
            case ">":
                return value > self.first
            case "<":
                return value < self.first
            case ":":
                return self.first <= value <= self.second
            case "><":
                return self.first < value < self.second
            case _:
                return value < self.first or value > self.second

    def __str__(self) -> str:
        if self.operator == ":":
            return f"{self.first}:{self.second}"
        if self.operator in ("<>", "><"):
            return f"{self.first} {self.operator} {self.second}"
        return f"{self.operator} {self.first}"


@dataclass(frozen=True)
class PfRule:
    """One rule, with one value for each part. `kind`: pass, block, scrub, nat, rdr, anchor or TYPE-anchor."""

    kind: str
    anchor: str = ""
    policy: str = ""
    direction: str = ""
    quick: bool = False
    interface: str = ""
    not_interface: bool = False
    route: str = ""
    """route-to or reply-to."""
    route_interface: str = ""
    route_gateway: str = ""
    family: str = ""
    proto: str = ""
    source: Host = Host()
    source_port: Range | None = None
    destination: Host = Host()
    destination_port: Range | None = None
    user: Range | None = None
    flags: str = ""
    icmp_type: str = ""
    tagged: str = ""
    tag: str = ""
    state: str = ""
    """no, keep, or empty for what can have none."""
    state_options: tuple[str, ...] = ()
    allow_opts: bool = False
    label: str = ""
    target: str = ""
    """Behind the arrow of a translation."""
    target_port: str = ""
    scrub: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield (
            "nat pass"
            if (self.kind, self.policy) == ("nat", "pass")
            else ("rdr pass" if (self.kind, self.policy) == ("rdr", "pass") else self.kind)
        )
        if self.kind == "block":
            yield self.policy
        if self.anchor:
            yield f'"{self.anchor}"'
        if self.direction:
            yield self.direction
        if self.quick:
            yield "quick"
        if self.interface:
            yield f"on {'! ' if self.not_interface else ''}{self.interface}"
        if self.route:
            yield f"{self.route} ({self.route_interface} {self.route_gateway})"
        if self.family:
            yield self.family
        if self.proto:
            yield f"proto {self.proto}"
        ends = (self.source, self.source_port, self.destination, self.destination_port)
        if ends == (Host(), None, Host(), None):
            yield "all"
        else:
            yield f"from {self.source}"
            if self.source_port:
                yield f"port {self.source_port}"
            yield f"to {self.destination}"
            if self.destination_port:
                yield f"port {self.destination_port}"
        yield from self._options()

    def _options(self) -> Iterator[str]:
        if self.user:
            yield f"user {self.user}"
        if self.flags:
            yield f"flags {self.flags}"
        if self.icmp_type:
            yield f"{'icmp6' if self.proto == 'ipv6-icmp' else 'icmp'}-type {self.icmp_type}"
        if self.tagged:
            yield f"tagged {self.tagged}"
        if self.state:
            yield f"{self.state} state"
        if self.state_options:
            yield f"({', '.join(self.state_options)})"
        if self.allow_opts:
            yield "allow-opts"
        yield from self.scrub
        if self.tag:
            yield f"tag {self.tag}"
        if self.label:
            yield f'label "{self.label}"'
        if self.target:
            yield f"-> {self.target}"
        if self.target_port:
            yield f"port {self.target_port}"
