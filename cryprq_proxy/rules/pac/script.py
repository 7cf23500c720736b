"""The PAC file: the rules for a browser, so that direct connections do not pass the proxy.

`FindProxyForURL` answers DIRECT only if the tables of tables.py are certain. All else goes to the proxy, which applies
the same rules: names of list files, blocked targets (the proxy answers with a page that names the rule), rules that do
not fit into the file, and unusual URLs.

    PROXY 127.0.0.1:1080; SOCKS5 127.0.0.1:1080

Both are the same port. PROXY comes first, since a browser never resolves a name before it asks an HTTP proxy. With
SOCKS5 that depends on the browser and its version (Firefox has a setting). Only with PROXY do browsers ask for a
password and show the page for blocked targets. SOCKS5 is for programs without PROXY. There is no DIRECT at the end:
without the proxy, nothing goes past it. The function never throws, as Chromium would then connect directly. It resolves
no names, as that would show them to the local resolver.

The script is ES5, for every engine. A look-up is a few hashes and bisections for any number of rules. Browsers refuse
big files, so rules are cut from the end above `MAX_SIZE`. Without rules a file always fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from itertools import groupby
from typing import Final

from ...address import OWN_NAME, Destination, packed
from ..engine import RuleSet, pattern
from ..syntax import Rule, RuleAction, Verdict, shown
from .tables import Cut, Tables, before, cut_at, is_direct, key_count, make_tables

PAC_TYPE: Final = "application/x-ns-proxy-autoconfig"
MAX_SIZE: Final = 256 << 10
"""Bytes; Firefox takes no more, Chromium 1 MiB."""
MAX_WILDCARDS: Final = 250
"""Patterns, compared one by one; a look-up must take less than a millisecond."""
_HEAD: Final = 2048
"""Bytes for the addresses of the proxy and the comments before them."""

_SCRIPT: Final = r"""
function put(number, keys) {
  keys = keys.split(" ");
  for (var i = 0; i < keys.length; i++) NAMES[keys[i]] = number;
}

