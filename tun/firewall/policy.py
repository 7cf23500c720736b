"""A person's rules in system-wide mode: each is split between packet filter and DNS forwarder, or refused.

A packet has an address and perhaps a port, but no name. A DNS question has a name, but no port. So rules are split:

    domains, lists     block, tunnel            the DNS forwarder: a blocked name has no address
    cidrs, ports       block, tunnel, direct    the packet filter (user_rules.py)

For an address literal the result equals `RuleSet.decide`. For a name the forwarder decides first, then the filter
decides by port, as for any address. This equals the first matching rule unless the two parts contradict each other.
`check` finds these contradictions:

    a name sent direct            many names share an address, and all of them would go past the tunnel
    a name with ports             the forwarder does not know which port the program will use
    a name to one exit            all packets go through the active exit
    block a name, after a rule that lets some ports through: the name has no address for these ports either
    tunnel a name, before another rule for ports, or with another default: the filter does not see the name

Such a rule is refused with a reason, and never replaced by a similar one. An address rule holds for every packet to the
address, also if the program got the address from a name.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.address import AddressError, Destination, canonical_host
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.engine import EVERYTHING, Decision, RuleSet
from cryprq_proxy.rules.ranges import LAST_PORT, borders
from cryprq_proxy.rules.syntax import Rule, Verdict, shown
from cryprq_proxy.status import TunRules

from ..dns.names import labels
from .filter_rules import DNS_PORTS, FilterRule, FilterRules, prefixes

MAX_SHOWN: Final = 256
"""Prefixes in the status."""
_NO_PORT: Final = 0
"""No rule with ports contains it."""
_ALL_PORTS: Final = ((1, LAST_PORT),)


class Policy:
    """The rules of system-wide mode. Raises ConfigError for rules that it cannot apply exactly."""

    __slots__ = ("filter", "names", "rules")

    def __init__(self, rules: RuleSet = EVERYTHING) -> None:
        reasons = check(rules)
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise ConfigError(f"these rules do not work with --tun: {reasons[0]}{more}")
        self.rules: Final = rules
        self.filter: Final = filter_rules(rules)
        """The part of the packet filter."""
        self.names: Final = sum(_has_names(rule) for rule in rules.rules)
        """The number of rules that the forwarder applies, wholly or in part."""

    def blocks(self, name: bytes) -> bool:
        """Whether the forwarder has no answer for `name` (lower-case wire form)."""
        host = _host_name(name) if self.names else None
        return host is not None and _blocked_by(self.rules, host) is not None

    def status(self) -> TunRules:
        """How many rules are in force and where."""
        return TunRules(
            rules=len(self.rules.rules),
            dns=self.names,
            filter=len(self.filter.rules),
            default=str(self.rules.default),
            direct=self._direct(),
        )

    def _direct(self) -> tuple[str, ...] | None:
        direct = [rule for rule in self.filter.rules if rule.verdict is Verdict.DIRECT]
        if self.filter.default is Verdict.DIRECT or any(rule.networks is None for rule in direct):
            return None
        networks = {network for rule in direct for network in rule.networks or ()}
        if len(networks) > MAX_SHOWN:
            return None
        return tuple(prefix for version in (4, 6) for prefix in prefixes(networks, version))


def contradiction(rules: RuleSet, *, lan: bool, include: bool) -> str:
    """Why the default contradicts other settings of system-wide mode; empty if it does not.

    `lan`: whether the LAN is reached directly. `include`: whether only some prefixes go through the tunnel.
    """
    default = rules.default.verdict
    if include and default is not Verdict.TUNNEL:
        return (
            f'--include and the default "{rules.default}" both say what becomes of the rest: leave --include out, and'
            " give a rule with cidrs to the tunnel instead"
        )
    if not lan and default is Verdict.DIRECT:
        return (
            'the default "direct" lets out what --lan block is to keep in: leave one of them out, or give a rule with'
            " the LAN's cidrs to block"
        )
    return ""


def filter_rules(rules: RuleSet) -> FilterRules:
    """The packet filter's part of rules that `check` accepts."""
    found = [
        FilterRule(rule.action.verdict, None if rule.any_host else rule.cidrs, rule.ports)
        for rule in rules.rules
        if rule.any_host or rule.cidrs
    ]
    return FilterRules(tuple(found), rules.default.verdict)


def check(rules: RuleSet) -> list[str]:
    """Why system-wide mode refuses these rules: one clause, with the rule's name, for each refused rule."""
    reasons = []
    if rules.default.verdict is Verdict.EXIT:
        reasons.append(f'the default "{rules.default}" picks an exit, and {_ONE_EXIT}')
    for index, rule in enumerate(rules.rules):
        if reason := _reason(rules, index, rule):
            reasons.append(f"{shown(rules.rules, index)} {reason}")
    return reasons


