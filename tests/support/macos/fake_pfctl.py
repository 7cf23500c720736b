"""pfctl(8) of macOS: rulesets, anchors, tables, states, and who needs pf enabled.

Not kept: `const` of tables, and counters. All are zero but how often the first rule of a ruleset was asked: a Mac is
never silent, so that is once for each interface in use by which a packet comes to it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.pf_grammar import Ruleset, parse
from tests.support.macos.pf_model import PfPacket, judge
from tests.support.macos.pf_reader import PfSyntaxError
from tests.support.macos.state import Anchor, Pf, PfState, State

NOISE = "No ALTQ support in kernel\nALTQ related functions disabled\n"
USE_OF_F = """\
pfctl: Use of -f option, could result in flushing of rules
present in the main ruleset added by the system at startup.
See /etc/pf.conf for further details.

"""
USAGE = """\
usage: pfctl [-AdeghmNnOqRrvz] [-a anchor] [-D macro= value] [-F modifier]
\t[-f file] [-i interface] [-K host | network] [-k host | network]
\t[-o level] [-p device] [-s modifier] [-t table -T command [address ...]]
\t[-x level]
"""
_WITH_VALUE = "aFfkstTX"
_ALONE = "eEdnqv"
_SHOWN = ("rules", "nat", "states", "info", "labels", "References", "Anchors", "Tables", "Interfaces")
_HERE = "here"
_FLUSHED = ("rules", "nat", "states", "Tables", "all")
NO_RULESET = "pfctl: DIOCGETRULES: Invalid argument\n"
NO_ANCHOR = "Anchor '{}' not found.\n"
NO_TABLES = "pfctl: Anchor or Ruleset does not exist.\n"
"""Each with the code 0: pfctl complains, and goes on."""


class PfctlError(Exception):
    """What pfctl complains about, with the code 1."""


@dataclass
class _Options:
    values: dict[str, str] = field(default_factory=dict)
    kills: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    rest: list[str] = field(default_factory=list)


def _options(words: Sequence[str]) -> _Options | None:
    found = _Options()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or len(word) < 2:
            found.rest.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _ALONE:
                found.flags.add(letter)
            elif letter in _WITH_VALUE:
                value = letters or (rest.pop(0) if rest else "")
                letters = ""
                if not value:
                    return None
                if letter == "k":
                    found.kills.append(value)
                elif letter in found.values:
                    return None
                else:
                    found.values[letter] = value
            else:
                return None
    if found.rest and "T" not in found.values:
        return None
    return found


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    options = _options(argv[1:])
    if options is None or not (options.values or options.flags or options.kills):
        return Answer(1, "", USAGE)
    if mac.uid:
        return Answer(1, "", "pfctl: /dev/pf: Permission denied\n")
    try:
        if "s" in options.values and not (options.flags - {"q", "v"}):
            read = mac.read()
            absent = _absent(read.pf, options)
            return Answer(0, "" if absent else _show(read, options), NOISE + absent)
        with mac.change() as state:
            out, err = _change(state, options, stdin)
        return Answer(0, out, NOISE + err)
    except (PfctlError, PfSyntaxError) as error:
        return Answer(1, "", f"{NOISE}{error}\n")


def _full(name: str, options: Sequence[str]) -> str:
    """A modifier, which may be shortened."""
    found = [each for each in options if each.startswith(name)]
    if len(found) != 1 and name not in found:
        raise PfctlError(USAGE.rstrip())
    return name if name in found else found[0]


# --- showing ---


def _absent(pf: Pf, options: _Options) -> str:
    """What is said of an anchor that is not there: nothing was ever loaded into it, or all has been flushed."""
    path = options.values.get("a", "")
    there = path in pf.anchors or any(each.startswith(f"{path}/") for each in pf.anchors)
    if not path or there or f'anchor "{path}"' in pf.main.rules + pf.main.nat:
        return ""
    match _full(options.values["s"], _SHOWN):
        case "rules" | "nat" | "labels":
            return NO_RULESET
        case "Anchors":
            return NO_ANCHOR.format(path)
    return ""


def _show(state: State, options: _Options) -> str:
    pf = state.pf
    path = options.values.get("a", "")
    anchor = pf.anchors.get(path, Anchor()) if path else pf.main
    match _full(options.values["s"], _SHOWN):
        case "rules":
            return anchor.rules
        case "nat":
            return anchor.nat
        case "labels":
            return _labels(state, path, anchor)
        case "Interfaces":
            return _interfaces(state, verbose="v" in options.flags)
        case "states":
            return "".join(f"{shown(each)}\n" for each in pf.states)
        case "info":
            return _info(pf)
        case "References":
            return _references(pf)
        case "Tables":
            return "".join(f"{name}\n" for name in sorted(anchor.tables))
        case _:
            return "".join(f"  {name}\n" for name in _anchors(pf, path, inner="v" in options.flags))


def _anchors(pf: Pf, path: str, *, inner: bool) -> list[str]:
    """Those directly below one, or with all that are in them, each behind the one that it is in."""
    begin = f"{path}/" if path else ""
    found = set()
    for each in pf.anchors:
        if each.startswith(begin):
            names = each.removeprefix(begin).split("/")
            found |= {tuple(names[:count]) for count in range(1, len(names) + 1 if inner else 2)}
    return [begin + "/".join(names) for names in sorted(found)]


def _labels(state: State, path: str, anchor: Anchor) -> str:
    rules = [rule for rule in _parsed(anchor).rules if not rule.kind.startswith(("scrub", "dummynet"))]
    asked = [_come_to(state, path), *(0 for _ in rules[1:])]
    return "".join(
        f"{rule.label} {times} 0 0 0 0 0 0\n" for rule, times in zip(rules, asked, strict=False) if rule.label
    )


def _come_to(state: State, path: str) -> int:
    """By how many interfaces a packet that leaves comes to a ruleset."""
    pf = copy.deepcopy(state.pf)
    there = Anchor(f'block drop quick all label "{_HERE}"\n')
    if path:
        pf.anchors[path] = there
    else:
        pf.main = there
    found = 0
    for interface in state.interfaces:
        own = next((each.address for each in interface.addresses if ":" not in each.address), "")
        if own and "UP" in interface.flags:
            to = own if interface.name == "lo0" else "192.0.2.1"
            packet = PfPacket("out", interface.name, ip_address(own), ip_address(to), "udp", 50000, 9, uid=0)
            found += judge(pf, packet).label == _HERE
    return found


def _interfaces(state: State, *, verbose: bool) -> str:
    skipped = state.pf.skipped if verbose else []
    names = [each.name for each in state.interfaces]
    return "".join(f"{name}{' (skip)' if name in skipped else ''}\n" for name in names)


def shown(state: PfState) -> str:
    """A state as `pfctl -s states` has it: this machine's end first."""

    def end(address: str, port: int) -> str:
        if not port:
            return address
        return f"{address}[{port}]" if ":" in address else f"{address}:{port}"

    source = end(state.source, state.source_port)
    destination = end(state.destination, state.destination_port)
    ends = f"{source} -> {destination}" if state.direction == "out" else f"{destination} <- {source}"
    words = "ESTABLISHED:ESTABLISHED" if state.proto == "tcp" else "MULTIPLE:MULTIPLE"
    return f"{state.interface} {state.proto} {ends}       {words}"


