"""Names in wire form, and the names that are answered here instead of anywhere else.

A name is kept as its lower-case wire form (RFC 1035 section 3.1: a length and so many bytes for each label, a zero at
the end). Unlike text it has no escapes, its suffixes at label borders are slices of it, and `bytes.lower` cannot hurt
it, since no length reaches the code of a letter.

Some names have no meaning in the public DNS; asking for them would tell the exit's resolver about this machine or its
network, and could never be of use. They are answered here unless a split rule names a server for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final

from cryprq_proxy.address import OWN_NAME as OWN_HOST
from cryprq_proxy.errors import ConfigError

MAX_WIRE: Final = 255
"""RFC 1035 section 2.3.4."""

_NAME: Final = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ODD: Final = re.compile(rb"[^a-z0-9_-]")
_LENGTHS: Final = [bytes((length,)) for length in range(64)]


def from_text(text: str) -> bytes:
    """The wire form of a name as a person writes it; other scripts than ASCII become A-labels.

    Raises `ConfigError`.
    """
    try:
        raw = (text if text.isascii() else text.encode("idna").decode("ascii")).encode("ascii")
    except ValueError:  # UnicodeError is one
        raw = b""
    wire = from_ascii(raw.lower())
    if wire is None:
        raise ConfigError(f"{text[:80]!r} is not a domain; write it like example.com")
    return wire


def from_ascii(name: bytes) -> bytes | None:
    """The wire form of a lower-case name in ASCII with or without the dot at its end; None if it is no host name."""
    if name.endswith(b"."):
        name = name[:-1]
    if not _NAME.fullmatch(name) or len(name) > MAX_WIRE - 2:
        return None
    return b"".join([_LENGTHS[len(label)] + label for label in name.split(b".")]) + b"\0"


def to_host(wire: bytes) -> str:
    """The text of a lower-case wire form, as hosts are written elsewhere in the program.

    Characters that no host name has become "?", so that no name is mistaken for another one, and the domains
    above it still count.
    """
    return b".".join([_ODD.sub(b"?", label) for label in labels(wire)]).decode("ascii")


def labels(wire: bytes) -> list[bytes]:
    """The labels of a wire form, without the root."""
    found, at = [], 0
    while length := wire[at]:
        found.append(wire[at + 1 : at + 1 + length])
        at += 1 + length
    return found


def suffixes(wire: bytes) -> Iterator[bytes]:
    """The name itself, then its parents up to the top-level domain."""
    at = 0
    while length := wire[at]:
        yield wire[at:]
        at += 1 + length


def longest[T](values: Mapping[bytes, T], name: bytes) -> T | None:
    """The value of the longest domain that is `name` or above it."""
    if not values:
        return None
    return next((values[suffix] for suffix in suffixes(name) if suffix in values), None)


ONE_LABEL: Final = b"*"
"""In place of a domain: all names of one label. No wire form, so that no name is taken for it."""


def split_domain(text: str) -> bytes:
    """A domain of `dns.split` as `served` looks for it. Raises `ConfigError`."""
    return ONE_LABEL if text == "*" else from_text(text)


def split_text(domain: bytes) -> str:
    """As `split_domain` has read it."""
    return "*" if domain == ONE_LABEL else to_host(domain)


def served[T](split: Mapping[bytes, T], name: bytes) -> T | None:
    """The value of the longest domain that is `name` or above it; else, for one label, that of ONE_LABEL."""
    found = longest(split, name)
    if found is None and name[0] and len(name) == name[0] + 2:
        return split.get(ONE_LABEL)
    return found


class Local(Enum):
    """How a special name is answered."""

    LOCALHOST = "localhost"
    """127.0.0.1 and ::1."""
    REVERSE_LOCALHOST = "reverse of localhost"
    NAME_ERROR = "NXDOMAIN"
    NO_DATA = "no data"


OWN_NAME: Final = from_text(OWN_HOST)
"""That of our own page, which no server is asked for, whatever is split."""
_ALWAYS: Final = {
    OWN_NAME: Local.NAME_ERROR,
    from_text("localhost"): Local.LOCALHOST,  # RFC 6761 section 6.3
    from_text("invalid"): Local.NAME_ERROR,  # RFC 6761 section 6.4
    from_text("onion"): Local.NAME_ERROR,  # RFC 7686 section 2
    from_text("alt"): Local.NAME_ERROR,  # RFC 9476 section 2
    # Tells a browser to leave its own DNS over HTTPS off, which would go past blocklists and split DNS.
    from_text("use-application-dns.net"): Local.NAME_ERROR,
    # RFC 9462 section 6.4: no other server may speak for the virtual address of this resolver.
    from_text("resolver.arpa"): Local.NO_DATA,
    from_text("1.0.0.127.in-addr.arpa"): Local.REVERSE_LOCALHOST,
    from_text("1." + "0." * 31 + "ip6.arpa"): Local.REVERSE_LOCALHOST,
}
_UNLESS_SPLIT: Final = {
    from_text(name): Local.NAME_ERROR
    for name in (
        "local",  # RFC 6762 section 3: asked by multicast, by others
        "home.arpa",  # RFC 8375
        "test",  # RFC 6761 section 6.2
        # RFC 6303 section 4 and RFC 7793: reverse names of addresses that mean something here only
        "10.in-addr.arpa",
        "168.192.in-addr.arpa",
        "254.169.in-addr.arpa",
        "127.in-addr.arpa",
        "0.in-addr.arpa",
        "255.255.255.255.in-addr.arpa",
        *(f"{part}.172.in-addr.arpa" for part in range(16, 32)),
        *(f"{part}.100.in-addr.arpa" for part in range(64, 128)),
        "0." * 32 + "ip6.arpa",
        "c.f.ip6.arpa",
        "d.f.ip6.arpa",
        *(f"{digit}.e.f.ip6.arpa" for digit in "89ab"),
    )
}


def special(name: bytes, *, split: bool) -> Local | None:
    """How `name` (lower-case wire form) is answered if it is special. `split`: a rule names a server for it."""
    for suffix in suffixes(name):
        found = _ALWAYS.get(suffix)
        if found is None and not split:
            found = _UNLESS_SPLIT.get(suffix)
        if found is not None:
            return found
    return None
