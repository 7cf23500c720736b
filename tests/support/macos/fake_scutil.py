"""scutil(8): the dynamic store by commands on its input, and what it lists with --dns and --nwi.

As the real one it says failures of a command on its output, goes on, and ends with 0.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from tests.support.macos import configd
from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.state import State, StoreValue

USAGE = """\
usage: scutil
\tinteractive access to the dynamic store.

   or: scutil --prefs [preference-file]
   or: scutil [-W] -r nodename
   or: scutil -w dynamic-store-key [ -t timeout ]
   or: scutil --get pref
   or: scutil --set pref [newval]
   or: scutil --dns
   or: scutil --proxy
   or: scutil --nwi
"""
_TYPES = {"*", "-", "?", "%", "#"}
_ARGUMENTS = {
    "list": range(2),
    "get": range(1, 2),
    "set": range(1, 2),
    "remove": range(1, 2),
    "show": range(1, 3),
    "d.init": range(1),
    "d.show": range(1),
    "d.remove": range(1, 2),
    "d.add": range(2, 102),
    "open": range(1),
    "close": range(1),
    "quit": range(1),
    "exit": range(1),
}
"""Command -> how many arguments it takes."""


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    match list(argv[1:]):
        case []:
            return Answer(0, Session(mac).read(stdin))
        case ["--dns"]:
            return Answer(0, dns(mac.read()))
        case ["--nwi"]:
            return Answer(0, nwi(mac.read()))
    return Answer(64, "", USAGE)


class Session:
    """One run with commands."""

    def __init__(self, mac: FakeMac) -> None:
        self._mac = mac
        self._value: dict[str, StoreValue] | None = None
        self._out: list[str] = []

    def read(self, stdin: str) -> str:
        for line in stdin.splitlines():
            words = shlex.split(line)
            if not words:
                continue
            if words[0] in ("quit", "exit"):
                break
            self._command(words[0], words[1:])
        return "".join(f"{line}\n" for line in self._out)

    def _command(self, name: str, arguments: list[str]) -> None:
        if name not in _ARGUMENTS:
            self._out.append(f'{name}: unknown, type "help" for command info')
            return
        if len(arguments) not in _ARGUMENTS[name]:
            self._out.append(
                f"{name}: "
                + ("too few arguments" if len(arguments) < _ARGUMENTS[name].start else "too many arguments")
            )
            return
        getattr(self, "_" + name.replace(".", "_"))(*arguments)

    def _open(self) -> None:
        pass

    _close = _open

    def _list(self, pattern: str = ".*") -> None:
        found = sorted(key for key in self._mac.read().store if re.fullmatch(pattern, key))
        self._out += [f"  subKey [{number}] = {key}" for number, key in enumerate(found)]
        if not found:
            self._out.append("  no keys.")

    def _get(self, key: str) -> None:
        found = self._mac.read().store.get(key)
        if found is None:
            self._out.append("  No such key")
        else:
            self._value = dict(found)

    def _show(self, key: str, pattern: str = "") -> None:
        assert not pattern, "a pattern is not understood here"
        found = self._mac.read().store.get(key)
        self._out += ["  No such key"] if found is None else shown(found)

    def _set(self, key: str) -> None:
        if self._value is None:
            self._out.append("  value not set")
        elif self._mac.uid:
            self._out.append("  Permission denied")
        else:
            with self._mac.change() as state:
                state.store[key] = dict(self._value)

    def _remove(self, key: str) -> None:
        if key not in self._mac.read().store:
            self._out.append("  No such key")
        elif self._mac.uid:
            self._out.append("  Permission denied")
        else:
            with self._mac.change() as state:
                state.store.pop(key, None)

    def _d_init(self) -> None:
        self._value = {}

    def _d_show(self) -> None:
        self._out += (
            ["d.show: dictionary must be initialized."] if self._value is None else shown(self._value)
        )

    def _d_remove(self, name: str) -> None:
        if self._value is None:
            self._out.append("d.remove: dictionary must be initialized.")
        else:
            self._value.pop(name, None)

    def _d_add(self, name: str, *words: str) -> None:
        if self._value is None:
            self._out.append("d.add: dictionary must be initialized.")
            return
        types: set[str] = set()
        rest = list(words)
        while rest and rest[0] in _TYPES:
            types.add(rest.pop(0))
        if "#" in types and not all(re.fullmatch(r"-?\d+", word) for word in rest):
            self._out.append("d.add: invalid number")
            return
        if "*" in types:
            self._value[name] = rest
        elif len(rest) == 1:
            self._value[name] = rest[0]
        else:
            self._out.append("d.add: too many values" if rest else "d.add: no values")


def shown(value: dict[str, StoreValue]) -> list[str]:
    """As CFDictionaries are described."""
    return ["<dictionary> {", *_entries(value, "  "), "}"]


def _entries(value: dict[str, StoreValue] | dict[str, str], indent: str) -> list[str]:
    lines = []
    for name in sorted(value):
        inner = value[name]
        if isinstance(inner, list):
            items = [f"{indent}  {number} : {item}" for number, item in enumerate(inner)]
            lines += [f"{indent}{name} : <array> {{", *items, f"{indent}}}"]
        elif isinstance(inner, dict):
            lines += [f"{indent}{name} : <dictionary> {{", *_entries(inner, indent + "  "), f"{indent}}}"]
        else:
            lines.append(f"{indent}{name} : {inner}")
    return lines


def resolvers(state: State) -> list[list[str]]:
    """The servers of the resolvers for all names, in the order in which mDNSResponder asks: supplemental ones for the
    empty domain by their order, then the primary service's."""
    supplemental = []
    for key, value in sorted(state.store.items()):
        if not re.fullmatch(r"State:/Network/Service/[^/]+/DNS", key):
            continue
        domains, orders = value.get("SupplementalMatchDomains", []), value.get("SupplementalMatchOrders", [])
        servers = value.get("ServerAddresses", [])
        if isinstance(domains, list) and "" in domains and isinstance(servers, list) and servers:
            place = domains.index("")
            order = int(orders[place]) if isinstance(orders, list) and len(orders) > place else 100_000
            supplemental.append((order, servers))
    found = [servers for _, servers in sorted(supplemental, key=lambda each: each[0])]
    primary = state.store.get("State:/Network/Global/DNS", {}).get("ServerAddresses", [])
    return [*found, *([primary] if isinstance(primary, list) and primary else [])]


