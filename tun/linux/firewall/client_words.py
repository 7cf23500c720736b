"""Words that the chains of the client's table share: hooks, priorities, ports, and how IPv4 and IPv6 differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ...firewall.filter_rules import DNS_PORTS
from ...firewall.filter_settings import FilterSettings
from ...firewall.inbound import Address

# Priorities as numbers: older versions of nft know no name for NAT in the output hook.
BEFORE_MANGLE: Final = "-160"
"""After conntrack (-200), and before the reverse path rules of others in mangle (-150)."""
BEFORE_OTHERS_DNAT: Final = "-105"
BEFORE_OTHERS_SNAT: Final = "95"
AFTER_NAT: Final = "300"
DNS_SET: Final = f"{{ {', '.join(map(str, DNS_PORTS))} }}"


def base_chain(kind: str, hook: str, priority: str, policy: str = "accept") -> str:
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


class Family(NamedTuple):
    """The words in which IPv4 and IPv6 differ."""

    version: int
    ip: str
    kind: str
    tunnel: Address | None
    resolver: Address | None


def families(settings: FilterSettings) -> tuple[Family, Family]:
    resolvers = {address.version: address for address in reversed(settings.portal_resolvers)}
    return (
        Family(4, "ip", "ipv4_addr", settings.tunnel4, resolvers.get(4)),
        Family(6, "ip6", "ipv6_addr", settings.tunnel6, resolvers.get(6)),
    )


def tunnels(settings: FilterSettings) -> Iterator[tuple[str, Address]]:
    """`ip` or `ip6` and the tunnel address, for each family that enters the tunnel."""
    for family in families(settings):
        if family.tunnel is not None:
            yield family.ip, family.tunnel
