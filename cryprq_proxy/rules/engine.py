"""All rules together: one decision per connection, with any number of rules and of names in their lists.

Each rule is a bit, the first rule the lowest one. Names, networks and ports are each looked up once, in tables of masks
of such bits. The lowest bit in the masks of both host and port is the rule that decides.

    host   a dictionary of names, one of suffixes, patterns by the suffix they end in, hashes for lists;
           for an address literal one bisection
    port   one bisection
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..address import packed
from . import lists
from .lists import ListedNames, OpenList, ReadProgress
from .ranges import LAST_PORT, Steps, spans
from .syntax import Rule, RuleAction, Verdict, shown

_MAPPED: Final = bytes(10) + b"\xff\xff"


class Decision(NamedTuple):
    """The verdict about a connection, and its reason."""

    action: RuleAction
    rule: str
    """For people: the rule's name, "rule 3", or "default"."""
    index: int  # type: ignore[assignment]  # hides tuple.index
    """The index of the rule; -1 for the default."""


class RuleSet:
    """Rules, ready to decide. Immutable, so it can be replaced while others use it."""

    __slots__ = (
        "_any_host",
        "_below",
        "_decisions",
        "_names",
        "_patterns",
        "_ports",
        "_v4",
        "_v6",
        "default",
        "listed",
        "rules",
    )

    def __init__(
        self, rules: Sequence[Rule], default: RuleAction, listed: ListedNames = lists.NOTHING
    ) -> None:
        """`listed` are the names of the rules' lists, and the invalid lines; `load_rules` reads them."""
        self.rules = tuple(rules)
        self.default = default
        self.listed = listed
        self._decisions = [
            Decision(action, shown(self.rules, index), index)
            for index, action in [*enumerate(rule.action for rule in self.rules), (-1, default)]
        ]
        self._any_host = sum(bit for bit, rule in _bits(rules) if rule.any_host)
        self._names: dict[str, int] = {}
        self._below: dict[str, int] = {}
        patterns: dict[str, list[tuple[int, str]]] = {}
        for bit, rule in _bits(rules):
            for domain in rule.domains:
                self._add_domain(domain, bit, patterns)
        self._patterns = {ending: _Patterns(domains) for ending, domains in patterns.items()}
        self._v4 = Steps((bit, spans(rule.cidrs, 4)) for bit, rule in _bits(rules))
        self._v6 = Steps((bit, spans(rule.cidrs, 6)) for bit, rule in _bits(rules))
        self._ports = Steps((bit, rule.ports or ((0, LAST_PORT),)) for bit, rule in _bits(rules))

    def _add_domain(self, domain: str, bit: int, patterns: dict[str, list[tuple[int, str]]]) -> None:
        if domain.startswith("."):
            self._names[domain[1:]] = self._names.get(domain[1:], 0) | bit
            self._below[domain[1:]] = self._below.get(domain[1:], 0) | bit
        elif "*" not in domain:
            self._names[domain] = self._names.get(domain, 0) | bit
        elif domain.startswith("*.") and "*" not in domain[2:]:
            self._below[domain[2:]] = self._below.get(domain[2:], 0) | bit
        else:
            # A name needs the comparison only if it ends like the pattern. The text after the last star may begin
            # inside a label; only whole labels can be looked up.
            ending = domain.rpartition("*")[2].partition(".")[2]
            patterns.setdefault(ending, []).append((bit, domain))

    def decide(self, host: str, port: int) -> Decision:
        """The decision about a connection to `host`, canonical as in a `Destination`. Takes microseconds."""
        mask = (self._host(host) | self._any_host) & self._ports[port]
        return self._decisions[(mask & -mask).bit_length() - 1]

    def agrees(self, name: str, port: int, address: str) -> bool:
        """Whether the rule that decides about `name` has `address` in its own `cidrs`: whoever wrote it knew where the
        name leads. Never by default, and never by a rule that names no network."""
        index = self.decide(name, port).index
        return index >= 0 and bool(self._host(address) >> index & 1)

    def _host(self, host: str) -> int:
        """The rules whose domains, networks or lists hold `host`."""
        address = None
        if ":" in host or host[-1:].isdecimal():
            address = packed(host)
        if address is not None:
            if len(address) == 16 and address.startswith(_MAPPED):
                address = address[12:]
            return (self._v4 if len(address) == 4 else self._v6)[int.from_bytes(address)]
        found = self._names.get(host, 0)
        if self._below:
            dot = host.find(".")
            while dot >= 0:
                found |= self._below.get(host[dot + 1 :], 0)
                dot = host.find(".", dot + 1)
        if self._patterns:
            found |= self._matching(host)
        if self.listed:
            found |= self.listed.mask(host)
        return found

    def _matching(self, host: str) -> int:
        """The rules with a pattern that matches `host`."""
        found, ending = 0, host
        while True:
            if ending in self._patterns:
                found |= self._patterns[ending].mask(host)
            if not ending:
                return found
            ending = ending.partition(".")[2]

    def in_lists(self, index: int, host: str) -> bool:
        """Whether the lists of rule `index` hold the name `host`, and no exception of theirs does."""
        return bool(self.listed.mask(host) >> index & 1)


def _bits(rules: Sequence[Rule]) -> list[tuple[int, Rule]]:
    return [(1 << index, rule) for index, rule in enumerate(rules)]


class _Patterns:
    """Domains with * and the same end. One regular expression for all finds that none matches, the usual case."""

    __slots__ = ("_any", "_patterns")

    def __init__(self, domains: Sequence[tuple[int, str]]) -> None:
        self._patterns = [(bit, pattern(domain)) for bit, domain in domains]
        self._any = re.compile("|".join(one.pattern for _, one in self._patterns), re.DOTALL).fullmatch

    def mask(self, host: str) -> int:
        found = 0
        if self._any(host):
            for bit, one in self._patterns:
                if not found & bit and one.fullmatch(host):
                    found |= bit
        return found


def pattern(domain: str) -> re.Pattern[str]:
    """A domain with * as a regular expression for the whole name.

    The text between two stars is matched at its first place (atomic groups). That suffices to find a match, and the
    time depends only on the length of the name, not on the number of stars.
    """
    first, *middle, last = map(re.escape, domain.split("*"))
    return re.compile(first + "".join(f"(?>.*?{each})" for each in middle if each) + ".*" + last, re.DOTALL)


def load_rules(
    rules: Sequence[Rule],
    default: RuleAction,
    *,
    progress: ReadProgress = lists.unreported,
    opener: OpenList = lists.open_any,
) -> RuleSet:
    """Read the lists of all rules; takes a second or two for a million lines, so not on the event loop.

    `opener` opens them: a program that may run as root gives one that looks at whose they are (base/file_access.py).
    `progress` gets the bytes read so far and the total. Invalid lines are in `listed.problems`. Raises ConfigError for
    an unreadable list, and for more than `lists.MAX_NAMES` names in all of them.
    """
    masks: dict[Path, int] = {}
    for bit, rule in _bits(rules):
        for path in rule.lists:
            masks[path] = masks.get(path, 0) | bit
    if not masks:
        return RuleSet(rules, default)
    return RuleSet(rules, default, lists.load(list(masks), list(masks.values()), progress, opener))


EVERYTHING: Final = RuleSet((), RuleAction(Verdict.TUNNEL))
"""No rules: everything goes through the tunnel."""
