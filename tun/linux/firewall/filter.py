"""The client's filter in the kernel: puts up the table of client_table.py, replaces it, opens it for a while.

`Filter.up` comes before anything else changes, with the device's name and no tunnel address yet. `update` follows when
addresses, exits, LAN prefixes or the forwarder's port become known or change. The journal's undo (nft.py) takes the
table away, last of all. If the process ends in any other manner, the filter stays and holds everything in.

Each opening is an element of a set with a time limit. The kernel closes it in time, whether this process lives or not.
Where another program has removed the table, the pause goes on for what is left of it: a person has asked for that time.

After each change of settings, at the end of a pause, and where the table was put back, the connections whose reason has
ended, or that began without the table, are to be deleted from conntrack (conntrack.py): behind the change, so that
nothing can begin anew for the old reason. `up` does so itself; afterwards the owner does, beside further changes
(deletions.py), by what `ended` gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, Self

from cryprq_proxy.errors import LocalError
from cryprq_proxy.process.actions import MAX_PAUSE

from ...firewall.filter_settings import NOTHING_OPEN, FilterSettings, Openings
from ...firewall.inbound import NOT_KEPT, Address, Inbound
from ...journal import Record
from ...system import NO_COUNTS, Count
from . import conntrack, nft
from .client_table import COUNTERS, RUN, script
from .conntrack import Ended, Flow
from .lockdown import AtRest
from .marks import FIRST_MARKS, Marks, reason_of_mark
from .nft import CLIENT, Ask, NftError, Run
from .open_connections import observe
from .standing import Standing

RESOLVING: Final = 30
"""Seconds after which the opening for an exit's name closes by itself."""


