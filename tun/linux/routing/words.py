"""Rules and routes in the words of ip(8), for people: from what the kernel is given by pyroute2."""

from __future__ import annotations

from collections.abc import Mapping
from socket import AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import Any, Final

from cryprq_proxy.errors import LocalError

from .networks import MAIN, UNICAST
from .route_rules import LOOKUP, UNREACHABLE

_PROTOCOLS: Final = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
_TABLES: Final = {MAIN: "main"}


def rule_words(command: str, arguments: Mapping[str, Any]) -> str:
    """`ip rule COMMAND ...` for the arguments of `AsyncIPRoute.rule`. Raises LocalError for one that has no words."""
    given = dict(arguments)
    words = [*_ip(given), "rule", command, "priority", str(given.pop("priority"))]
    if "dst" in given:
        words += ["to", f"{given.pop('dst')}/{given.pop('dst_len')}"]
    if "fwmark" in given:
        words += ["fwmark", f"{given.pop('fwmark'):#x}"]
    if "uid_range" in given:
        words += ["uidrange", given.pop("uid_range").replace(":", "-")]
    if "ip_proto" in given:
        first, _, last = given.pop("dport_range").partition(":")
        words += [
            "ipproto",
            _PROTOCOLS[given.pop("ip_proto")],
            "dport",
            first if first == last else f"{first}-{last}",
        ]
    action = given.pop("action")
    if action == LOOKUP:
        words += ["table", _table(given)]
    elif action == UNREACHABLE:
        words.append("unreachable")
    else:
        raise LocalError(f"no words for a routing rule of action {action}")
    words += ["protocol", str(given.pop("protocol"))]
    return _all_said(words, given)


def route_words(command: str, arguments: Mapping[str, Any], device: str) -> str:
    """`ip route COMMAND ...` for the arguments of `AsyncIPRoute.route`; `device` is that of `oif`. Raises LocalError
    for an argument that has no words."""
    given = dict(arguments)
    words = [*_ip(given), "route", command]
    if (kind := given.pop("type", UNICAST)) in (UNREACHABLE, "unreachable"):
        words.append("unreachable")
    elif kind != UNICAST:
        raise LocalError(f"no words for a route of kind {kind}")
    to = given.pop("dst")
    words.append("default" if to.endswith("/0") else to)
    if given.pop("oif", None) is not None:
        words += ["dev", device]
        if "scope" not in given and words[1] != "-6":
            # What the kernel is given; ip(8) would choose "link".
            words += ["scope", "global"]
    if "priority" in given:
        words += ["metric", str(given.pop("priority"))]
    words += ["table", _table(given), "protocol", str(given.pop("proto"))]
    return _all_said(words, given)


def _ip(given: dict[str, Any]) -> list[str]:
    return ["ip", "-6"] if given.pop("family") == AF_INET6 else ["ip"]


def _table(given: dict[str, Any]) -> str:
    table = given.pop("table")
    return _TABLES.get(table, str(table))


def _all_said(words: list[str], left: Mapping[str, Any]) -> str:
    if left:
        raise LocalError(f"no words for {', '.join(left)} of a rule or route")
    return " ".join(words)
