"""The rules for our own page (own_page.py) in the client's table, and for its name in a pause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryprq_proxy.address import OWN_NAME

from ...dns.names import from_text
from ...firewall.filter_settings import FilterSettings
from .cgroups import match

_NAME: Final = from_text(OWN_NAME)
_LETTER: Final = 0xDF
"""The bits of a byte in which the two cases of a letter are the same."""
_MASK: Final = bytes(_LETTER if chr(byte).isalpha() else 0xFF for byte in _NAME)
_FOLDED: Final = bytes(byte & mask for byte, mask in zip(_NAME, _MASK, strict=True))
_AT: Final = 8 * (8 + 12)
"""Bits before the name in a question by UDP: the headers of UDP and DNS (RFC 1035 section 4.1)."""

ASKS_FOR_OWN_NAME: Final = f"udp dport 53 @th,{_AT},{8 * len(_NAME)} & 0x{_MASK.hex()} == 0x{_FOLDED.hex()}"
"""A question for our own name, however its letters are written. Other names differ in a length or in a letter."""


def to_page(settings: FilterSettings) -> Iterable[str]:
    """Brings programs of this machine to the page, but for those that go past the tunnel: it would tell them wrong."""
    page = settings.page
    if page is None:
        return
    meant = f"ip daddr {page.address} tcp dport 80"
    for cgroup in sorted(settings.excluded_cgroups):
        yield f"{meant} {match(cgroup)} return"
    if settings.excluded_uids:
        yield f"{meant} meta skuid @uids return"
    yield f"{meant} dnat ip to {page.address}:{page.port}"
