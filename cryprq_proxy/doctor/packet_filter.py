"""What the rules of nftables do with a packet: whether a firewall of somebody else keeps clients out.

    `nft -j list ruleset` -> each base chain of the hook -> rule by rule -> DROPPED, SOME or PASSED

iptables-nft and the tools above it (ufw, firewalld) have their rules in nftables too. Of a rule that asks for what is
not known of the packet, as its sender, it is not known whether it matches: its `accept` lets some packets in, and its
`drop` is passed over. So DROPPED is said only where every packet is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

MOST_JUMPS: Final = 16
"""The kernel's own bound on chains that call chains."""
_OWN: Final = "cryprq"
"""How the tables of system-wide mode begin."""
_FAMILIES: Final = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
_VERSIONS: Final = {"ip": 4, "ip6": 6}
_TRANSPORTS: Final = frozenset({"tcp", "udp", "icmp", "icmpv6", "sctp", "dccp", "udplite", "esp", "ah"})


class Fate(StrEnum):
    """What becomes of a packet in a chain."""

    PASSED = "passed"
    SOME = "some"
    """It depends on what is not known of it."""
    DROPPED = "dropped"
    RETURNED = "returned"
    """The chain that has called this one goes on."""


class FirstPacket(NamedTuple):
    """The first one of a connection; `device` is where it comes in, empty for one that has no part in it."""

    version: int
    transport: str
    port: int
    device: str = ""


class Culprit(NamedTuple):
    """A base chain, and what it does with a packet."""

    family: str
    table: str
    chain: str
    fate: Fate


def culprit(ruleset: Sequence[Mapping[str, Any]], hook: str, packet: FirstPacket) -> Culprit | None:
    """The base chain of `hook` that drops `packet`, else one that drops some like it, else None."""
    found = None
    for item in ruleset:
        base = item.get("chain", {})
        if base.get("hook") != hook or base.get("type") != "filter":
            continue
        if packet.version not in _FAMILIES.get(base["family"], ()) or base["table"].startswith(_OWN):
            continue
        fate = _Walk(ruleset, base, packet).fate()
        if fate in (Fate.DROPPED, Fate.SOME) and (found is None or fate is Fate.DROPPED):
            found = Culprit(base["family"], base["table"], base["name"], fate)
    return found


class _Walk:
    """Of one packet, from a base chain on."""

    def __init__(
        self, ruleset: Sequence[Mapping[str, Any]], base: Mapping[str, Any], packet: FirstPacket
    ) -> None:
        self._base = base
        self._packet = packet
        self._rules: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
        for item in ruleset:
            rule = item.get("rule")
            if rule is not None and (rule["family"], rule["table"]) == (base["family"], base["table"]):
                self._rules.setdefault(rule["chain"], []).append(rule["expr"])
        self._some = False
        """Whether a rule that may match has accepted."""

    def fate(self) -> Fate:
        fate = self._chain(self._base["name"], 0)
        if fate is Fate.RETURNED:
            fate = Fate.DROPPED if self._base.get("policy") == "drop" else Fate.PASSED
        return Fate.SOME if fate is Fate.DROPPED and self._some else fate

    def _chain(self, name: str, depth: int) -> Fate:
        if depth > MOST_JUMPS:
            return Fate.RETURNED
        for expressions in self._rules.get(name, ()):
            fate = self._rule(expressions, depth)
            if fate is not None:
                return fate
        return Fate.RETURNED

    def _rule(self, expressions: Sequence[Mapping[str, Any]], depth: int) -> Fate | None:
        """Its end for the packet; None: the next rule follows."""
        sure = True
        for expression in expressions:
            [(kind, value)] = expression.items()
            if kind == "match":
                matches = matched(value, self._packet)
                if matches is False:
                    return None
                sure = sure and matches is not None
            elif kind in ("xt", "limit", "ct count"):
                sure = False
            elif kind == "vmap":
                return self._verdict_map(value, sure, depth)
            else:
                fate = self._verdict(kind, value, sure, depth)
                if fate is not None:
                    return fate
        return None

    def _verdict_map(self, value: Mapping[str, Any], sure: bool, depth: int) -> Fate | None:
        data = value.get("data")
        entries = data.get("set", ()) if isinstance(data, Mapping) else ()
        for key, verdict in (entry for entry in entries if isinstance(entry, list) and len(entry) == 2):
            matches = matched({"op": "==", "left": value["key"], "right": key}, self._packet)
            if matches is False:
                continue
            [(kind, target)] = verdict.items()
            fate = self._verdict(kind, target, sure and matches is True, depth)
            if fate is not None:
                return fate
        return None

    def _verdict(self, kind: str, value: Any, sure: bool, depth: int) -> Fate | None:
        if kind in ("accept", "queue"):
            self._some = self._some or not sure
            return Fate.PASSED if sure else None
        if kind in ("drop", "reject"):
            return Fate.DROPPED if sure else None
        if kind == "return":
            return Fate.RETURNED if sure else None
        if kind not in ("jump", "goto"):
            return None  # counter, log, mangle and others end nothing
        fate = self._chain(value["target"], depth + 1)
        if not sure:
            self._some = self._some or fate is Fate.PASSED
            return None
        return None if kind == "jump" and fate is Fate.RETURNED else fate


