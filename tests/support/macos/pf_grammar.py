"""pf.conf(5), as far as this program and macOS itself write it: text -> rules, each in the form that pfctl prints.

A list in braces stands for one rule for each of its members, as pfctl expands it. What is not known is an error here,
also where the real pfctl would take it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from tests.support.macos.pf_reader import PfReader, PfSyntaxError, tokens_of
from tests.support.macos.pf_rule import Host, Network, PfRule, Range

ICMP_NAMES = {"echoreq": {"icmp": 8, "ipv6-icmp": 128}, "echorep": {"icmp": 0, "ipv6-icmp": 129}}
_PROTOCOLS = ("tcp", "udp", "icmp", "ipv6-icmp", "igmp")


@dataclass
class Ruleset:
    """What stands in a file: tables, translations, filter rules (scrub and anchors among them)."""

    tables: dict[str, list[str]] = field(default_factory=dict)
    nat: list[PfRule] = field(default_factory=list)
    rules: list[PfRule] = field(default_factory=list)
    loads: list[tuple[str, str]] = field(default_factory=list)
    """Anchor and file of each `load anchor`."""
    skipped: list[str] = field(default_factory=list)


def parse(text: str) -> Ruleset:
    """Raises PfSyntaxError with the line's number, as pfctl does: `stdin:3: syntax error`."""
    found = Ruleset()
    order = 0
    for number, line in enumerate(text.splitlines(), 1):
        try:
            tokens = tokens_of(line)
            if not tokens:
                continue
            rank = _statement(PfReader(tokens), found)
        except PfSyntaxError as error:
            raise PfSyntaxError(f"stdin:{number}: syntax error ({error}): {line}") from None
        if rank is None:
            continue
        if rank < order:
            raise PfSyntaxError(
                f"stdin:{number}: Rules must be in order: options, normalization, queueing, translation, filtering"
            )
        order = max(order, rank)
    for rule in [*found.rules, *found.nat]:
        for host in (rule.source, rule.destination):
            if host.text.startswith("<") and host.text[1:-1] not in found.tables:
                raise PfSyntaxError(f"the table {host.text} is not defined")
    return found


_RANKS = {"set": 1, "scrub": 2, "scrub-anchor": 2, "dummynet-anchor": 4}
_TRANSLATIONS = ("nat", "rdr", "nat-anchor", "rdr-anchor", "no")
_ANCHORS = ("anchor", "scrub-anchor", "nat-anchor", "rdr-anchor", "dummynet-anchor")


def _statement(reader: PfReader, found: Ruleset) -> int | None:
    """Returns the place of its type in the order that pf.conf(5) wants; None for what may stand anywhere."""
    kind = reader.take()
    if kind == "table":
        _table(reader, found)
        return None
    if kind == "set":
        reader.take("skip")
        reader.take("on")
        found.skipped.append(reader.word())
        return 1
    if kind == "load":
        reader.take("anchor")
        name = reader.string()
        reader.take("from")
        found.loads.append((name, reader.string()))
        return None
    if kind not in ("pass", "block", "scrub", "nat", "rdr", *_ANCHORS):
        raise PfSyntaxError(f"{kind} begins no statement")
    rules = list(_rules(kind, reader))
    if reader.next:
        raise PfSyntaxError(f"{reader.next} at the end")
    translation = kind in _TRANSLATIONS
    (found.nat if translation else found.rules).extend(rules)
    return _RANKS.get(kind, 4 if translation else 5)


def _table(reader: PfReader, found: Ruleset) -> None:
    name = reader.take()[1:-1]
    while reader.took("const", "persist"):
        pass
    members: list[str] = []
    if reader.took("{"):
        while not reader.took("}"):
            negated = "!" if reader.took("!") else ""
            members.append(negated + str(_network(reader.word())))
            reader.took(",")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", name) or name in found.tables:
        raise PfSyntaxError(f"the table {name}")
    found.tables[name] = members


def _network(text: str) -> Network:
    try:
        network = ip_network(text.partition("%")[0], strict=True)
    except ValueError:
        raise PfSyntaxError(f"{text} is no address") from None
    return network


def _host_text(text: str) -> str:
    network = _network(text)
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


def _listed[T](reader: PfReader, read: object) -> list[T]:
    """One, or those in braces."""
    if not reader.took("{"):
        return [read()]  # type: ignore[operator]
    members = []
    while not reader.took("}"):
        members.append(read())  # type: ignore[operator]
        reader.took(",")
    if not members:
        raise PfSyntaxError("an empty list")
    return members