// The last of the sorted firsts that is not above the value.
function bisect(firsts, value) {
  var low = 0, high = firsts.length - 1, middle;
  while (low < high) {
    middle = (low + high + 1) >> 1;
    if (firsts[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

function lower(group, number, port) {
  var found = GROUPS[number][bisect(PORTS[number], port)];
  return found < group ? found : group;
}

function lowerByKey(group, key, port) {
  var number = NAMES[key];
  return number === undefined ? group : lower(group, number, port);
}

// Each part between two stars is taken where it comes first, which is enough to find a match.
function matches(name, parts) {
  var at = parts[0].length, end = name.length - parts[parts.length - 1].length, i;
  if (name.substring(0, at) !== parts[0] || name.substring(end) !== parts[parts.length - 1]) return false;
  for (i = 1; i < parts.length - 1; i++) {
    at = name.indexOf(parts[i], at);
    if (at < 0) return false;
    at += parts[i].length;
  }
  return at <= end;
}

function ofName(name, port) {
  var group = lower(lowerByKey(DEFAULT, "=" + name, port), EVERY_NAME, port);
  var rest = "." + name, dot = 0, i;
  do {
    rest = rest.substring(dot);
    group = lowerByKey(group, rest, port);
    if (rest.length <= name.length) group = lowerByKey(group, "*" + rest, port);
    dot = rest.indexOf(".", 1);
  } while (dot > 0);
  for (i = 0; i < WILDCARDS.length; i++)
    if (matches(name, WILDCARDS[i])) group = lower(group, WILDCARD_NUMBERS[i], port);
  return group;
}

function ofAddress(firsts, numbers, value, port) {
  return lower(lower(DEFAULT, numbers[bisect(firsts, value)], port), EVERY_ADDRESS, port);
}

// Four numbers without leading zeros, as one; -1 for anything else.
function parse4(text) {
  var match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text), value = 0, i;
  if (!match) return -1;
  for (i = 1; i < 5; i++) {
    if (match[i] > 255 || match[i] !== String(+match[i])) return -1;
    value = value * 256 + +match[i];
  }
  return value;
}

// 32 hexadecimal digits, which sort as the addresses do; "" for what is none.
function parse6(text) {
  var tail = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text), halves, groups = [], value = "", i, j, part;
  if (tail) {
    value = parse4(tail[2]);
    if (value < 0) return "";
    text = tail[1] + Math.floor(value / 65536).toString(16) + ":" + (value % 65536).toString(16);
    value = "";
  }
  halves = text.split("::");
  if (halves.length > 2) return "";
  for (i = 0; i < halves.length; i++) {
    part = halves[i] === "" ? [] : halves[i].split(":");
    for (j = 0; j < part.length; j++)
      if (!/^[0-9a-f]{1,4}$/.test(part[j])) return "";
    groups.push(part);
  }
  i = 8 - groups[0].length - (groups[1] || []).length;
  if (halves.length === 2 ? i < 1 : i !== 0) return "";
  while (i-- > 0) groups[0].push("0");
  groups = groups[0].concat(groups[1] || []);
  for (i = 0; i < 8; i++) value += ("000" + groups[i]).slice(-4);
  return value;
}

function plain(host) {
  host = String(host).toLowerCase().replace(/\.$/, "");
  return host.charAt(0) === "[" && host.slice(-1) === "]" ? host.slice(1, -1) : host;
}

// Scheme, user, host and port.
var URL_PARTS =
  /^([a-z]+:)\/\/(?:[^\/?#\\\s]*@)?(\[[0-9a-f.]*:[0-9a-f:.]*\]|[a-z0-9_.-]+)(?::(\d*))?(?:[\/?#]|$)/i;
var SCHEMES = {"http:": 80, "ws:": 80, "https:": 443, "wss:": 443, "ftp:": 21};

function groupOf(url, host) {
  var match = URL_PARTS.exec(url), port, name, value;
  if (!match) return 0;
  port = match[3] ? +match[3] : SCHEMES[match[1].toLowerCase()];
  name = plain(match[2]);
  if (!(port >= 0 && port <= 65535) || name !== plain(host) || name === OWN_NAME) return 0;
  if (name.indexOf(":") >= 0) {
    value = parse6(name);
    if (!value) return 0;
    if (value.substring(0, 24) !== "00000000000000000000ffff") return ofAddress(FIRST6, NUMBER6, value, port);
    return ofAddress(FIRST4, NUMBER4, parseInt(value.substring(24), 16), port);
  }
  value = parse4(name);
  if (value >= 0) return ofAddress(FIRST4, NUMBER4, value, port);
  if (name.length > 253 || !/^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/.test(name)) return 0;
  if (/(^|\.)(\d+|0x[0-9a-f]*)$/.test(name)) return 0;
  return ofName(name, port);
}

function FindProxyForURL(url, host) {
  try {
    return groupOf(url, host) % 2 === 1 ? "DIRECT" : PROXY;
  } catch (error) {
    return PROXY;
  }
}
"""


def pac(rules: RuleSet, socks: Destination, http: Destination) -> str:
    """The PAC file for a proxy that speaks SOCKS5 at `socks` and HTTP at `http`: ASCII, at most `MAX_SIZE`.

    Equal rules and addresses make equal text. Takes milliseconds, and up to a second for rules that do not fit.
    """
    tables, cut = _fit(rules)
    return _render(tables, rules, cut, f"PROXY {http}; SOCKS5 {socks}")


def _fit(rules: RuleSet) -> tuple[Tables, Cut]:
    """The tables of as many rules, from the first on, as fit into a file, to about a hundredth of it."""
    cut = Cut(len(rules.rules))
    tables = make_tables(rules, cut)
    full = _fullness(tables)
    if full <= 1:
        return tables, cut
    low, low_full, high, high_full = 0, 0.0, sum(map(key_count, rules.rules)), full
    best = make_tables(rules, Cut(0)), Cut(0)
    guess = True
    while high - low > 1 and low_full < 0.99:
        # The cut of a full file if all keys had one size; every second time the middle, as they have not.
        share = (0.995 - low_full) / (high_full - low_full) if guess else 0.5
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        guess = not guess
        cut = cut_at(rules, middle)
        tables = make_tables(rules, cut)
        full = _fullness(tables)
        if full <= 1:
            low, low_full, best = middle, full, (tables, cut)
        else:
            high, high_full = middle, full
    return best


def _fullness(tables: Tables) -> float:
    """The used part of a file's room; above 1 is too much."""
    size = sum(len(line) + 1 for line in _data(tables))
    return max(size / (MAX_SIZE - _HEAD - len(_SCRIPT)), len(tables.wildcards) / MAX_WILDCARDS)


def _render(tables: Tables, rules: RuleSet, cut: Cut, proxy: str) -> str:
    lines = [
        f"// Made by cryprq-proxy from its rules ({len(rules.rules)}).",
        "// Only what is certainly direct goes past the proxy; it applies the same rules to all the rest.",
    ]
    if cut.rule < len(rules.rules):
        lines.append(f"// This file holds no more: from rule {cut.rule + 1} on, the proxy alone decides.")
    lines.append(f"var PROXY = {json.dumps(proxy)}, OWN_NAME = {json.dumps(OWN_NAME)};")
    return "\n".join([*lines, *_data(tables)]) + "\n" + _SCRIPT


def _data(tables: Tables) -> Iterable[str]:
    """The tables in JavaScript. Names and patterns are of letters, digits and "-_.*=": nothing needs quoting."""
    yield f"var PORTS = {_json([[port for port, _ in steps] for steps in tables.steps])};"
    yield f"var GROUPS = {_json([[group for _, group in steps] for steps in tables.steps])};"
    yield f"var DEFAULT = {tables.steps[0][0][1]}, EVERY_NAME = {tables.every_name};"
    yield f"var EVERY_ADDRESS = {tables.every_address}, NAMES = {{}};"
    yield f"var WILDCARDS = {_json([key.split('*') for key in tables.wildcards])};"
    yield f"var WILDCARD_NUMBERS = {_json(list(tables.wildcards.values()))};"
    firsts4, numbers4 = zip(*tables.networks4, strict=True)
    yield f"var FIRST4 = {_json(firsts4)}, NUMBER4 = {_json(numbers4)};"
    firsts6, numbers6 = zip(*tables.networks6, strict=True)
    # Without the zeros at the end they sort the same.
    short = " ".join(f"{first:032x}".rstrip("0") for first in firsts6)
    yield f'var FIRST6 = "{short}".split(" "), NUMBER6 = {_json(numbers6)};'
    for number, keys in groupby(sorted(tables.names, key=tables.names.__getitem__), tables.names.__getitem__):
        yield f'put({number}, "{" ".join(keys)}");'


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- in words ---


def explain(rules: RuleSet, host: str, port: int) -> str:
    """One sentence: the PAC file's answer for `host` (canonical, as in a `Destination`), and its rule."""
    if host == OWN_NAME:
        return "the PAC file sends it to the proxy, which answers itself"
    _, cut = _fit(rules)
    name = packed(host) is None
    doubt = ""
    for index, rule in enumerate(before(rules, cut)):
        label = shown(rules.rules, index)
        if rule.ports and not any(first <= port <= last for first, last in rule.ports):
            continue
        if _applies(rule, host):
            return _sentence(rule.action, label, doubt)
        if rule.lists and name:
            reason = f"the PAC file sends it to the proxy, because only the proxy knows the lists of {label}"
            if not is_direct(rule):
                return doubt or reason
            doubt = doubt or reason
    if cut.rule < len(rules.rules):
        label = shown(rules.rules, cut.rule)
        return doubt or f"the PAC file sends it to the proxy, because it holds no rules from {label} on"
    return _sentence(rules.default, "default", doubt)


def _applies(rule: Rule, host: str) -> bool:
    """Whether the host part matches, without its lists."""
    if rule.any_host:
        return True
    address = packed(host)
    if address is None:
        return any(_matches(domain, host) for domain in rule.domains)
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return any((mapped or parsed) in network for network in rule.cidrs)


def _matches(domain: str, name: str) -> bool:
    if "*" in domain:
        return pattern(domain).fullmatch(name) is not None
    return name == domain.removeprefix(".") or (domain[0] == "." and name.endswith(domain))


def _sentence(action: RuleAction, label: str, doubt: str) -> str:
    """`doubt` says why it may be otherwise; it does not matter if the answer is the same."""
    by = "by default" if label == "default" else f"by {label}"
    if action.verdict is Verdict.DIRECT:
        return f"the PAC file says DIRECT, {by}"
    return doubt or f"the PAC file sends it to the proxy, {by}"
