"""A person's rules in the packet filter: the first rule that matches a connection decides.

The chain `rules` judges the first packet of each connection: in `mark_out` for this machine, in `mark_in` for
containers (client_table.py). Its verdict is the conntrack mark:

    direct    the mark DIRECT: all packets of the connection get the link's fwmark and so go past the tunnel
    block     the mark BLOCKED: the packet is refused where it would leave, so there is no connection
    tunnel    no mark: the other settings decide, and send all but the LAN through the tunnel

Other rules come with another number of the run in all marks (marks.py), so a connection that an earlier rule sent past
the tunnel is judged anew with its next packet; one in the tunnel stays there.

Each rule has a named interval set of its prefixes for each family: a look-up takes the same time for ten prefixes and
for ten thousand.

Rules do not change three things: the forwarder gets all DNS (port 53), DNS over TLS and LLMNR do not go past the
tunnel, and DHCP works. Ports are those of TCP and UDP; a rule with ports does not match other protocols.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cryprq_proxy.rules.ranges import IPNetwork, borders, spans
from cryprq_proxy.rules.syntax import Verdict

from ...firewall.filter_rules import DNS_PORTS, FilterRule, FilterRules
from .nft import block, set_of

_DIRECT_CHAIN: Final = "past_the_tunnel"
_BLOCK_CHAIN: Final = "blocked"
_CHAINS: Final = {Verdict.DIRECT: _DIRECT_CHAIN, Verdict.BLOCK: _BLOCK_CHAIN}
_TCP_UDP: Final = "meta l4proto { tcp, udp } th dport"


def rule_sets(rules: FilterRules) -> Iterator[str]:
    """The lines of the sets."""
    for index, rule in enumerate(rules.rules if rules else ()):
        for version in (4, 6):
            if listed := _merged_networks(rule.networks or (), version):
                yield from set_of(_title(index, version), f"ipv{version}_addr", "interval", listed)


def rule_chains(rules: FilterRules, direct: int, blocked: int) -> Iterator[str]:
    """The lines of the chains; `direct` and `blocked` are the conntrack marks."""
    if not rules:
        return
    yield from block(
        f"chain {_DIRECT_CHAIN}", [f"{_TCP_UDP} {_set(DNS_PORTS)} return", f"ct mark set {direct:#x}"]
    )
    yield from block(f"chain {_BLOCK_CHAIN}", [f"ct mark set {blocked:#x}"])
    yield from block("chain rules", _rules(rules))


def _rules(rules: FilterRules) -> Iterator[str]:
    yield f"{_TCP_UDP} 53 return"
    yield "meta nfproto ipv4 udp sport 68 udp dport 67 return"  # RFC 2131
    yield "meta nfproto ipv6 udp sport 546 udp dport 547 return"  # RFC 8415
    for index, rule in enumerate(rules.rules):
        ports = f"{_TCP_UDP} {_set(_merged(rule.ports))} " if rule.ports else ""
        for hosts in _hosts(rule, index):
            yield f"{hosts}{ports}{_verdict(rule.verdict)}"
    yield _verdict(rules.default)


def _hosts(rule: FilterRule, index: int) -> Iterator[str]:
    if rule.networks is None:
        yield ""
        return
    for version, ip in ((4, "ip"), (6, "ip6")):
        if any(network.version == version for network in rule.networks):
            yield f"{ip} daddr @{_title(index, version)} "


def _verdict(verdict: Verdict) -> str:
    return f"goto {_CHAINS[verdict]}" if verdict in _CHAINS else "return"


def _title(index: int, version: int) -> str:
    return f"rule{index + 1}_{version}"


def _set(members: tuple[object, ...]) -> str:
    return f"{{ {', '.join(map(str, members))} }}"


def _merged_networks(networks: tuple[IPNetwork, ...], version: int) -> list[str]:
    """As elements of an interval set. By numbers: a list of blocks has thousands, and their objects are slow."""
    make = IPv4Address if version == 4 else IPv6Address
    edges = borders(spans(networks, version))
    return [
        f"{make(first)}-{make(behind - 1)}" for first, behind in zip(edges[::2], edges[1::2], strict=True)
    ]


def _merged(ports: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """As elements of a set, none of which overlaps another."""
    edges = borders(ports)
    return tuple(
        str(first) if first == behind - 1 else f"{first}-{behind - 1}"
        for first, behind in zip(edges[::2], edges[1::2], strict=True)
    )
