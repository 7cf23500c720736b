"""The configuration of system-wide mode: the client's interface and DNS, the exit's network."""

from __future__ import annotations

import pwd
import re
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Struct

from ..errors import ConfigError
from ..rules.ranges import IPNetwork
from .both_roles import AutoOrOff
from .decode import Text, choice, count, path, paths, seconds, size, switch

STATE: Final = Path("/var/lib/cryprq-proxy")
MAX_UID: Final = 4_294_967_294
MAX_USERS: Final = 65_536
"""User ids in one range; the filter has an element for each."""
_IDS: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


def parse_prefix(text: str) -> IPNetwork:
    """Read "192.0.2.0/24" or a single address. Raises ConfigError."""
    try:
        if "%" in text:
            raise ValueError("a zone has no meaning here")
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"expected an address or prefix like 192.0.2.0/24, got {text[:24]!a}") from None
    if str(network.network_address) != str(ip_interface(text).ip):
        raise ConfigError(f"{text} is an address within a prefix; write {network} for all of it")
    return network


def _pool(version: int, text: str) -> IPNetwork:
    network = parse_prefix(text)
    if network.version == version:
        return network
    raise ConfigError(f"expected an IPv{version} prefix, got {text}")


def parse_users(text: str) -> tuple[int, int]:
    """Read a user's name, an id, or a range of ids "1000-1999". Raises ConfigError."""
    numbers = _IDS.fullmatch(text)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first <= last <= MAX_UID and last - first < MAX_USERS:
            return first, last
        raise ConfigError(
            f"{text} is not a range of user ids: the smaller one comes first, none is above {MAX_UID}, "
            f"and a range has at most {MAX_USERS}"
        )
    try:
        uid = pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):  # ValueError: an invalid name, like one with a NUL
        raise ConfigError(
            f"there is no user {text[:20]!a} here; give a name, an id, or ids like 1000-1999"
        ) from None
    return uid, uid


def parse_split(text: str) -> tuple[str, tuple[str, ...]]:
    """Read "corp.example=10.0.0.1,10.0.0.2". Raises ConfigError."""
    domain, _, servers = text.partition("=")
    listed = tuple(server.strip() for server in servers.split(","))
    if not domain or not all(listed):
        raise ConfigError(f"expected DOMAIN=SERVER or DOMAIN=SERVER,SERVER, got {text[:24]!a}")
    return domain.strip(), listed


_PREFIXES: Final = Text(parse_prefix, 'a list of prefixes like "192.0.2.0/24"', many=True)
_USERS: Final = Text(parse_users, 'a list of users like "alice", "1000" or "1000-1999"', many=True)
_CGROUPS: Final = Text(str, 'a list of cgroups like "/system.slice/backup.service"', many=True)
_NAMES: Final = Text(str, 'a list of names like "ads.example"', many=True)
_SERVERS: Final = Text(str, 'a list of servers like "exit" or "tls://1.1.1.1#cloudflare-dns.com"', many=True)
_SPLIT: Final = Text(parse_split, 'a list of strings like "corp.example=10.0.0.1"', many=True)
_POOL4: Final = Text(partial(_pool, 4), 'a prefix like "10.9.0.0/16"')
_POOL6: Final = Text(partial(_pool, 6), 'a prefix like "fd63:7279:7071:9::/64"')


class DnsTable(Struct, frozen=True, kw_only=True):
    """The DNS forwarder of system-wide mode."""

    upstreams: Annotated[tuple[str, ...], _SERVERS] = ("exit",)
    split: Annotated[tuple[tuple[str, tuple[str, ...]], ...], _SPLIT] = ()
    blocklists: Annotated[tuple[Path, ...], paths()] = ()
    block: Annotated[tuple[str, ...], _NAMES] = ()
    allow: Annotated[tuple[str, ...], _NAMES] = ()
    block_answer: Annotated[Literal["nxdomain", "zero"], choice("nxdomain", "zero")] = "nxdomain"
    cache_entries: Annotated[int, count(1, 1_000_000)] = 10_000
    cache_bytes: Annotated[int, size(1 << 16, 1 << 30)] = 16 << 20
    stale: Annotated[float, seconds(0, 259_200)] = 86_400.0


class TunTable(Struct, frozen=True, kw_only=True):
    """System-wide mode of the client."""

    enabled: Annotated[bool, switch()] = False
    experimental: Annotated[bool, switch()] = False
    exclude: Annotated[tuple[IPNetwork, ...], _PREFIXES] = ()
    include: Annotated[tuple[IPNetwork, ...], _PREFIXES] = ()
    exclude_uid: Annotated[tuple[tuple[int, int], ...], _USERS] = ()
    exclude_cgroup: Annotated[tuple[str, ...], _CGROUPS] = ()
    lan: Annotated[Literal["allow", "block"], choice("allow", "block")] = "allow"
    kill_switch: Annotated[Literal["on", "off"], choice("on", "off")] = "on"
    inbound: Annotated[Literal["block", "keep"], choice("block", "keep")] = "block"
    resolver: Annotated[Literal["set", "leave"], choice("set", "leave")] = "set"
    confirm: Annotated[float, seconds(0, 3600)] = 0.0
    offload: Annotated[AutoOrOff, choice("auto", "off")] = "auto"
    state_dir: Annotated[Path, path()] = STATE
    dns: DnsTable = DnsTable()


class ExitTunTable(Struct, frozen=True, kw_only=True):
    """The network interface of the exit, for clients in system-wide mode."""

    enabled: Annotated[bool, switch()] = False
    experimental: Annotated[bool, switch()] = False
    pool4: Annotated[IPv4Network | None, _POOL4] = None
    pool6: Annotated[IPv6Network | None, _POOL6] = None
    isolate: Annotated[bool, switch()] = True
    offload: Annotated[AutoOrOff, choice("auto", "off")] = "auto"
    state_dir: Annotated[Path, path()] = STATE
