"""A person's rules as the packet filter has them: the first rule that matches a connection decides.

Rules do not change three things: the forwarder gets all DNS (port 53), DNS over TLS and LLMNR do not go past the
tunnel, and DHCP works. Ports are those of TCP and UDP; a rule with ports does not match other protocols.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final

from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.rules.syntax import Verdict

from .inbound import Address

DNS_PORTS: Final = (53, 853, 5355)
"""DNS, DNS over TLS, and LLMNR, which asks the LAN for names without a dot."""

_PROTOCOLS_WITH_PORTS: Final = (6, 17)


@dataclass(frozen=True, slots=True)
class FilterRule:
    """The packet filter's part of one rule."""

    verdict: Verdict
    """Never `EXIT`."""
    networks: tuple[IPNetwork, ...] | None = None
    """None: every address."""
    ports: tuple[tuple[int, int], ...] = ()
    """First and last; empty for every port, and for protocols without ports."""

    def matches(self, address: Address, port: int) -> bool:
        """`port` is 0 for a protocol without ports."""
        if self.ports and not any(first <= port <= last for first, last in self.ports):
            return False
        return self.networks is None or any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class FilterRules:
    """Rules in their order, and the default."""

    rules: tuple[FilterRule, ...] = ()
    default: Verdict = Verdict.TUNNEL

    def __bool__(self) -> bool:
        """Whether they have any effect."""
        return self.default is not Verdict.TUNNEL or any(
            rule.verdict is not Verdict.TUNNEL for rule in self.rules
        )

    def sends_past_the_tunnel(self, address: Address, protocol: int, port: int) -> bool:
        """The chain `rules` for one connection; `port` counts for TCP and UDP only."""
        ported = protocol in _PROTOCOLS_WITH_PORTS
        if ported and port in DNS_PORTS:
            return False
        for rule in self.rules:
            if rule.matches(address, port if ported else 0):
                return rule.verdict is Verdict.DIRECT
        return self.default is Verdict.DIRECT

    @property
    def may_be_direct(self) -> bool:
        """Whether any of them sends anything past the tunnel."""
        return self.default is Verdict.DIRECT or any(rule.verdict is Verdict.DIRECT for rule in self.rules)


def prefixes(networks: Iterable[IPNetwork], version: int) -> list[str]:
    """The networks of IP `version` 4 or 6 in words: sorted, and none inside of another."""
    if version == 4:
        four = (network for network in networks if isinstance(network, IPv4Network))
        return [str(network) for network in collapse_addresses(four)]
    six = (network for network in networks if isinstance(network, IPv6Network))
    return [str(network) for network in collapse_addresses(six)]
