"""What a person can set about the forwarder, and how the address of an upstream is written.

    exit                                  the exit's own resolver
    tcp://10.0.0.1   10.0.0.1:5353        a plain server behind the exit, DNS over TCP (RFC 7766), port 53
    tls://1.1.1.1#cloudflare-dns.com      DNS over TLS (RFC 7858), port 853; the name is what the certificate must say
    https://dns.example/dns-query         DNS over HTTPS (RFC 8484), port 443; may carry a #name as well
    lan://192.168.1.1                     a resolver of the LAN, reached past the tunnel, port 53; in `split` only

A host given by name is resolved by the exit when the stream is opened, so nothing has to be known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, Literal, NamedTuple

from cryprq_proxy.address import AddressError, Destination, parse_host_port
from cryprq_proxy.errors import ConfigError

from ..routing.lan import PRIVATE

MAX_SPEC: Final = 1024
"""Longest address of an upstream, in characters."""
MAX_STALE: Final = 3 * 86_400.0
"""RFC 8767 section 5 suggests one to three days."""
MAX_UPSTREAMS: Final = 16
"""Servers in one list."""

_PATH: Final = re.compile(r"/[!-~]*")


class Scheme(Enum):
    """The protocol in which a server is asked, or where it is."""

    EXIT = "exit"
    LAN = "lan"
    TCP = "tcp"
    TLS = "tls"
    HTTPS = "https"


LAN_PORT: Final = 53
HTTPS_PORT: Final = 443
_DEFAULT_PORTS: Final = {
    Scheme.LAN: LAN_PORT,
    Scheme.TCP: 53,
    Scheme.TLS: 853,
    Scheme.HTTPS: HTTPS_PORT,
}


class UpstreamSpec(NamedTuple):
    """One upstream, decoded."""

    text: str
    """As the person wrote it; what `status` shows."""
    scheme: Scheme
    destination: Destination
    """Where the stream goes; without meaning for the exit's resolver."""
    name: str
    """What the certificate must be made out for: a name or an address."""
    path: str
    """Of the HTTP request, with its query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """Everything the forwarder is told. Times are in seconds."""

    upstreams: tuple[str, ...]
    """In the order of preference."""
    split: Mapping[str, tuple[str, ...]]
    """Domain (with all below it) -> the servers that are asked for it; the longest domain wins. "*" stands for all
    names of one label that are no such domain."""
    blocklists: tuple[Path, ...]
    """Files of names that are not answered."""
    block: tuple[str, ...]
    """Single names beside the files, each with all below it; `*.name` for those below only."""
    allow: tuple[str, ...]
    """Names, each with all below it, that no list blocks."""
    block_answer: Literal["nxdomain", "zero"]
    """Whether a blocked name does not exist or has the addresses 0.0.0.0 and ::."""
    cache_entries: int
    cache_bytes: int
    stale: float
    """How long after its end an answer may still be given while no upstream answers; 0 for never."""
    ipv6: bool = True
    """Whether the exit carries IPv6. Without it no AAAA record is handed out."""
    stale_wait: float = 1.8
    """How long a question waits for an upstream before a stale answer is given (RFC 8767 section 5)."""
    hedge: float = 1.0
    """How long one upstream may think before the next one is asked as well."""
    timeout: float = 4.5
    """How long a question waits at most. Common stub resolvers give up after 5."""
    link_wait: float = 3.0
    """How long a question waits for the link when no upstream can be reached at all."""
    questions: int = 1024
    """Questions that may wait for upstreams at once; more get SERVFAIL."""

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ConfigError('dns.upstreams is empty; name at least one server, like "exit"')
        if self.block_answer not in ("nxdomain", "zero"):
            raise ConfigError(f'dns.block_answer is {self.block_answer!r}; expected is "nxdomain" or "zero"')
        if not 0 <= self.stale <= MAX_STALE:
            raise ConfigError(f"dns.stale is {self.stale:g} seconds; expected is 0 to {MAX_STALE:.0f}")
        for name in ("hedge", "stale_wait", "timeout", "link_wait"):
            if not 0 < getattr(self, name) <= 60:
                raise ConfigError(f"dns.{name} is {getattr(self, name):g} seconds; expected is up to 60")
        for name, most in (("cache_entries", 1_000_000), ("cache_bytes", 1 << 30), ("questions", 32_768)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"dns.{name} is {getattr(self, name)}; expected is 1 to {most}")

    @property
    def lan_servers(self) -> frozenset[IPv4Address | IPv6Address]:
        """The resolvers of the LAN that are asked for some domains. Raises ConfigError."""
        specs = [parse_upstream(text) for texts in self.split.values() for text in texts]
        return frozenset(ip_address(spec.destination.host) for spec in specs if spec.scheme is Scheme.LAN)


def parse_upstream(text: str) -> UpstreamSpec:
    """Decode the address of one upstream. Raises `ConfigError`, which names it and says what is expected."""
    try:
        return _parse(text.strip())
    except ValueError as error:  # AddressError is one
        raise ConfigError(
            f"the DNS server {text[:80]!r} is not understood ({error}); expected is exit, tcp://ADDRESS,"
            " tls://HOST#NAME or https://HOST/dns-query, and lan://ADDRESS for single domains"
        ) from None


def _parse(text: str) -> UpstreamSpec:
    if len(text) > MAX_SPEC:
        raise ValueError("too long")
    if text == "exit":
        return UpstreamSpec(text, Scheme.EXIT, Destination("", 0), "", "")
    prefix, separator, rest = text.partition("://")
    if not separator:
        prefix, rest = "tcp", text
    if prefix not in ("lan", "tcp", "tls", "https"):
        raise ValueError(f"{prefix} is no known scheme")
    scheme = Scheme(prefix)
    rest, hash_sign, name = rest.partition("#")
    host, slash, path = rest.partition("/")
    if "@" in host or not host:
        raise ValueError("a host is expected")
    destination = parse_host_port(host, _DEFAULT_PORTS[scheme])
    if not destination.port:
        raise ValueError("port 0 is none")
    if path and scheme is not Scheme.HTTPS:
        raise ValueError("only https has a path")
    plain = scheme in (Scheme.TCP, Scheme.LAN)
    if plain and not destination.is_ip:
        raise ValueError("a plain server is given by its address")
    if plain and hash_sign:
        raise ValueError("a plain server proves no name")
    if scheme is Scheme.LAN:
        _check_lan(destination)
    path = slash + path or "/"
    if not _PATH.fullmatch(path):
        raise ValueError("the path has characters that no URL has")
    return UpstreamSpec(
        text,
        scheme,
        destination,
        _certified_name(name) if hash_sign else destination.host,
        path if scheme is Scheme.HTTPS else "",
    )


def _check_lan(destination: Destination) -> None:
    """The filter is opened for it: so port 53, and of an address that no network outside can have."""
    address = ip_address(destination.host)
    if destination.port != LAN_PORT:
        raise ValueError("a resolver of the LAN is asked at port 53")
    if address.is_link_local or not any(address in network for network in PRIVATE):
        raise ValueError("that is no private address of a LAN")


def _certified_name(text: str) -> str:
    """The name or address behind the #, which the certificate must be made out for. Raises AddressError."""
    checked = parse_host_port(f"[{text}]" if ":" in text else text, 0)
    if checked.port or not text:
        raise AddressError("a name without a port is expected behind #")
    return checked.host