def _info(pf: Pf) -> str:
    status = "Enabled for 0 days 00:12:34" if pf.enabled else "Disabled"
    return f"""\
Status: {status:<44} Debug: Urgent

State Table                          Total             Rate
  current entries               {len(pf.states):>12}
  searches                          189230          250.6/s
  inserts                             1203            1.6/s
  removals                            1190            1.6/s
Counters
  match                              21530           28.5/s
"""


def _references(pf: Pf) -> str:
    if not pf.tokens:
        return "No pf starter references held\n"
    rows = [
        f"{4063 + number:<8} {program:<28} {token:<24} 0 days 00:03:31\n"
        for number, (token, program) in enumerate(pf.tokens.items())
    ]
    return "TOKENS:\nPID      Process Name                 TOKEN                    TIMESTAMP\n" + "".join(
        rows
    )


# --- changing ---


def _change(state: State, options: _Options, stdin: str) -> tuple[str, str]:
    """Returns what it says on both outputs."""
    pf, flags, values = state.pf, options.flags, options.values
    out, err = "", ""
    if "d" in flags:
        err += _disable(pf)
    if "X" in values:
        err += _release(pf, values["X"])
    if "F" in values:
        err += _flush(pf, values.get("a", ""), _full(values["F"], _FLUSHED))
    if options.kills:
        err += _kill(pf, options.kills)
    if "f" in values:
        err += USE_OF_F
        _load(state, values.get("a", ""), _text(state, values["f"], stdin), dry="n" in flags)
    if "T" in values:
        out += _table(pf, values.get("a", ""), values.get("t", ""), values["T"], options.rest)
    if "e" in flags:
        if pf.enabled:
            raise PfctlError("pfctl: pf already enabled")
        pf.enabled = pf.by_hand = True
        err += "pf enabled\n"
    if "E" in flags:
        token = str(pf.next_token)
        pf.next_token += 1
        pf.tokens[token] = "pfctl"
        pf.enabled = True
        err += f"pf enabled\nToken : {token}\n"
    return out, err


