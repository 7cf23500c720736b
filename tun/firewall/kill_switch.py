"""The kill switch at work: puts up the table of client_table.py, keeps it current, opens it for a while, takes it away.

The order of things: `up` before anything else changes, with the device's name and no tunnel address yet; `update` when
addresses, exits, LAN prefixes or the forwarder's port are known or change; `down` last of all. If the process ends in
any other way, the filter stays and holds everything in.

Whatever opens does so through an element of a set with a time limit. The kernel closes it in time, whether this
process lives or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final

from cryprq_proxy.errors import LocalError

from . import nft
from .client_table import COUNTERS, Endpoint, FilterSettings, Openings, script
from .inbound import Address, Inbound, observe
from .nft import CLIENT, UNDO, Count, NftError, Record

__all__ = ["UNDO", "Endpoint", "Filter", "FilterSettings", "NftError"]

RESOLVING: Final = 30
"""Seconds after which the opening for an exit's name closes by itself."""
LONGEST_PAUSE: Final = 3600
"""Seconds."""


class Filter:
    """One packet filter of the client. All methods block for some milliseconds and raise NftError."""

    def __init__(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool = False
    ) -> None:
        """`record` is the journal's; `ours` says that an older entry of the journal names the table.

        `keep_inbound`: connections from outside, those open now included, go on past the tunnel.
        """
        self.settings = settings
        self._record = record
        self._ours = ours
        self._keep = keep_inbound
        self._inbound: Inbound | None = None
        self._up = False
        self._asked: list[frozenset[Address]] = []

    def up(self) -> None:
        """Journals the table and puts it up, in place of one that we left behind.

        Raises ConfigError if the table is somebody else's; then nothing was changed.
        """
        nft.claim(CLIENT, self._ours, self._record)
        self._ours = True
        if self._keep:
            self._inbound = observe()
        nft.run(script(self.settings, self._inbound))
        self._up = True

    def update(self, settings: FilterSettings) -> None:
        """From now on, the filter is that of `settings`; what is open stays open and the counters go on.

        The table is replaced in one transaction, also if another program has removed it in between.
        """
        if not self._up:
            raise LocalError("the filter is not up")
        if settings == self.settings:
            return
        self._replace(settings)

    def restore(self) -> None:
        """Puts the table back if another program has removed it (`nft flush ruleset`): see `standing`."""
        if not self._up:
            raise LocalError("the filter is not up")
        self._replace(self.settings)

    def _replace(
        self,
        settings: FilterSettings,
        *,
        pause: int | None = None,
        bootstrap: Mapping[Address, int] | None = None,
    ) -> None:
        """What is not given stays as it is."""
        listed = nft.ask("list", "table", "inet", CLIENT) or []
        now = _openings(listed)
        openings = Openings(
            now.pause if pause is None else pause, now.bootstrap if bootstrap is None else bootstrap
        )
        nft.run(script(settings, self._inbound, openings, nft.counts(listed)))
        self.settings = settings

    def standing(self) -> bool:
        """Whether the kernel has our table. Other programs can remove it; ask now and then.

        One small set is asked for: to list tables, nft reads all that is in them, which is much with long rules.
        """
        return nft.ask("list", "set", "inet", CLIENT, "open") is not None

    def counters(self) -> dict[str, Count]:
        """What was kept in, by cause (COUNTERS); zeros if the table does not stand."""
        found = nft.counters(CLIENT)
        return {cause: found.get(cause, Count(0, 0)) for cause in COUNTERS}

    @contextmanager
    def resolving(self, resolvers: Iterable[Address]) -> Iterator[None]:
        """While inside, at most RESOLVING seconds: marked sockets may ask these resolvers on port 53.

        May be entered again before it is left: the last one out closes.
        """
        asked = frozenset(resolvers)
        self._asked.append(asked)
        try:
            self._open_resolvers()
            yield
        finally:
            self._asked.remove(asked)
            self._open_resolvers()

    def _open_resolvers(self) -> None:
        self._replace(self.settings, bootstrap=dict.fromkeys(frozenset().union(*self._asked), RESOLVING))

    def pause(self, seconds: int) -> None:
        """New connections of this machine go past the tunnel, DNS to the network's resolvers, for `seconds`.

        Tunnelled connections stay in the tunnel; containers too. No route needs to change: the filter marks
        what is to go out, and the link's routing rule takes it. Raises LocalError if out of range.
        """
        if not 0 < seconds <= LONGEST_PAUSE:
            raise LocalError(f"a pause lasts from 1 to {LONGEST_PAUSE} seconds")
        self._replace(self.settings, pause=seconds)

    def resume(self) -> None:
        """Ends a pause at once. Connections begun in it are cut when they next send."""
        self._replace(self.settings, pause=0)

    def paused(self) -> int:
        """Whole seconds that are left of the pause."""
        return _openings(nft.ask("list", "set", "inet", CLIENT, "open") or []).pause

    def down(self) -> None:
        """Removes the table, if it is there. The journal's undo does the same."""
        nft.remove(CLIENT)
        self._up = False


def _openings(listed: Iterable[Mapping[str, Any]]) -> Openings:
    """What is open now, from what `nft -j` lists."""
    pause = 0
    bootstrap: dict[Address, int] = {}
    for each in listed:
        found = each.get("set", {})
        title = str(found.get("name", ""))
        for wrapped in found.get("elem", ()):
            if not isinstance(wrapped, dict) or "elem" not in wrapped:
                continue
            element = wrapped["elem"]
            # nft rounds down. What has less than a second left counts as closed: rounding up, frequent updates
            # would keep it open for ever.
            left = int(element.get("expires", 0))
            if title == "open":
                pause = max(pause, left)
            elif title in ("bootstrap4", "bootstrap6"):
                bootstrap[ip_address(element["val"])] = left
    return Openings(pause, bootstrap)