_ONE_EXIT: Final = "all packets go through the one that is active"


def _reason(rules: RuleSet, index: int, rule: Rule) -> str:
    verdict = rule.action.verdict
    if verdict is Verdict.EXIT:
        return f'says "{rule.action}", and {_ONE_EXIT}: use it with the local proxy only'
    if not _has_names(rule):
        return ""
    if verdict is Verdict.DIRECT:
        return (
            'says "direct" for names, but a packet bears no name, and other names that share an address with these'
            " would go past the tunnel too: give cidrs or ports instead"
        )
    if rule.ports:
        return (
            "has names and ports, but a question for a name does not say for which port: leave the ports out, or give"
            " cidrs instead of names"
        )
    if verdict is Verdict.BLOCK:
        return _against_block(rules, index)
    return _against_tunnel(rules, index)


def _against_block(rules: RuleSet, index: int) -> str:
    """A blocked name has no address, so an earlier rule cannot let some of its ports through."""
    for earlier, rule in enumerate(rules.rules[:index]):
        if rule.any_host and rule.action.verdict is not Verdict.BLOCK:
            return (
                f"blocks names, but {shown(rules.rules, earlier)} stands before it and lets the same names through for"
                f" some ports: put {shown(rules.rules, index)} first"
            )
    return ""


def _against_tunnel(rules: RuleSet, index: int) -> str:
    """The filter decides about the ports of an answered name. It must send them through the tunnel, except ports
    that an earlier rule has decided."""
    decided: list[tuple[int, int]] = []
    for later, rule in enumerate(rules.rules):
        if not rule.any_host:
            continue
        ports = rule.ports or _ALL_PORTS
        if later > index and rule.action.verdict is not Verdict.TUNNEL and _more(ports, decided):
            return (
                f'says "tunnel" for names, but {shown(rules.rules, later)} decides by the port alone, and a packet'
                f" bears no name: put {shown(rules.rules, later)} first, or give cidrs instead of names"
            )
        decided += ports
    if rules.default.verdict is not Verdict.TUNNEL and _more(_ALL_PORTS, decided):
        return (
            f'says "tunnel" for names, but the default is "{rules.default}", and a packet bears no name: give cidrs'
            " instead of names, or another default"
        )
    return ""


def _more(ports: tuple[tuple[int, int], ...], decided: list[tuple[int, int]]) -> bool:
    """Whether some of `ports` are not among the `decided` ones."""
    return borders([*ports, *decided]) != borders(decided)


def _has_names(rule: Rule) -> bool:
    return bool(rule.domains or rule.lists)


def _blocked_by(rules: RuleSet, host: str) -> Decision | None:
    """The rule for names that blocks this one. The filter applies rules for all hosts."""
    decision = rules.decide(host, _NO_PORT)
    blocks = decision.index >= 0 and decision.action.verdict is Verdict.BLOCK
    return decision if blocks and not rules.rules[decision.index].any_host else None


def _host_name(wire: bytes) -> str | None:
    """The text of a name; None if it is not a host name, so that no rule can match it."""
    found = labels(wire)
    if any(b"." in label for label in found):
        return None
    try:
        host = canonical_host(b".".join(found))
    except AddressError:
        return None
    return None if Destination(host, 0).is_ip else host


# --- for people ---

_WORDS: Final = {
    Verdict.BLOCK: "the packet filter refuses it",
    Verdict.DIRECT: "the packet filter sends it past the tunnel",
    Verdict.TUNNEL: "it goes through the tunnel, if it is not on the LAN and not excluded",
}


def explain(rules: RuleSet, host: str, port: int) -> str:
    """What system-wide mode does with a connection to `host` (canonical, as in a Destination): one sentence."""
    reasons = check(rules)
    if reasons:
        return f"system-wide mode refuses these rules: {reasons[0]}"
    decision = rules.decide(host, port)
    by = "by default" if decision.index < 0 else f"by {decision.rule}"
    name = not Destination(host, port).is_ip
    blocked = _blocked_by(rules, host) if name else None
    if blocked is not None:
        return f"the DNS forwarder blocks the name, by {blocked.rule}"
    if port == DNS_PORTS[0]:
        return "the DNS forwarder answers whatever goes to port 53, and no rule concerns it"
    if decision.action.verdict is Verdict.DIRECT and port in DNS_PORTS:
        return f"it would go past the tunnel, {by}, but DNS in any form stays in the tunnel"
    unless = (
        "; a rule that names its address goes first"
        if name and any(rule.cidrs for rule in rules.rules)
        else ""
    )
    return f"{_WORDS[decision.action.verdict]}, {by}{unless}"