def matched(match: Mapping[str, Any], packet: FirstPacket) -> bool | None:
    """Whether `packet` matches; None if that depends on what is not known of it."""
    left = match["left"]
    if _asks_another(left, packet):
        return False
    known = _known(left, packet)
    if known is None:
        return None
    found = _among(known, match["right"])
    return not found if match["op"] == "!=" and found is not None else found


def _asks_another(left: Any, packet: FirstPacket) -> bool:
    """Whether the left side of a match asks for a header that the packet does not have: it never matches then."""
    if not isinstance(left, Mapping) or not isinstance(payload := left.get("payload"), Mapping):
        return False
    protocol = payload.get("protocol")
    if protocol in _TRANSPORTS:
        return bool(protocol != packet.transport)
    return protocol in _VERSIONS and _VERSIONS[protocol] != packet.version


def _known(left: Any, packet: FirstPacket) -> str | int | None:
    """The packet's value for the left side of a match."""
    if not isinstance(left, Mapping):
        return None
    [(kind, value)] = left.items()
    if not isinstance(value, Mapping):
        return None
    key = value.get("key") or value.get("field")
    if kind == "ct":
        return "new" if key == "state" else None
    if kind == "meta":
        # A device that is not known is at least not that of loopback, which `_among` asks for.
        device = packet.device or "?"
        known: dict[Any, str] = {"l4proto": packet.transport, "nfproto": f"ipv{packet.version}"}
        return (known | {"iifname": device, "iif": device}).get(key)
    if kind != "payload":
        return None
    protocol = value.get("protocol")
    if key == "dport" and protocol in (packet.transport, "th"):
        return packet.port
    return packet.transport if (protocol, key) in (("ip", "protocol"), ("ip6", "nexthdr")) else None


def _among(known: str | int, right: Any) -> bool | None:
    """Whether the right side of a match names `known`."""
    answers = [_is(known, each) for each in _values(right)]
    if True in answers:
        return True
    return None if None in answers else False


def _values(right: Any) -> Iterator[Any]:
    if isinstance(right, list):
        yield from right
    elif isinstance(right, Mapping) and isinstance(right.get("set"), list):
        yield from right["set"]
    else:
        yield right


def _is(known: str | int, value: Any) -> bool | None:
    if isinstance(value, Mapping) and isinstance(value.get("range"), list):
        low, high = value["range"]
        return isinstance(known, int) and low <= known <= high
    if isinstance(value, Mapping) or (isinstance(value, str) and value.startswith("@")):
        return None
    if known == "?":
        return False if value == "lo" else None
    return bool(known == value)
