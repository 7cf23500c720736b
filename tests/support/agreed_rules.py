"""Large generated sets of rules that the proxy, the PAC file and system-wide mode all accept, and targets for them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support import rule_cases
from tests.support.pac_engine import is_canonical
from tun.firewall.policy import check

ACTIONS = (RuleAction(Verdict.TUNNEL), RuleAction(Verdict.DIRECT), RuleAction(Verdict.BLOCK))
SEEDS = range(12)
RULES, TARGETS = 150, 2500


@functools.cache
def accepted(seed: int, directory: Path | None = None) -> tuple[RuleSet, tuple[Destination, ...]]:
    """Rules that all three accept, and targets for them."""
    cases = rule_cases.cases(seed, RULES, TARGETS, directory, actions=ACTIONS)
    kept: list[Rule] = []
    # Rules for addresses and ports are few among the cases, and names cannot be direct.
    networks = [ip_network(text) for text in rule_cases.NETWORKS if not text.endswith("/0")]
    for index, rule in enumerate(cases.rules):
        tried = [rule]
        if index % 3 == seed % 3:
            cidrs = tuple(networks[(index + step) % len(networks)] for step in range(1 + index % 2))
            ports = rule.ports or rule_cases.PORTS[index % len(rule_cases.PORTS) :][:1]
            tried.append(Rule(action=ACTIONS[index % 5 % 3], cidrs=cidrs, ports=ports if index % 2 else ()))
        for each in tried:
            if not check(RuleSet([*kept, each], cases.default)):
                kept.append(each)
    targets = dict.fromkeys([*filter(is_canonical, cases.targets), *_literals()])
    return load_rules(kept, cases.default), tuple(targets)


@functools.cache
def _literals() -> tuple[Destination, ...]:
    return tuple(_around_networks())


def _around_networks() -> Iterator[Destination]:
    """Around both ends of each network, at ports around those of rules."""
    for network in map(ip_network, rule_cases.NETWORKS):
        first, size = int(network.network_address), network.num_addresses
        for value in (first - 1, first, first + size // 2, first + size - 1, first + size):
            if 0 <= value < 1 << network.max_prefixlen:
                address = IPv4Address(value) if network.version == 4 else IPv6Address(value)
                for port in (21, 22, 25, 80, 443, 444, 6000, 6150, 65535):
                    yield Destination(str(address), port)
