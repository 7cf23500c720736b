"""The text of a resolv.conf (resolv.conf(5)): how to read and write it."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from typing import Final

from cryprq_proxy.base.leftovers import RESOLV_CONF_HEADER

MAX_NAMESERVERS: Final = 8
"""Name servers taken from a file; the C library takes three (resolv.conf(5))."""
_DROPPED_OPTIONS: Final = frozenset({"trust-ad", "inet6"})
"""`trust-ad` is about the earlier resolver."""


def render(addresses: Sequence[str], before: bytes, tag: str) -> bytes:
    """Our resolv.conf: `addresses` as its name servers, with the search domains and options that `before` had.

    A word with control or non-ASCII characters is left out; the rest of its line stays.
    """
    kept = []
    for words in _lines(before):
        words = [word for word in words if word.isascii() and word.isprintable()]
        if words[0] == "options":
            words = [word for word in words if word not in _DROPPED_OPTIONS]
        if words[0] in ("search", "domain", "options") and len(words) > 1:
            kept.append(" ".join(words))
    lines = [
        f"{RESOLV_CONF_HEADER}{tag}: all names are resolved through the tunnel while it stands.",
        "# What was here before comes back when it ends, or with: cryprq-proxy cleanup",
        *(f"nameserver {address}" for address in addresses),
        *kept,
    ]
    return ("\n".join(lines) + "\n").encode("ascii")


def nameservers(content: bytes) -> tuple[str, ...]:
    """The addresses of the `nameserver` lines, at most `MAX_NAMESERVERS`, each once; invalid addresses are skipped.

    A link-local IPv6 address keeps its zone.
    """
    found: dict[str, None] = {}
    for words in _lines(content):
        if words[0] == "nameserver" and len(words) > 1 and len(found) < MAX_NAMESERVERS:
            with contextlib.suppress(ValueError):
                found[str(ipaddress.ip_address(words[1]))] = None
    return tuple(found)


def without_nameservers(content: bytes) -> bytes:
    """What `render` has kept of the earlier file: its search domains and options."""
    kept = [" ".join(words) for words in _lines(content) if words[0] != "nameserver"]
    return "".join(f"{line}\n" for line in kept).encode("ascii")


def is_ours(content: bytes) -> bool:
    """Whether `render` has written this, in this run or in an earlier one."""
    return content.startswith(RESOLV_CONF_HEADER.encode())


def _lines(content: bytes) -> list[list[str]]:
    """The words of each line whose first word is in ASCII; in the others, bytes beyond it are U+FFFD.

    Comments are skipped.
    """
    found = []
    for line in content.split(b"\n"):
        words = [word.decode("ascii", "replace") for word in line.split()]
        if words and words[0][0] not in "#;" and words[0].isascii() and words[0].isprintable():
            found.append(words)
    return found
