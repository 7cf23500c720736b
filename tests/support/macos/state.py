"""What the fake Mac holds: plain data, and the same as JSON.

Each of its programs reads and changes this, as the real ones change their kernel or configd. Addresses and prefixes are
texts in the form of `ipaddress`, link-local ones without a zone: the interface stands beside them.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any

type StoreValue = str | list[str] | dict[str, str]
"""What a key's dictionary in the dynamic store holds for one name; numbers stand as their text."""


@dataclass
class Address:
    address: str
    prefix: int
    peer: str = ""
    """The far end of a point-to-point interface."""
    broadcast: str = ""
    flags: list[str] = field(default_factory=list)
    """As ifconfig names them behind an inet6 address: autoconf, secured, temporary, dynamic ..."""


@dataclass
class Interface:
    name: str
    index: int
    flags: list[str]
    """UP, BROADCAST, POINTOPOINT ..., in the order in which ifconfig shows them."""
    mtu: int = 1500
    ether: str = ""
    addresses: list[Address] = field(default_factory=list)
    status: str = ""
    """active or inactive; empty for what has no medium."""
    owner: str = "system"
    """Who made it: `system`, or for a utun of a control socket what the maker called itself."""


@dataclass
class Route:
    destination: str
    """A prefix: 0.0.0.0/0 is the default, a host has /32 or /128 and the letter H."""
    gateway: str
    """An address (link-local: with its zone), link#INDEX, or a link-layer address."""
    interface: str
    flags: str
    """Letters of netstat(1): U up, G gateway, H host, S static, R reject, B blackhole, C/c cloning, L link, W cloned,
    I bound to its interface's scope, g global, i, m, r, b."""
    expire: str = ""
    source: str = ""
    """The address of its interface that packets get which go by it; netstat does not show it."""


@dataclass
class Anchor:
    """One ruleset of pf, as it was loaded: texts of pf.conf(5), a rule a line, in the order in which they stand."""

    rules: str = ""
    """scrub, anchor and filter rules."""
    nat: str = ""
    """nat, rdr and their anchors."""
    tables: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class PfState:
    """One entry of pf's state table."""

    interface: str
    proto: str
    direction: str
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    ruleset: str = ""
    """The anchor whose rule made it; empty for the main ruleset."""


@dataclass
class Pf:
    enabled: bool = False
    by_hand: bool = False
    """Enabled by `pfctl -e`, which counts no reference."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Token of `pfctl -E` -> the name of the process that has it."""
    next_token: int = 9_000_000_001
    main: Anchor = field(default_factory=Anchor)
    anchors: dict[str, Anchor] = field(default_factory=dict)
    """Full path, as com.apple/200.AirDrop, -> ruleset."""
    states: list[PfState] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Interfaces of `set skip on`."""


@dataclass
class Proxy:
    enabled: bool = False
    server: str = ""
    port: int = 0
    authenticated: bool = False


@dataclass
class Service:
    """A network service, as networksetup lists them."""

    name: str
    identifier: str
    """Its UUID in the keys of the dynamic store."""
    device: str
    port: str
    """The hardware port's name."""
    enabled: bool = True
    dns: list[str] = field(default_factory=list)
    """Set by hand; empty: DHCP's."""
    search: list[str] = field(default_factory=list)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    """web, secureweb, socksfirewall -> its proxy."""
    autoproxy: Proxy = field(default_factory=Proxy)
    """`server` is the address of the PAC file."""
    discovery: bool = False
    """Automatic proxy discovery."""
    bypass: list[str] = field(default_factory=list)


@dataclass
class State:
    interfaces: list[Interface] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    """In the order in which they were added; netstat sorts."""
    pf: Pf = field(default_factory=Pf)
    store: dict[str, dict[str, StoreValue]] = field(default_factory=dict)
    """The dynamic store: key -> dictionary."""
    services: list[Service] = field(default_factory=list)
    """In the order of the user."""
    sysctls: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Path -> text, of the files in /etc that its programs read."""
    flushes: int = 0
    """How often the caches of names were emptied."""

    @property
    def boot_id(self) -> str:
        return self.sysctls["kern.bootsessionuuid"]

    def interface(self, name: str) -> Interface | None:
        return next((each for each in self.interfaces if each.name == name), None)

    def service_of(self, device: str) -> Service | None:
        return next((each for each in self.services if each.device == device), None)


def to_json(state: State) -> dict[str, Any]:
    return dataclasses.asdict(state)


def from_json(values: dict[str, Any]) -> State:
    state: State = _read(State, values)
    return state


def _read(kind: Any, value: Any) -> Any:
    if isinstance(kind, typing.TypeAliasType):
        return value
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], each) for name, each in value.items()})  # type: ignore[operator]
    if isinstance(kind, types.GenericAlias):
        if kind.__origin__ is list:
            return [_read(kind.__args__[0], each) for each in value]
        return {name: _read(kind.__args__[1], each) for name, each in value.items()}
    return value


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]
