"""The text of our resolv.conf (resolv.conf(5))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryprq_proxy.base.linux_marks import RESOLV_CONF_HEADER
from cryprq_proxy.base.resolv_conf import lines

_DROPPED_OPTIONS: Final = frozenset({"trust-ad", "inet6"})
"""`trust-ad` is about the earlier resolver."""


def render(addresses: Sequence[str], before: bytes, tag: str) -> bytes:
    """Our resolv.conf: `addresses` as its name servers, with the search domains and options that `before` had.

    A word with control or non-ASCII characters is left out; the rest of its line stays.
    """
    kept = []
    for words in lines(before):
        words = [word for word in words if word.isascii() and word.isprintable()]
        if words[0] == "options":
            words = [word for word in words if word not in _DROPPED_OPTIONS]
        if words[0] in ("search", "domain", "options") and len(words) > 1:
            kept.append(" ".join(words))
    ours = [
        f"{RESOLV_CONF_HEADER}{tag}: all names are resolved through the tunnel while it stands.",
        "# What was here before comes back when it ends, or with: cryprq-proxy cleanup",
        *(f"nameserver {address}" for address in addresses),
        *kept,
    ]
    return ("\n".join(ours) + "\n").encode("ascii")


def without_nameservers(content: bytes) -> bytes:
    """What `render` has kept of the earlier file: its search domains and options."""
    kept = [" ".join(words) for words in lines(content) if words[0] != "nameserver"]
    return "".join(f"{line}\n" for line in kept).encode("ascii")


def is_ours(content: bytes) -> bool:
    """Whether `render` has written this, in this run or in an earlier one."""
    return content.startswith(RESOLV_CONF_HEADER.encode())
