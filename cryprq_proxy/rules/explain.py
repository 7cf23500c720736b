"""A decision in words: what the proxy does with a connection, and which part of which rule decides.

rules/pac/script.py and system-wide mode have their own texts for the same rules.
"""

from __future__ import annotations

from ..address import is_localhost, packed
from .engine import Decision, RuleSet
from .ranges import LAST_PORT
from .syntax import Rule, RuleAction, Verdict


def explain(rules: RuleSet, host: str, port: int) -> str:
    """One sentence about `host`, canonical as in a `Destination`."""
    decision = rules.decide(host, port)
    what = _what(decision.action)
    if decision.index < 0:
        reason = "by default: no rule applies"
    else:
        reason = f"by {decision.rule}: {_reason(rules, decision.index, host, port)}"
    return f"the proxy {what}, {reason}{_unless(rules, decision, host)}"


def _what(action: RuleAction) -> str:
    match action.verdict:
        case Verdict.TUNNEL:
            return "sends it through the tunnel"
        case Verdict.EXIT:
            return f"sends it through the exit {action.exit}"
        case Verdict.DIRECT:
            return "connects directly, past the tunnel"
        case Verdict.BLOCK:
            return "refuses it"


def _unless(rules: RuleSet, decision: Decision, host: str) -> str:
    """What becomes of a direct name that resolves to this machine (RuleSet.agrees)."""
    if decision.action.verdict is not Verdict.DIRECT or packed(host) is not None:
        return ""
    places = ["loopback"] if is_localhost(host) else []
    if decision.index >= 0 and rules.rules[decision.index].cidrs:
        places.append("the cidrs of that rule")
    if places:
        return f"; if the name resolves to this machine, to {' and '.join(places)} only"
    return "; if the name resolves to this machine it is refused, unless the rule for it has that address in its cidrs"


def _reason(rules: RuleSet, index: int, host: str, port: int) -> str:
    """The part of the rule that matches, host first."""
    rule = rules.rules[index]
    address = packed(host) is not None
    for domain in () if address else rule.domains:
        if _holds(Rule(action=rule.action, domains=(domain,)), host, port):
            return f"its domain {domain} holds the name"
    for network in rule.cidrs if address else ():
        if _holds(Rule(action=rule.action, cidrs=(network,)), host, port):
            return f"its network {network} holds the address"
    if rule.lists and rules.in_lists(index, host):
        return f"{_files(rule)} the name"
    for first, last in rule.ports:
        if first <= port <= last:
            return (
                f"its port {first} is this one"
                if first == last
                else f"its ports {first}-{last} hold this one"
            )
    return f"it is about every port from 1 to {LAST_PORT} of every host"


def _holds(part: Rule, host: str, port: int) -> bool:
    return RuleSet([part], part.action).decide(host, port).index == 0


def _files(rule: Rule) -> str:
    if len(rule.lists) == 1:
        return f"its list {rule.lists[0].name} holds"
    return f"one of its {len(rule.lists)} lists holds"
