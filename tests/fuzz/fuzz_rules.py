"""Invariant: any list loads, any text is a part of a rule or a ConfigError, and what is read holds what it names."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import ConfigError
    from cryprq_proxy.rules.engine import RuleSet
    from cryprq_proxy.rules.lists import MAX_PROBLEMS, ListedNames
    from cryprq_proxy.rules.syntax import (
        Rule,
        RuleAction,
        Verdict,
        parse_action,
        parse_cidr,
        parse_domain,
        parse_label,
        parse_ports,
    )

BLOCK, TUNNEL = RuleAction(Verdict.BLOCK), RuleAction(Verdict.TUNNEL)


def lists(data: bytes) -> None:
    found = ListedNames()
    # A name that is held whatever else the file says, unless that is an exception.
    found.read(io.BytesIO(data + b"\n0.0.0.0 held.example\n"), Path("list"), 0, lambda _: None)
    found.seal([1])
    if len(found.problems) > MAX_PROBLEMS or found.broken < len(found.problems):
        raise RuntimeError("the problems have no bound")
    if not all(str(problem).isprintable() for problem in found.problems):
        raise RuntimeError("a problem would reach a terminal with control characters")
    if not found.mask("held.example") and b"@@" not in data:
        raise RuntimeError("a broken line hides the next one")


def parts(text: str) -> None:
    for parse in (parse_action, parse_label):
        try:
            parse(text)
        except ConfigError as error:
            shown(error)
    try:
        domain = parse_domain(text)
    except ConfigError as error:
        shown(error)
    else:
        if parse_domain(domain) != domain:
            raise RuntimeError(f"{domain!r} is not canonical")
        holds(Rule(action=BLOCK, domains=(domain,)), domain.removeprefix(".").replace("*", "x"), 443)
    try:
        network = parse_cidr(text)
    except ConfigError as error:
        shown(error)
    else:
        holds(Rule(action=BLOCK, cidrs=(network,)), str(network.network_address), 443)
    try:
        ports = parse_ports(text)
    except ConfigError as error:
        shown(error)
    else:
        holds(Rule(action=BLOCK, ports=(ports,)), "www.example", ports[0])


def shown(error: ConfigError) -> None:
    if not str(error).isprintable():
        raise RuntimeError(f"{str(error)!r} would reach a terminal")


def holds(rule: Rule, host: str, port: int) -> None:
    if RuleSet([rule], TUNNEL).decide(host, port).index:
        raise RuntimeError(f"{rule} does not hold {host}")


def fuzz(data: bytes) -> None:
    if data[:1] < b"\x80":
        lists(data[1:])
    else:
        text = data[1:].decode("utf-8", "surrogateescape")
        parts(text)
        RuleSet([Rule(action=BLOCK, domains=("*a*.b",))], TUNNEL).decide(text, len(text))


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
