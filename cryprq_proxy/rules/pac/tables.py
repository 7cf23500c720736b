"""The rules of a PAC file, as tables that a browser searches quickly.

A browser asks only: direct, or to the proxy? So neighbouring rules with the same answer are one *group*. Groups are
numbered in the order of the rules, and alternate: even ones go to the proxy, odd ones are direct. The default ends the
last one. The first group with a rule that applies decides:

    to       block block | direct direct | tunnel exit:home | direct | (default) tunnel
    group          0     |        1      |        2         |   3    |     4

The group of a key (a domain, a wildcard, a network, "every host") depends on the port: *steps* are pairs of a first
port and the lowest group from there on. Many keys share their steps, so a key holds the number of its steps. The
decision takes the lowest group of all keys of the host, and is direct if that is odd.

A table may send too much to the proxy, never too little. It has no names of list files: a rule with lists that leads
to the proxy counts for every name, and the lists of a direct rule count for none. A key is left out if no direct one
can follow it. If room is short, rules are cut: the proxy, which knows all rules, gets what only those decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final, NamedTuple

from ..engine import RuleSet
from ..ranges import LAST_PORT, IPNetwork
from ..syntax import Rule, Verdict

type PortSteps = tuple[tuple[int, int], ...]
"""Pairs of a port and the group from that port on, ascending; the first port is 0."""

NOTHING: Final = 0
"""The number of the steps without effect: the default's group at every port."""


class Cut(NamedTuple):
    """The end of the rules in a PAC file: before key number `keys` of the rule with the index `rule`."""

    rule: int
    keys: int = 0


class Tables(NamedTuple):
    """The data of `FindProxyForURL`. The value of a key is an index into `steps`."""

    steps: list[PortSteps]
    names: dict[str, int]
    """Keys are "=NAME", ".NAME" (it and all below) and "*.NAME" (all below)."""
    wildcards: dict[str, int]
    """Other patterns with a star."""
    every_name: int
    """The steps for every name, the default included."""
    networks4: list[tuple[int, int]]
    """First addresses of ranges, ascending and without a gap from 0 on."""
    networks6: list[tuple[int, int]]
    every_address: int


def is_direct(rule: Rule) -> bool:
    return rule.action.verdict is Verdict.DIRECT


def key_count(rule: Rule) -> int:
    """The number of places at which a rule can be cut."""
    return len(rule.domains) + len(rule.cidrs) or 1


def cut_at(rules: RuleSet, keys: int) -> Cut:
    """The cut after the first `keys` keys of all rules."""
    for index, rule in enumerate(rules.rules):
        if keys < key_count(rule):
            return Cut(index, keys)
        keys -= key_count(rule)
    return Cut(len(rules.rules))


def before(rules: RuleSet, cut: Cut) -> Iterator[Rule]:
    """The rules before the cut. A rule that is itself cut is kept only if it is direct: after it comes the proxy."""
    yield from rules.rules[: cut.rule]
    if cut.keys and is_direct(rule := rules.rules[cut.rule]):
        domains = rule.domains[: cut.keys]
        cidrs = rule.cidrs[: cut.keys - len(domains)]
        yield Rule(action=rule.action, domains=domains, cidrs=cidrs, ports=rule.ports, lists=rule.lists)


def make_tables(rules: RuleSet, cut: Cut) -> Tables:
    """The tables of the rules before `cut`. If some are cut, all that is left open goes to the proxy."""
    whole = cut.rule == len(rules.rules)
    return _Maker(list(before(rules, cut)), whole and rules.default.verdict is Verdict.DIRECT).tables()


