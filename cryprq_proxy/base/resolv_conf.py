"""What a resolv.conf (resolv.conf(5)) says; it may hold any bytes."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from typing import Final

MAX_NAMESERVERS: Final = 8
"""Name servers taken from a file; the C library takes three (resolv.conf(5))."""


def nameservers(content: bytes) -> tuple[str, ...]:
    """The addresses of the `nameserver` lines, at most `MAX_NAMESERVERS`, each once; invalid addresses are skipped.

    A link-local IPv6 address keeps its zone.
    """
    found: dict[str, None] = {}
    for words in lines(content):
        if words[0] == "nameserver" and len(words) > 1 and len(found) < MAX_NAMESERVERS:
            with contextlib.suppress(ValueError):
                found[str(ip_address(words[1]))] = None
    return tuple(found)


def lines(content: bytes) -> list[list[str]]:
    """The words of each line whose first word is in ASCII; in the others, bytes beyond it are U+FFFD.

    Comments are skipped.
    """
    found = []
    for line in content.split(b"\n"):
        words = [word.decode("ascii", "replace") for word in line.split()]
        if words and words[0][0] not in "#;" and words[0].isascii() and words[0].isprintable():
            found.append(words)
    return found
