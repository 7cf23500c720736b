"""A model of the filter of system-wide mode: has the name an address at all, and which rule applies to a packet?

tests/lab/test_rules_lab.py compares the second question with the kernel.
"""

from __future__ import annotations

from ipaddress import ip_address

from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.rules.syntax import Verdict
from tun.dns.names import from_text
from tun.firewall.policy import Policy
from tun.firewall.user_rules import FilterRules


def filtered(found: FilterRules, address: str | None, port: int) -> Verdict:
    """What the chain says of a packet to `address`, which for None is in no prefix of any rule."""
    for each in found.rules:
        here = each.networks is None or (address is not None and _within(address, each.networks))
        if here and (not each.ports or any(first <= port <= last for first, last in each.ports)):
            return each.verdict
    return found.default


def _within(address: str, networks: tuple[IPNetwork, ...]) -> bool:
    found = ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)


def named(policy: Policy, name: str, port: int) -> Verdict:
    """What becomes of a program that asks for `name` and connects to the address that it is told."""
    return Verdict.BLOCK if policy.blocks(from_text(name)) else filtered(policy.filter, None, port)