def _disable(pf: Pf) -> str:
    """Nobody is asked, and all tokens are void."""
    if not pf.enabled:
        raise PfctlError("pfctl: pf not enabled")
    pf.enabled = pf.by_hand = False
    pf.tokens.clear()
    return "pf disabled\n"


def _release(pf: Pf, token: str) -> str:
    if not token.isdecimal():
        raise PfctlError(USAGE.rstrip())
    if token not in pf.tokens:
        raise PfctlError("pfctl: Invalid token")
    del pf.tokens[token]
    if pf.tokens or pf.by_hand:
        return f"disable request successful. {len(pf.tokens)} more pf enable reference(s) remaining\n"
    pf.enabled = False
    return "pf disabled\n"


def _flush(pf: Pf, path: str, what: str) -> str:
    anchor = (pf.anchors.get(path) or Anchor()) if path else pf.main
    said = ""
    if what in ("nat", "all"):
        anchor.nat = ""
        said += "nat cleared\n"
    if what in ("rules", "all"):
        anchor.rules = ""
        said += "rules cleared\n"
    if what in ("Tables", "all"):
        gone = path and anchor == Anchor()
        said += NO_TABLES if gone else f"{len(anchor.tables)} tables deleted.\n"
        anchor.tables = {}
    if what in ("states", "all") and not path:
        said += f"{len(pf.states)} states cleared\n"
        pf.states = []
    if path and anchor == Anchor():
        # An empty ruleset that no rule names is forgotten.
        pf.anchors.pop(path, None)
    return said


def _kill(pf: Pf, hosts: Sequence[str]) -> str:
    if len(hosts) > 2:
        raise PfctlError(USAGE.rstrip())
    try:
        networks = [ip_network(host, strict=False) for host in hosts]
    except ValueError:
        raise PfctlError("pfctl: getaddrinfo: nodename nor servname provided, or not known") from None

    def killed(each: PfState) -> bool:
        ends = (ip_address(each.source), ip_address(each.destination))
        return all(end in network for end, network in zip(ends, networks, strict=False))

    before = len(pf.states)
    pf.states = [each for each in pf.states if not killed(each)]
    to = f" and {len(networks) - 1} destinations" if len(networks) > 1 else " and 0 destinations"
    return f"killed {before - len(pf.states)} states from 1 sources{to}\n"


def _text(state: State, path: str, stdin: str) -> str:
    if path == "-":
        return stdin
    if path not in state.files:
        raise PfctlError(f"pfctl: {path}: No such file or directory")
    return state.files[path]


def _load(state: State, path: str, text: str, *, dry: bool = False) -> None:
    try:
        found = parse(text)
    except PfSyntaxError as error:
        raise PfctlError(f"{error}\npfctl: Syntax error in config file: pf rules not loaded") from None
    if dry:
        return
    _put(state.pf, path, found)
    if not path:
        state.pf.skipped = found.skipped
    for name, file in found.loads:
        _load(state, f"{path}/{name}" if path else name, _text(state, file, ""))


def _put(pf: Pf, path: str, found: Ruleset) -> None:
    anchor = Anchor(
        "".join(f"{rule}\n" for rule in found.rules if not rule.kind.startswith("dummynet")),
        "".join(f"{rule}\n" for rule in found.nat),
        {name: list(members) for name, members in found.tables.items()},
    )
    if path:
        pf.anchors[path] = anchor
    else:
        pf.main = anchor


def _parsed(anchor: Anchor) -> Ruleset:
    return parse("".join(f"table <{name}>\n" for name in anchor.tables) + anchor.rules)


def _table(pf: Pf, path: str, name: str, command: str, addresses: Sequence[str]) -> str:
    anchor = pf.anchors.get(path) if path else pf.main
    if anchor is None or name not in anchor.tables:
        raise PfctlError("pfctl: Table does not exist.")
    members = anchor.tables[name]
    match command:
        case "show" if not addresses:
            return "".join(f"   {each}\n" for each in members)
        case "flush" if not addresses:
            anchor.tables[name] = []
        case "add" | "delete" if addresses:
            listed = [str(ip_network(address)) for address in addresses]
            kept = [each for each in members if each not in listed]
            anchor.tables[name] = kept + listed if command == "add" else kept
        case _:
            raise PfctlError(USAGE.rstrip())
    return ""