class _Maker:
    def __init__(self, rules: list[Rule], default: bool) -> None:
        self._rules = rules
        self._groups: list[int] = []
        group = 0
        for rule in rules:
            group += (group & 1) != is_direct(rule)
            self._groups.append(group)
        self._last = group + ((group & 1) != default)
        self._all: list[PortSteps] = []
        self._numbers: dict[PortSteps, int] = {}
        self._made: dict[tuple[tuple[int, ...], int], int] = {}
        self._add(((0, self._last),))

    def tables(self) -> Tables:
        names, wildcards, every_name = self._names()
        networks4, every_address = self._networks(4)
        networks6, _ = self._networks(6)
        return Tables(list(self._numbers), names, wildcards, every_name, networks4, networks6, every_address)

    # --- names ---

    def _names(self) -> tuple[dict[str, int], dict[str, int], int]:
        """Plain keys, wildcards, and the steps for every name."""
        plain: dict[str, list[int]] = {}
        wildcards: dict[str, list[int]] = {}
        every: list[int] = []
        for index, rule in enumerate(self._rules):
            if rule.any_host or "*" in rule.domains or (rule.lists and not is_direct(rule)):
                every.append(index)
                if not rule.ports:
                    break
                continue
            for domain in rule.domains:
                if "*" in domain.removeprefix("*."):
                    wildcards.setdefault(domain, []).append(index)
                else:
                    key = domain if domain[0] in ".*" else f"={domain}"
                    plain.setdefault(key, []).append(index)
        base = self._number(every)
        found = self._numbered(plain, base)
        patterns = self._numbered(wildcards, base)
        if not self._may_be_direct(base):
            direct = [key for key, number in found.items() if self._may_be_direct(number)]
            if not any(map(self._may_be_direct, patterns.values())):
                overlap = _Overlap(direct)
                found = {key: number for key, number in found.items() if overlap.meets(key)}
                patterns = patterns if direct else {}
        return found, patterns, base

    def _numbered(self, keys: dict[str, list[int]], base: int) -> dict[str, int]:
        """The steps of all keys that have an effect."""
        ceiling = self._ceiling(base)
        numbered = {key: self._number(rules, ceiling) for key, rules in keys.items()}
        return {key: number for key, number in numbered.items() if number != NOTHING}

    # --- addresses ---

    def _networks(self, version: int) -> tuple[list[tuple[int, int]], int]:
        """The ranges of one version, and the steps for every address."""
        rules_of: dict[IPNetwork, list[int]] = {}
        every: list[int] = []
        for index, rule in enumerate(self._rules):
            if rule.any_host:
                every.append(index)
                if not rule.ports:
                    break
            for network in rule.cidrs:
                if network.version == version:
                    rules_of.setdefault(network, []).append(index)
        base = self._number(every)
        return self._ranges(rules_of, base, (1 << (32 if version == 4 else 128)) - 1), base

    def _ranges(self, rules_of: dict[IPNetwork, list[int]], base: int, highest: int) -> list[tuple[int, int]]:
        """Networks nest or are disjoint, so one walk over their first addresses with a stack of open ones suffices."""
        ceiling, hopeful = self._ceiling(base), self._may_be_direct(base)
        found = [(0, NOTHING)]
        stack: list[tuple[int, list[int]]] = []

        def mark(start: int) -> None:
            number = self._number(sorted({index for _, rules in stack for index in rules}), ceiling)
            if not hopeful and not self._may_be_direct(number):
                number = NOTHING
            if found[-1][0] == start:
                found.pop()
            if not found or found[-1][1] != number:
                found.append((start, number))

        def close(until: int) -> None:
            while stack and stack[-1][0] < until:
                last, _ = stack.pop()
                if last < highest:
                    mark(last + 1)

        for network in sorted(rules_of, key=lambda network: (network.network_address, network.prefixlen)):
            close(int(network.network_address))
            stack.append((int(network.broadcast_address), rules_of[network]))
            mark(int(network.network_address))
        close(highest + 1)
        return found

    # --- steps ---

    def _number(self, rules: list[int], ceiling: int | None = None) -> int:
        """The number of the steps that these rules make together. Groups from `ceiling` on do not matter."""
        ceiling = self._last if ceiling is None else ceiling
        key = tuple(rules), ceiling
        if key not in self._made:
            steps = self._steps(rules, ceiling)
            useless = steps == ((0, ceiling),)
            self._made[key] = NOTHING if useless else self._add(steps)
        return self._made[key]

    def _ceiling(self, base: int) -> int:
        """The group from which on nothing matters, since a group for every host comes first."""
        steps = self._all[base]
        return steps[0][1] if len(steps) == 1 else self._last

    def _may_be_direct(self, number: int) -> bool:
        return any(group & 1 for _, group in self._all[number])

    def _add(self, steps: PortSteps) -> int:
        number = self._numbers.setdefault(steps, len(self._all))
        if number == len(self._all):
            self._all.append(steps)
        return number

    def _steps(self, rules: list[int], ceiling: int) -> PortSteps:
        ranges = sorted(
            (first, last, self._groups[index])
            for index in rules
            for first, last in self._rules[index].ports or ((0, LAST_PORT),)
            if self._groups[index] < ceiling
        )
        borders = {0, *(first for first, _, _ in ranges), *(last + 1 for _, last, _ in ranges)}
        steps: list[tuple[int, int]] = []
        open_ranges: list[tuple[int, int]] = []
        position = 0
        for port in sorted(borders - {LAST_PORT + 1}):
            while position < len(ranges) and ranges[position][0] <= port:
                _, last, group = ranges[position]
                heappush(open_ranges, (group, last))
                position += 1
            while open_ranges and open_ranges[0][1] < port:
                heappop(open_ranges)
            group = open_ranges[0][0] if open_ranges else ceiling
            if not steps or steps[-1][1] != group:
                steps.append((port, group))
        return tuple(steps)


class _Overlap:
    """Tells whether a key shares a name with any of some others."""

    def __init__(self, keys: list[str]) -> None:
        self._exact = {key[1:] for key in keys if key[0] == "="}
        self._below = {key.lstrip("*.") for key in keys if key[0] != "="}
        self._above = {parent for key in keys for parent in _parents(key.lstrip("*.="))}

    def meets(self, key: str) -> bool:
        name = key.lstrip("*.=")
        if key[0] != "=" and name in self._above:
            return True
        return name in self._exact or any(parent in self._below for parent in _parents(name))


def _parents(name: str) -> Iterator[str]:
    """The name itself, and its parent domains."""
    while name:
        yield name
        name = name.partition(".")[2]