def _rules(kind: str, reader: PfReader) -> Iterator[PfRule]:
    rule = PfRule(kind)
    if kind in ("nat", "rdr") and reader.took("pass"):
        rule = replace(rule, policy="pass")
    if kind in _ANCHORS:
        rule = replace(rule, anchor=reader.string())
    if kind == "block":
        rule = replace(rule, policy=reader.take() if reader.next in ("drop", "return") else "drop")
    if kind in ("pass", "block", "scrub", "anchor") and reader.next in ("in", "out"):
        rule = replace(rule, direction=reader.take())
    if kind in ("pass", "block", "anchor") and reader.took("quick"):
        rule = replace(rule, quick=True)
    if reader.took("on"):
        negated = reader.took("!")
        rule = replace(rule, interface=reader.word(), not_interface=negated)
    if kind == "pass" and reader.next in ("route-to", "reply-to"):
        rule = _route(rule, reader)
    if reader.next in ("inet", "inet6"):
        rule = replace(rule, family=reader.take())
    protocols = [""]
    if reader.took("proto"):
        protocols = _listed(reader, lambda: _protocol(reader))
    ends = _ends(reader)
    rule, users, kinds = _options(rule, reader)
    if reader.took("->"):
        rule = _target(rule, reader)
    elif kind in ("nat", "rdr"):
        raise PfSyntaxError("a translation into nothing")
    yield from _expanded(rule, protocols, ends, users, kinds)


def _route(rule: PfRule, reader: PfReader) -> PfRule:
    kind = reader.take()
    reader.take("(")
    interface, gateway = reader.word(), reader.word()
    reader.take(")")
    _network(gateway)
    if not rule.direction:
        raise PfSyntaxError(f"{kind} without a direction")
    return replace(rule, route=kind, route_interface=interface, route_gateway=gateway)


def _protocol(reader: PfReader) -> str:
    name = reader.take(*_PROTOCOLS, "icmp6")
    return "ipv6-icmp" if name == "icmp6" else name


type _End = tuple[Host, Range | None]


def _ends(reader: PfReader) -> list[tuple[_End, _End]]:
    if reader.took("all"):
        return [((Host(), None), (Host(), None))]
    sources: list[_End] = [(Host(), None)]
    destinations: list[_End] = [(Host(), None)]
    if reader.next not in ("from", "to"):
        return [(sources[0], destinations[0])]
    if reader.took("from"):
        sources = _end(reader)
    if reader.took("to"):
        destinations = _end(reader)
    return list(itertools.product(sources, destinations))


def _end(reader: PfReader) -> list[_End]:
    hosts: list[Host] = [Host()]
    if reader.next != "port":
        hosts = _listed(reader, lambda: _host(reader))
    ports: list[Range | None] = [None]
    if reader.took("port"):
        ports = _listed(reader, lambda: _range(reader, 0xFFFF))
    return list(itertools.product(hosts, ports))


def _host(reader: PfReader) -> Host:
    negated = reader.took("!")
    found = reader.take()
    if found == "any" and not negated:
        return Host()
    if found.startswith("<") and len(found) > 2:
        return Host(found, negated)
    return Host(_host_text(found), negated)


def _range(reader: PfReader, most: int) -> Range:
    if reader.next in ("=", "!=", ">=", "<=", ">", "<"):
        operator = reader.take()
        found = Range(operator, _number(reader.word(), most))
    else:
        first, colon, last = reader.word().partition(":")
        if colon:
            found = Range(":", _number(first, most), _number(last, most))
        elif reader.next in ("<>", "><"):
            found = Range(reader.take(), _number(first, most), _number(reader.word(), most))
        else:
            found = Range("=", _number(first, most))
    return found


def _number(text: str, most: int) -> int:
    if not text.isdecimal() or int(text) > most:
        raise PfSyntaxError(f"{text} is no number up to {most}")
    return int(text)


def _options(rule: PfRule, reader: PfReader) -> tuple[PfRule, list[Range | None], list[str]]:
    users: list[Range | None] = [None]
    kinds = [""]
    while reader.next and reader.next != "->":
        word = reader.take()
        if word == "user":
            users = _listed(reader, lambda: _user(reader))
        elif word in ("icmp-type", "icmp6-type"):
            kinds = _listed(reader, lambda: _icmp(reader))
        elif rule.kind.startswith("scrub"):
            rule = replace(rule, scrub=(*rule.scrub, word, *(() if word in _ALONE else (reader.word(),))))
        else:
            rule = _option(rule, word, reader)
    if rule.kind == "pass" and not rule.state:
        rule = replace(rule, state="keep")
    if rule.kind.startswith("scrub") and "fragment" not in rule.scrub:
        rule = replace(rule, scrub=(*rule.scrub, "fragment", "reassemble"))
    if set(rule.scrub[::2]) - {"fragment", "max-mss", *_ALONE} and not set(rule.scrub) & set(_ALONE):
        raise PfSyntaxError(f"the options {rule.scrub}")
    return rule, users, kinds


