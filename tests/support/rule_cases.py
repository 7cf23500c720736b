"""Rules and targets for the tests of everything that decides by rules, and a judge that is too simple to be wrong.

`cases` makes a large set from a seed: the names, addresses and ports of rules and targets come from so few that most
targets meet several rules. `judge` goes through the rules one by one as a person would. The proxy, the PAC file and
system-wide mode are all held against it. The strategies below do the same for hypothesis, with small sets.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from random import Random
from typing import NamedTuple

from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict

LABELS = (
    "a",
    "b",
    "ads",
    "ads1",
    "adserver",
    "www",
    "corp",
    "dev",
    "x-y",
    "intranet",
    "x_1",
    "xn--bcher-kva",
)
TOPS = ("example", "test", "example.com", "co.example", "org")
NETWORKS = (
    *(
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3/32",
        "192.0.2.0/24",
        "192.0.2.128/25",
    ),
    *("198.51.100.7/32", "203.0.113.0/24", "127.0.0.0/8", "169.254.0.0/16", "255.255.255.255/32"),
    *("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::1/128", "fd00::/8", "fe80::/10", "::1/128"),
)
_SMALL = tuple(text for text in NETWORKS if not text.endswith("/0"))
PORTS = (
    (1, 65535),
    (22, 22),
    (25, 25),
    (53, 53),
    (80, 80),
    (80, 443),
    (443, 443),
    (6000, 6100),
    (6050, 6200),
)
EXITS = ("home", "work")
ACTIONS = (
    *(RuleAction(Verdict.TUNNEL), RuleAction(Verdict.DIRECT), RuleAction(Verdict.BLOCK)),
    *(RuleAction(Verdict.EXIT, name) for name in EXITS),
)


class Listing(NamedTuple):
    """A rule list by what its lines say."""

    exact: frozenset[str] = frozenset()
    trees: frozenset[str] = frozenset()
    below: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def text(self) -> str:
        """The lines of a file that says this."""
        return "".join(
            [
                *(f"0.0.0.0 {name}\n" for name in sorted(self.exact)),
                *(
                    f"||{name}^\n" if number % 2 else f"{name}\n"
                    for number, name in enumerate(sorted(self.trees))
                ),
                *(f"*.{name}\n" for name in sorted(self.below)),
                *(f"@@||{name}^\n" for name in sorted(self.allowed)),
            ]
        )


class Cases(NamedTuple):
    """What `cases` makes."""

    rules: tuple[Rule, ...]
    default: RuleAction
    targets: tuple[Destination, ...]
    lists: Mapping[Path, Listing]


def cases(
    seed: int,
    rules: int,
    targets: int,
    directory: Path | None = None,
    *,
    actions: Sequence[RuleAction] = ACTIONS,
) -> Cases:
    """So many rules and targets, always the same ones for a seed.

    With a `directory`, every tenth rule or so has lists, whose files are written there; without one, no rule has.
    """
    random = Random(seed)
    pool = _Pool(random, (*LABELS, *(f"h{number}" for number in range(rules))), min(0.1, 2 / rules))
    lists = {} if directory is None else _lists(pool, directory)
    made = tuple(_rule(pool, actions, tuple(lists)) for _ in range(rules))
    asked = tuple(
        Destination(_host(pool, made), random.choice((22, 53, 80, 443, 6000, 6070, 6150, 8080, 65535)))
        for _ in range(targets)
    )
    return Cases(made, random.choice(actions), asked, lists)


def judge(rules: Sequence[Rule], host: str, port: int, lists: Mapping[Path, Listing] | None = None) -> int:
    """The index of the first rule that applies; -1 if none does."""
    address = _address(host)
    listed = functools.cache(functools.partial(_listed, host, lists or {}))
    for index, rule in enumerate(rules):
        if rule.ports and not any(first <= port <= last for first, last in rule.ports):
            continue
        if not (rule.domains or rule.cidrs or rule.lists):
            return index
        if address is not None:
            applies = any(address in network for network in rule.cidrs)
        else:
            applies = any(_matches(domain, host) for domain in rule.domains) or listed(rule.lists)
        if applies:
            return index
    return -1


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The address that rules compare; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _matches(domain: str, host: str) -> bool:
    if domain.startswith("."):
        return f".{host}".endswith(domain)
    return fnmatchcase(host, domain) if "*" in domain else host == domain


def _listed(host: str, lists: Mapping[Path, Listing], paths: tuple[Path, ...]) -> bool:
    """Whether a rule with the lists at `paths` is about `host`."""
    listings = [lists[path] for path in paths]
    if any(f".{host}".endswith(f".{name}") for listing in listings for name in listing.allowed):
        return False
    return any(
        host in listing.exact
        or any(f".{host}".endswith(f".{name}") for name in listing.trees)
        or any(host.endswith(f".{name}") for name in listing.below)
        for listing in listings
    )


# --- from a seed ---


class _Pool(NamedTuple):
    """What names are made of: the more rules, the more labels, or the first few rules would decide about all."""

    random: Random
    labels: Sequence[str]
    broad: float
    """How often a rule is one for very many names."""


def _name(pool: _Pool) -> str:
    random = pool.random
    labels = random.choices(pool.labels, k=random.choice((0, 1, 1, 1, 2, 2, 3)))
    return ".".join([*labels, random.choice(TOPS)])


def _specific(pool: _Pool) -> str:
    """A name that has not too many below it."""
    random = pool.random
    return _name(pool) if random.random() < pool.broad else f"{random.choice(pool.labels)}.{_name(pool)}"


def _domain(pool: _Pool) -> str:
    random = pool.random
    name = _specific(pool)
    match random.randrange(8):
        case 0 | 1 | 2:
            return name
        case 3 | 4:
            return f".{name}"
        case 5:
            return f"*.{name}"
        case 6:
            at = random.randrange(len(name))
            start = random.randrange(at + 1) if random.random() < pool.broad else max(at - 1, 0)
            pattern = f"{name[:start]}*{name[at:]}"
            return name if "." in (pattern[0], pattern[-1]) or ".." in pattern else pattern
        case _:
            return f"{random.choice(pool.labels)}*.{_name(pool)}"


def _rule(pool: _Pool, actions: Sequence[RuleAction], lists: Sequence[Path]) -> Rule:
    random = pool.random
    chance = random.random
    while True:
        rule = Rule(
            action=random.choice(actions),
            domains=tuple(_domain(pool) for _ in range(random.randrange(5))) if chance() < 0.7 else (),
            cidrs=tuple(map(ip_network, random.sample(NETWORKS, random.randrange(1, 4))))
            if chance() < 0.2
            else (),
            ports=tuple(random.sample(PORTS, random.randrange(1, 3))) if chance() < 0.25 else (),
            lists=tuple(random.sample(lists, 1)) if lists and chance() < 0.1 else (),
            name=f"number {random.randrange(1000)}" if chance() < 0.2 else "",
        )
        if not rule.any_host or (rule.ports and chance() < pool.broad / 2):
            return rule


def _host(pool: _Pool, rules: Sequence[Rule]) -> str:
    random = pool.random
    if random.random() < 0.3:
        return _name(pool)
    domains = random.choice(rules).domains
    if domains:  # one that this rule is about, or nearly
        name = random.choice(domains).replace("*", random.choice(("", "x", "x.y"))).strip(".")
        name = f"{random.choice(LABELS)}.{name}" if random.random() < 0.5 else name
        return name if random.random() < 0.8 else name.partition(".")[2]
    network = ip_network(random.choice(NETWORKS))
    offset = random.choice((0, 1, network.num_addresses - 1, random.randrange(network.num_addresses)))
    address = network.network_address + offset % network.num_addresses
    if address.version == 4 and random.random() < 0.2:
        return Destination(f"::ffff:{address}", 0).host
    return str(address)


def _lists(pool: _Pool, directory: Path) -> dict[Path, Listing]:
    found = {}
    for number in range(3):
        parts = [frozenset(_specific(pool) for _ in range(size)) for size in (8, 3, 3, 2)]
        path = directory / f"list{number}.txt"
        found[path] = Listing(*parts)
        path.write_text(found[path].text())
    return found


# --- for hypothesis ---

names = st.builds(
    lambda labels, top: ".".join([*labels, top]),
    st.lists(st.sampled_from(LABELS), max_size=3),
    st.sampled_from(TOPS),
)
"""Host names of which many are below others."""


def _with_stars(name: str, stars: list[int]) -> str:
    for at in sorted((at % (len(name) + 1) for at in stars), reverse=True):
        name = f"{name[:at]}*{name[at:]}"
    return name.replace("**", "*").replace("**", "*")


domains = st.one_of(
    names,
    names.map(lambda name: f".{name}"),
    names.map(lambda name: f"*.{name}"),
    st.builds(_with_stars, names, st.lists(st.integers(0, 60), min_size=1, max_size=3)),
)
"""Domains of a rule, all four kinds."""

networks = st.sampled_from(NETWORKS).map(ip_network)
addresses = st.builds(
    lambda network, offset: str(network.network_address + offset % network.num_addresses),
    networks,
    st.integers(0, 1 << 128) | st.just(-1),
)
hosts = st.one_of(names, names, addresses)
ports = st.sampled_from(
    sorted({port for pair in PORTS for each in pair for port in (each - 1, each, each + 1)} - {65536})
)
targets = st.builds(Destination, hosts, ports)

rules = st.builds(
    lambda action, domains, cidrs, ports, name: (
        Rule(
            action=action,
            domains=tuple(domains),
            cidrs=tuple(cidrs),
            ports=tuple(ports or [(1, 65535)]),
            name=name,
        )
        if not (domains or cidrs or ports)
        else Rule(action=action, domains=tuple(domains), cidrs=tuple(cidrs), ports=tuple(ports), name=name)
    ),
    st.sampled_from(ACTIONS),
    st.lists(domains, max_size=3),
    st.lists(networks, max_size=2),
    st.lists(st.sampled_from(PORTS), max_size=2),
    st.sampled_from(("", "", "the office")),
)
rule_sets = st.lists(rules, max_size=8).map(tuple)
"""A tuple of rules without lists."""
