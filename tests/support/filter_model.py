"""A model of the filter of system-wide mode: has the name an address at all, and which rule applies to a packet?

tests/lab/test_rules_lab.py compares the second question with the kernel.
"""

from __future__ import annotations

from ipaddress import ip_address

from cryprq_proxy.rules.syntax import Verdict
from tun.dns.names import from_text
from tun.firewall.filter_rules import FilterRules
from tun.firewall.policy import Policy


def filtered(found: FilterRules, address: str | None, port: int) -> Verdict:
    """What the chain says of a packet to `address`, which for None is in no prefix of any rule."""
    target = None if address is None else ip_address(address)
    target = getattr(target, "ipv4_mapped", None) or target
    for each in found.rules:
        here = each.networks is None or (
            target is not None and any(target in network for network in each.networks)
        )
        if here and (not each.ports or any(first <= port <= last for first, last in each.ports)):
            return each.verdict
    return found.default


def named(policy: Policy, name: str, port: int) -> Verdict:
    """What becomes of a program that asks for `name` and connects to the address that it is told."""
    return Verdict.BLOCK if policy.blocks(from_text(name)) else filtered(policy.filter, None, port)