def dns(state: State) -> str:
    primary = configd.primary_service(state)
    lines = ["DNS configuration", ""]
    number = 0
    for number, servers in enumerate(resolvers(state), 1):
        lines.append(f"resolver #{number}")
        lines += [f"  nameserver[{place}] : {server}" for place, server in enumerate(servers)]
        lines += ["  flags    : Request A records, Request AAAA records"]
        lines += ["  reach    : 0x00020002 (Reachable,Directly Reachable Address)", ""]
    for more, domain in enumerate(("local", "254.169.in-addr.arpa", "8.e.f.ip6.arpa")):
        lines += [
            f"resolver #{number + 1 + more}",
            f"  domain   : {domain}",
            "  options  : mdns",
            "  timeout  : 5",
        ]
        lines += [
            "  flags    : Request A records, Request AAAA records",
            "  reach    : 0x00000000 (Not Reachable)",
        ]
        lines += [f"  order    : {300_000 + 200 * more}", ""]
    lines += ["DNS configuration (for scoped queries)", ""]
    scoped = state.store.get("State:/Network/Global/DNS", {}).get("ServerAddresses", [])
    if primary is not None and scoped:
        interface = state.interface(primary.device)
        assert interface is not None
        lines.append("resolver #1")
        lines += [f"  nameserver[{place}] : {server}" for place, server in enumerate(scoped)]
        lines += [
            f"  if_index : {interface.index} ({interface.name})",
            "  flags    : Scoped, Request A records",
        ]
        lines += ["  reach    : 0x00020002 (Reachable,Directly Reachable Address)"]
    return "\n".join(lines) + "\n"


def nwi(state: State) -> str:
    primary = configd.primary_service(state)
    lines = ["Network information", "", "IPv4 network interface information"]
    if primary is None:
        lines.append("     No IPv4 states found")
    else:
        address = state.store[f"State:/Network/Service/{primary.identifier}/IPv4"]["Addresses"][0]  # type: ignore[index]
        lines += [f"{primary.device:>6} : flags      : 0x5 (IPv4,DNS)", f"         address    : {address}"]
        lines.append("         reach      : 0x00000002 (Reachable)")
    lines += [
        "",
        "   REACH : flags 0x00000002 (Reachable)"
        if primary
        else "   REACH : flags 0x00000000 (Not Reachable)",
    ]
    lines += ["", "IPv6 network interface information", "     No IPv6 states found", ""]
    lines.append("Network interfaces:" + (f" {primary.device}" if primary else ""))
    return "\n".join(lines) + "\n"
