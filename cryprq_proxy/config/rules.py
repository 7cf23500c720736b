"""The rules of a client's configuration: `default` and the [[rule]] tables of client.toml.

default = "tunnel"                        for all that no rule matches
[[rule]]
to = "direct"                             "tunnel", "direct", "block" or "exit:NAME"
domains = ["intranet.example", ".corp.example", "ad*.example"]
cidrs = ["10.0.0.0/8"]
ports = [22, "6000-6100"]
lists = ["ads.txt"]
name = "the office"

rules/syntax.py explains each key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

from msgspec import Struct

from ..errors import ConfigError
from ..rules.ranges import IPNetwork
from ..rules.syntax import (
    Rule,
    RuleAction,
    Verdict,
    parse_action,
    parse_cidr,
    parse_domain,
    parse_label,
    parse_ports,
    shown,
)
from .decode import Text, paths
from .faults import refuse

DEFAULT: Final = RuleAction(Verdict.TUNNEL)
ACTION: Final = Text(parse_action, 'a string: "tunnel", "direct", "block" or "exit:NAME"')
"""Annotates `to`, and `default` of the client."""
_DOMAINS: Final = Text(
    parse_domain, 'a list of names like "a.example", ".corp.example" or "ad*.example"', many=True
)
_CIDRS: Final = Text(parse_cidr, 'a list of networks or addresses like "10.0.0.0/8"', many=True)
_PORTS: Final = Text(parse_ports, 'a list of ports like 22 or "6000-6100"', many=True, integers=True)
_NAME: Final = Text(parse_label, 'a string like "the office"')


class RuleTable(Struct, frozen=True, kw_only=True):
    """One [[rule]]."""

    to: Annotated[RuleAction, ACTION]
    domains: Annotated[tuple[str, ...], _DOMAINS] = ()
    cidrs: Annotated[tuple[IPNetwork, ...], _CIDRS] = ()
    ports: Annotated[tuple[tuple[int, int], ...], _PORTS] = ()
    lists: Annotated[tuple[Path, ...], paths()] = ()
    name: Annotated[str, _NAME] = ""

    def __post_init__(self) -> None:
        if not (self.domains or self.cidrs or self.ports or self.lists):
            raise ConfigError(
                "expected at least one of domains, cidrs, ports and lists; default is for all other connections"
            )


def to_rules(tables: Sequence[RuleTable]) -> tuple[Rule, ...]:
    """The rules of the tables, in the form of rules/."""
    return tuple(
        Rule(
            action=table.to,
            domains=table.domains,
            cidrs=table.cidrs,
            ports=table.ports,
            lists=table.lists,
            name=table.name,
        )
        for table in tables
    )


def check_exits(rules: Sequence[Rule], default: RuleAction, names: Collection[str]) -> None:
    """Raise ConfigFaults if rules or the default name exits that are not in `names`."""
    refuse(_unknown_exits(rules, default, names))


def _unknown_exits(rules: Sequence[Rule], default: RuleAction, names: Collection[str]) -> Iterator[str]:
    for index, action in [*enumerate(rule.action for rule in rules), (-1, default)]:
        if action.verdict is Verdict.EXIT and action.exit not in names:
            known = f"the exits are {', '.join(sorted(names))}" if names else "no exit has a name"
            yield f'{shown(rules, index)}: there is no exit called "{action.exit}"; {known}'
