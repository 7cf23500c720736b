"""Whether one of our tables stands as it was written: other programs can remove it, or change what is in it.

After each write the table is listed, and a look lists it again only if the kernel's packet filter has changed at all.
Counters, handles and elements with a time limit do not count: they change by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from cryprq_proxy.base.netlink import NETFILTER, NetlinkSocket, attributes

from .nft import Ask, NftError, UnreadableAnswer, ask

# linux/netfilter/nfnetlink.h, nf_tables.h
_GET_GENERATION: Final = 10 << 8 | 16
_NEW_GENERATION: Final = 10 << 8 | 15
_GENERATION_ID: Final = 1


def generation() -> int | None:
    """A number that each change of any table raises; None where the kernel does not tell. Blocks for microseconds."""
    try:
        with NetlinkSocket(NETFILTER) as kernel:
            kind, body = next(kernel.ask(_GET_GENERATION, 0, bytes(4)), (0, b""))
    except OSError:
        return None
    number = attributes(body[4:]).get(_GENERATION_ID, b"")
    return int.from_bytes(number) if kind == _NEW_GENERATION and len(number) == 4 else None


class Standing:
    """One table of family inet. All methods block for some milliseconds and raise NftError."""

    def __init__(self, table: str, ask: Ask = ask, generation: Callable[[], int | None] = generation) -> None:
        self._table = table
        self._ask = ask
        self._generation = generation
        self._written: str | None = None
        self._unchanged_at: int | None = None

    def written(self) -> None:
        """We have just written the table."""
        self._unchanged_at = None
        try:
            self._written = self._content()
        except NftError:
            # Another program has changed it already, or nft cannot list it. No content is equal to this one, so the
            # next look writes it again; what was written stands, so whoever asked for it is not told otherwise.
            self._written = None

    def look(self) -> str:
        """Nothing if it stands as written, else what was found: a part of a sentence."""
        now = self._generation()
        if now is not None and now == self._unchanged_at:
            return ""
        try:
            content = self._content()
        except UnreadableAnswer:
            return f"the table inet {self._table} was changed, and nft cannot list it"
        if content is None:
            return f"the table inet {self._table} was removed"
        if content != self._written:
            return f"the table inet {self._table} was changed"
        self._unchanged_at = now
        return ""

    def _content(self) -> str | None:
        listed = self._ask("list", "table", "inet", self._table)
        return None if listed is None else json.dumps([_lasting(item) for item in listed], sort_keys=True)


def _lasting(value: Any) -> Any:
    """Without what changes by itself."""
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    timed = "timeout" in value.get("flags", ())
    return {
        key: _lasting(item)
        for key, item in value.items()
        if key not in ("handle", "packets", "bytes") and not (timed and key == "elem")
    }