_ALONE = ("no-df", "random-id")


def _option(rule: PfRule, word: str, reader: PfReader) -> PfRule:
    match word:
        case "flags":
            rule = replace(rule, flags=reader.word())
            if not re.fullmatch(r"any|[FSRPAUEW]*/[FSRPAUEW]+", rule.flags):
                raise PfSyntaxError(f"flags {rule.flags}")
        case "tagged":
            rule = replace(rule, tagged=reader.word())
        case "tag":
            rule = replace(rule, tag=reader.word())
        case "label":
            rule = replace(rule, label=reader.string())
            if len(rule.label) > 63:
                raise PfSyntaxError("a label of more than 63 letters")
        case "allow-opts" if rule.kind == "pass":
            rule = replace(rule, allow_opts=True)
        case "no" | "keep" if rule.kind == "pass":
            reader.take("state")
            rule = replace(rule, state=word, state_options=_state_options(reader, word))
        case _:
            raise PfSyntaxError(f"the option {word}")
    return rule


def _user(reader: PfReader) -> Range:
    if reader.took("root"):
        return Range("=", 0)
    return _range(reader, 0xFFFFFFFE)


def _icmp(reader: PfReader) -> str:
    name = reader.word()
    return name if name in ICMP_NAMES else str(_number(name, 255))


def _state_options(reader: PfReader, state: str) -> tuple[str, ...]:
    options: list[str] = []
    if state == "keep" and reader.took("("):
        while not reader.took(")"):
            options.append(reader.take("if-bound", "floating", "sloppy"))
            reader.took(",")
    return tuple(options)


def _target(rule: PfRule, reader: PfReader) -> PfRule:
    if rule.kind not in ("nat", "rdr"):
        raise PfSyntaxError("an arrow in a rule that translates nothing")
    if reader.took("("):
        target = f"({reader.word()})"
        reader.take(")")
    else:
        target = _host_text(reader.word())
    port = str(_number(reader.word(), 0xFFFF)) if reader.took("port") else ""
    return replace(rule, target=target, target_port=port)


def _expanded(
    rule: PfRule,
    protocols: list[str],
    ends: list[tuple[_End, _End]],
    users: list[Range | None],
    kinds: list[str],
) -> Iterator[PfRule]:
    made = False
    for proto, (source, destination), user, kind in itertools.product(protocols, ends, users, kinds):
        _check(rule, proto, source, destination, user, kind)
        families = {rule.family} if rule.family else set[str]()
        for host in (source[0], destination[0]):
            if host.network is not None:
                families.add("inet" if host.network.version == 4 else "inet6")
        for address in (rule.route_gateway, rule.target):
            if address and not address.startswith("("):
                families.add("inet6" if ":" in address else "inet")
        if len(families) > 1:
            # A mixed list: pfctl drops what cannot be.
            continue
        made = True
        flags = rule.flags
        if rule.kind == "pass" and rule.state == "keep" and proto in ("", "tcp") and not flags:
            flags = "S/SA"
        yield replace(
            rule,
            family=families.pop() if families else "",
            proto=proto,
            source=source[0],
            source_port=source[1],
            destination=destination[0],
            destination_port=destination[1],
            user=user,
            icmp_type=str(ICMP_NAMES[kind][proto]) if kind in ICMP_NAMES else kind,
            flags=flags,
        )
    if not made:
        raise PfSyntaxError("rule expands to no valid combination")


def _check(rule: PfRule, proto: str, source: _End, destination: _End, user: Range | None, kind: str) -> None:
    if (source[1] or destination[1]) and proto not in ("tcp", "udp"):
        raise PfSyntaxError("port only applies to tcp/udp")
    if user and proto not in ("tcp", "udp"):
        raise PfSyntaxError("user/group only applies to tcp/udp")
    if user and rule.kind not in ("pass", "block"):
        raise PfSyntaxError("a translation cannot match a user")
    if kind and proto not in ("icmp", "ipv6-icmp"):
        raise PfSyntaxError("icmp-type only applies to icmp")
    if proto in ("icmp", "ipv6-icmp") and kind and rule.family != ("inet" if proto == "icmp" else "inet6"):
        raise PfSyntaxError("must indicate address family with icmp-type/code")
    if rule.flags and proto not in ("", "tcp"):
        raise PfSyntaxError("flags only apply to tcp")