class Filter:
    """The client's packet filter, made by `up`. All methods block for some milliseconds and raise NftError."""

    def __init__(
        self,
        settings: FilterSettings,
        inbound: Inbound,
        marks: Marks,
        run: Run,
        ask: Ask,
        clock: Callable[[], float],
    ) -> None:
        """For `up` only: the table stands already."""
        self.settings = settings
        self._inbound = inbound
        self._marks = marks
        self._left: frozenset[Address] = frozenset()
        self._run = run
        self._ask = ask
        self._clock = clock
        self._asked: list[tuple[frozenset[Address], float]] = []
        """Resolvers that are being asked for an exit's name, and until when they may be, by `clock`."""
        self._pause_until = -math.inf
        """When the pause is over, by `clock`."""
        self._counted: Mapping[str, Count] = NO_COUNTS
        """As they were last read, for a table that has to be replaced while nft cannot list it."""
        self._standing = Standing(CLIENT, ask)
        self._standing.written()

    @classmethod
    def up(
        cls,
        settings: FilterSettings,
        record: Record,
        *,
        ours: bool,
        keep_inbound: bool = False,
        run: Run = nft.run,
        ask: Ask = nft.ask,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Write the table to the journal and put it up, in place of one that an earlier run left behind.

        `record` is the journal's; `ours` says that an older entry of the journal names the table. `keep_inbound`:
        connections from outside, those open now included, go on past the tunnel. `run` and `ask` reach the kernel;
        `clock` runs as its timers do, so it stands still while the machine sleeps.

        Raises ConfigError if the table belongs to another program; then nothing was changed.
        """
        nft.claim(CLIENT, ours, record, ask)
        inbound = observe() if keep_inbound else NOT_KEPT
        left = nft.tunnel_addresses(ask)
        marks = FIRST_MARKS.next_run({*conntrack.seen_runs(), *_run_before(ask)})
        settings = _put_up(run, settings, inbound, marks)
        made = cls(settings, inbound, marks, run, ask, clock)
        made._left = left
        made.ended()()
        return made

    def update(self, settings: FilterSettings) -> bool:
        """From now on, the filter is that of `settings`; what is open stays open and the counters go on. Returns
        whether anything has changed.

        The table is replaced in one transaction, also if another program has removed it in between.
        """
        before = self.settings
        if settings == before:
            return False
        if settings.rules != before.rules:
            # What the rules from before sent past the tunnel is judged anew.
            self._marks = self._marks.next_run(conntrack.seen_runs())
        self._replace(settings)
        self._left |= _addresses(before)
        self._left -= _addresses(settings)
        return True

    def restore(self) -> None:
        """Put the table back if another program has removed or changed it: see `difference`.

        What is left of a pause is put back too, whatever the table says: it may be an old one that was loaded again.
        What began while there was no table has no NAT, for as long as it goes on: it is to be deleted after this.
        """
        self._replace(self.settings, pause=self.pause_left())

    def _replace(
        self,
        settings: FilterSettings,
        *,
        pause: int | None = None,
        bootstrap: Mapping[Address, int] | None = None,
    ) -> None:
        """What is not given stays as it is."""
        try:
            listed = self._ask("list", "table", "inet", CLIENT)
        except NftError:
            # Another program has changed it, or nft cannot list it: what it held is replaced as if it were gone.
            listed = None
        else:
            self._counted = nft.counts(listed or [])
        now = openings(listed or [])
        if pause is None:
            # Where a table stands it may have been closed early; where none stands it was removed.
            pause = self.pause_left() if listed is None else min(now.pause, self.pause_left())
        if bootstrap is None:
            bootstrap = self._asked_now() if listed is None else now.bootstrap
        wanted = Openings(pause, bootstrap)
        self.settings = _put_up(self._run, settings, self._inbound, self._marks, wanted, self._counted)
        self._standing.written()

    def ended(self) -> Callable[[], object]:
        """What deletes the connections whose reason has ended under the present settings, or that began without the
        table.

        It takes some microseconds for each connection of this machine, and may run beside further changes.
        """
        settings = self.settings
        rules = settings.rules

        def direct(flow: Flow) -> bool:
            return rules.sends_past_the_tunnel(flow.destination, flow.protocol, flow.port)

        tunnels = _addresses(settings)
        ended = Ended(
            marks=self._marks,
            paused=self.paused() > 0,
            keep_inbound=self._inbound.keep,
            excludes=bool(settings.excluded_cgroups),
            direct=direct,
            own=conntrack.own_addresses_or_none() | tunnels,
            left=self._left,
            guests=tuple(settings.guests),
            forwarder=frozenset(
                (address, settings.dns_port) for address in tunnels if settings.dns_port is not None
            ),
        )
        return partial(conntrack.delete, ended)

    def at_rest(self) -> AtRest:
        """What lockdown's filter is made from."""
        return AtRest(self.settings, self._inbound, self._marks)

    def difference(self) -> str:
        """What another program has done to the table, in words; nothing if it stands as written."""
        return self._standing.look()

    def standing(self) -> bool:
        """Whether the kernel has our table.

        One small set is asked for: to list tables, nft reads all that is in them, which is much with long rules.
        """
        return self._ask("list", "set", "inet", CLIENT, "open") is not None

    def counters(self) -> dict[str, Count]:
        """What was kept in, by cause (COUNTERS); zeros if the table does not stand."""
        found = nft.counts(self._ask("list", "counters", "table", "inet", CLIENT) or [])
        if found:
            self._counted = found
        return {cause: found.get(cause, Count(0, 0)) for cause in COUNTERS}

    @contextmanager
    def resolving(self, resolvers: Iterable[Address]) -> Iterator[None]:
        """While inside, at most RESOLVING seconds: marked sockets may ask these resolvers on port 53.

        May be entered again before it is left: the last one out closes.
        """
        asked = frozenset(resolvers), self._clock() + RESOLVING
        self._asked.append(asked)
        try:
            self._open_resolvers()
            yield
        finally:
            self._asked.remove(asked)
            self._open_resolvers()

    def _open_resolvers(self) -> None:
        found = frozenset[Address]().union(*(resolvers for resolvers, _ in self._asked))
        self._replace(self.settings, bootstrap=dict.fromkeys(found, RESOLVING))

    def _asked_now(self) -> dict[Address, int]:
        """Each resolver with the whole seconds for which it may still be asked."""
        now = self._clock()
        ends = sorted(self._asked, key=lambda asked: asked[1])
        left = {resolver: math.floor(until - now) for resolvers, until in ends for resolver in resolvers}
        return {resolver: seconds for resolver, seconds in left.items() if seconds > 0}

    def pause(self, seconds: int) -> None:
        """New connections of this machine go past the tunnel, DNS to the network's resolvers, for `seconds`.

        Tunnelled connections and containers stay in the tunnel. Raises LocalError if out of range. What is
        raised after the kernel has taken it closes it again.
        """
        if not 0 < seconds <= MAX_PAUSE:
            raise LocalError(f"a pause lasts from 1 to {MAX_PAUSE} seconds")
        until = self._clock() + seconds
        if not self.pause_left():
            self._marks = self._marks.next_pause()
        try:
            self._replace(self.settings, pause=seconds)
        except NftError:
            with suppress(NftError):
                self.restore()
            raise
        self._pause_until = until

    def end_pause(self) -> None:
        """Close what the kernel has closed by now. The connections that were begun in the pause have ended."""
        self._pause_until = -math.inf
        self._replace(self.settings, pause=0)

    def pause_left(self) -> int:
        """Whole seconds that the pause was asked for from now on, also where another program has removed the table."""
        return math.floor(max(self._pause_until - self._clock(), 0))

    def paused(self) -> int:
        """Whole seconds for which the kernel lets everything out."""
        return openings(self._ask("list", "set", "inet", CLIENT, "open") or []).pause


def _put_up(
    run: Run,
    settings: FilterSettings,
    inbound: Inbound,
    marks: Marks,
    opened: Openings = NOTHING_OPEN,
    counts: Mapping[str, Count] = NO_COUNTS,
) -> FilterSettings:
    """Put the table up. Returns its settings: without cgroups where one of them has just gone, so that the filter
    stands in any case."""
    try:
        run(script(settings, inbound, opened, counts, marks))
    except NftError:
        if not settings.excluded_cgroups:
            raise
        settings = replace(settings, excluded_cgroups=frozenset())
        run(script(settings, inbound, opened, counts, marks))
    return settings


def _addresses(settings: FilterSettings) -> frozenset[Address]:
    return frozenset(address for address in (settings.tunnel4, settings.tunnel6) if address is not None)


def _run_before(ask: Ask) -> Iterator[int]:
    """The run of the table that stands, of a process that did not end in order."""
    for mark in nft.elements(ask, RUN):
        reason = reason_of_mark(mark) if isinstance(mark, int) else None
        if reason is not None:
            yield reason.run


def openings(listed: Iterable[Mapping[str, Any]]) -> Openings:
    """What is open now, from what `nft -j` lists."""
    pause = 0
    bootstrap: dict[Address, int] = {}
    for item in listed:
        found = item.get("set", {})
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
