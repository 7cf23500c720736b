"""The client's policy routing: all traffic goes into the tunnel, with the exceptions of route_rules.py.

    apply      look -> refuse what is not ours -> journal -> sysctl -> repair
    look       as a Fact: what is gone; follows and reports other networks and uplinks
    put_back   repair
    undo       delete all that is ours

`_repair` compares the kernel's rules and routes with the wanted ones and corrects the difference. It serves a clean
start, a start after a killed process, and rules deleted by another program. Our rules and routes have our protocol
number. If our table or priorities hold others at the start, another program uses them, and the start fails; what
others put into our table later is deleted.

Our table has a default route into the TUN for each family that the exit offers, and an unreachable one with a higher
metric. That one stays when a killed process loses the device and its routes; a family not offered has only that one.
The order of repair is unreachable, TUN, what is not ours, then rules from the link's mark to the rest, so that no
packet gets lost. Ours are set in place of what stands there (NLM_F_REPLACE): another program may have replaced one.

With the reverse path filter on (rp_filter=1), the kernel asks these rules for the route to a packet's source. Without
the mark, a packet from the exit would seem to belong to the tunnel. The filter gives such packets the link's mark
from conntrack, and `src_valid_mark` makes the kernel use it (ip-sysctl.rst).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final

from pyroute2 import NetlinkError

from cryprq_proxy.base.linux_marks import RULE_PROTOCOL
from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.base.program import to_run
from cryprq_proxy.errors import ConfigError, CryprqError

from ...firewall.filter_settings import ExitEndpoint
from ...journal import Entry, Record, Undoer
from ...reconciler import Fact
from ...routing.lan import Lan, Uplink
from ...settings import TunnelSettings
from ...system import LanChanged, Routing
from .. import sysctl
from ..sysctl import VALID_MARK
from .foreign_rules import ForeignRules, Surroundings, decide_before_ours
from .kernel_state import FAMILIES, KernelState, in_own_loop, look_at, open_kernel, refused
from .route_rules import FIRST, LAST, TABLE, RoutingRule, wanted_rules
from .table_routes import TableRoute, wanted_routes

KIND: Final = "routing"
"""The kind of our entry in the journal: one for all rules and routes, found by their numbers."""
_ROUNDS: Final = 5
"""Tries to delete all that is ours, while another program may put it back."""
_SETTLED: Final = {
    "add": frozenset({errno.EEXIST}),
    "replace": frozenset({errno.EEXIST}),
    "del": frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV}),
}
"""Errors for a change that is already made."""
_NAMED: Final = 3
"""Rules and routes that one log line names."""

type OpenKernel = Callable[[], AbstractAsyncContextManager[Any]]


class Routes(Routing):
    """The routing of one client in this thread's network namespace.

    `record` is called before each change. After `apply`, also if it failed, the owner looks no more and then undoes
    the journal.
    """

    changes = staticmethod(netlink_changes)

    def __init__(
        self,
        settings: TunnelSettings,
        versions: frozenset[int],
        record: Record,
        lan_changed: LanChanged,
        uplink_changed: Callable[[], None] = lambda: None,
        kernel: OpenKernel = open_kernel,
    ) -> None:
        """`versions`: the families that enter the device; the other one is unreachable. `lan_changed` gets the local
        networks when they change. `uplink_changed` is called when the uplink has another device, gateway or source
        address, not while there is none. `kernel` reaches the routing tables."""
        self._settings = settings
        self._versions = versions
        self.lan = Lan()
        """The local networks at the last look."""
        self.valid_mark = sysctl.KernelSetting("src_valid_mark", "1", record)
        """Another fact, set by `apply` too."""
        self._record = record
        self.lan_changed = lan_changed
        self.uplink_changed = uplink_changed
        self._kernel = kernel
        self._repairing = asyncio.Lock()
        self._uplinks: dict[int, Uplink | None] = {}
        self._told = Lan()
        self._device: int | None = None
        """The index of our device, which stays when another program renames it."""

    async def apply(self, *, ours: bool = False) -> None:
        """Route all traffic as the settings say. `ours`: the journal names rules and routes of an earlier run, which
        this takes over.

        Raises ConfigError, with nothing changed, if the device or the permission is missing, or if others use our table
        or priorities. Raises CryprqError if the kernel refuses a later change.
        """
        async with self._kernel() as kernel:
            state = await look_at(kernel)
            _refuse_others(state)
            device = state.device(self._settings.device)
            if device is None:
                raise ConfigError(f"the tunnel device {self._settings.device} is not there or not up")
            if not ours:
                self._record({"kind": KIND, "table": TABLE, "first": FIRST, "last": LAST})
            self.valid_mark.keep(VALID_MARK)
            self._device = device
            self.lan = self._told = state.lan(self._settings.device)
            self._uplinks = {version: state.uplink(version, self._settings.device) for version in FAMILIES}
            await self._repair(kernel, state, self.lan)

    async def carry(self, versions: frozenset[int]) -> None:
        """The exit offers these families now. Raises CryprqError."""
        async with self._repairing, self._kernel() as kernel:
            self._versions = versions
            await self._repair(kernel, await self._look_at(kernel), self.lan)

    async def look(self) -> str:
        """Which of our rules and routes are gone, and which of others stand in our table.

        Follows other networks, and tells of them and of another uplink.
        """
        async with self._repairing, self._kernel() as kernel:
            state = await self._look_at(kernel)
            lan = state.lan(self._settings.device)
            # With the earlier networks: rules for a new network are missing, but no program has removed them.
            compared = list(self._compare(state, self.lan))
            missing = [what for wanted, live in compared for what in wanted if what not in live]
            strange = [route for route in state.table if not route.is_ours]
            if lan != self.lan or any(set(live) - set(wanted) for wanted, live in compared):
                await self._repair(kernel, state, lan)
                self.lan = lan
        if lan != self._told:
            await self.lan_changed(lan)
            self._told = lan
        uplinks = {version: state.uplink(version, self._settings.device) for version in FAMILIES}
        moved = {
            version: found
            for version, found in uplinks.items()
            if found not in (None, self._uplinks[version])
        }
        if moved:
            self._uplinks |= moved
            self.uplink_changed()
        return ", ".join(filter(None, (_named(missing, "removed"), _named(strange, "added"))))

    async def put_back(self) -> None:
        """Set what is missing, delete what is not wanted. Raises CryprqError."""
        async with self._repairing, self._kernel() as kernel:
            await self._repair(kernel, await self._look_at(kernel), self.lan)

    async def _look_at(self, kernel: Any) -> KernelState:
        """What the kernel has, our device under its own name. With the name that another program has given it for a
        moment, its networks would be those of others."""
        state = await look_at(kernel)
        name = self._settings.device
        links = [link._replace(name=name) if link.device == self._device else link for link in state.links]
        return replace(state, links=links)

    def facts(self, exits: Callable[[], Collection[ExitEndpoint]]) -> Sequence[Fact]:
        return ForeignRules(lambda: rules_in_front(self._settings, exits())), self.valid_mark

    def _wanted_routes(self, state: KernelState, version: int) -> list[TableRoute]:
        return wanted_routes(version, state.device(self._settings.device), self._versions)

    def _compare(
        self, state: KernelState, lan: Lan
    ) -> Iterator[tuple[Sequence[RoutingRule | TableRoute], Sequence[RoutingRule | TableRoute]]]:
        """Pairs of wanted and present: rules and routes of each family."""
        for version in state.versions:
            yield wanted_rules(self._settings, lan, version), state.our_rules(version)
            yield self._wanted_routes(state, version), state.table_routes(version)

    async def _repair(self, kernel: Any, state: KernelState, lan: Lan) -> None:
        """Set what is missing and delete what is not wanted. Raises CryprqError."""
        steps: list[tuple[Any, str, RoutingRule | TableRoute]] = []
        for version in state.versions:
            routes, had_routes = self._wanted_routes(state, version), state.table_routes(version)
            rules, had_rules = wanted_rules(self._settings, lan, version), state.our_rules(version)
            steps += [(kernel.route, "replace", route) for route in routes if route not in had_routes]
            steps += [(kernel.route, "del", route) for route in had_routes if route not in routes]
            steps += [(kernel.rule, "add", rule) for rule in rules if rule not in had_rules]
            steps += [(kernel.rule, "del", rule) for rule in had_rules if rule not in rules]
        first: CryprqError | None = None
        for method, command, what in steps:
            try:
                await _do(method, command, what)
            except CryprqError as error:
                # Repair all that does not depend on it.
                first = first or error
        if first is not None:
            raise first


async def rules_in_front(settings: TunnelSettings, exits: Collection[ExitEndpoint]) -> str:
    """Which rules of other programs decide before ours, in words; empty if none does. Raises CryprqError."""
    async with open_kernel() as kernel:
        seen = await look_at(kernel)
    surroundings = Surroundings(
        seen.routes, seen.links, seen.addresses, settings.device, settings.mark, not settings.include
    )
    return decide_before_ours(seen.foreign, surroundings, {exit.address for exit in exits})


def undo_routing(entry: Entry) -> None:
    """Delete all rules and routes that are ours. Raises CryprqError."""
    if (entry.get("table"), entry.get("first"), entry.get("last")) != (TABLE, FIRST, LAST):
        raise CryprqError("the journal names a routing table or rules that are not ours")
    delete_ours()


def delete_ours() -> bool:
    """Delete all rules and routes that are ours, by their numbers. Needs no device. Returns whether there were any.

    May be called in a thread with a running loop; it blocks for some milliseconds. Raises CryprqError.
    """

    async def delete() -> bool:
        async with open_kernel() as kernel:
            return await _delete_ours(kernel)

    return in_own_loop(delete)


UNDO: Final[dict[str, Undoer]] = {KIND: undo_routing}


def _named(found: Sequence[RoutingRule | TableRoute], done: str) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(map(str, found[:_NAMED]))}{more} {done}" if found else ""


async def _do(method: Any, command: str, what: RoutingRule | TableRoute) -> None:
    """Set or delete a rule or route; no error if that is already done. Raises CryprqError."""
    try:
        await method(command, **what.arguments())
    except NetlinkError as error:
        if error.code not in _SETTLED[command]:
            raise refused("rules and routes", error) from error


def _refuse_others(state: KernelState) -> None:
    for rule, protocol in state.rules:
        if FIRST <= rule.priority <= LAST and protocol != RULE_PROTOCOL:
            raise ConfigError(
                f"another program has a routing rule with priority {rule.priority}, and {FIRST} to {LAST} are ours: "
                "remove it (`ip rule`, `ip -6 rule`)"
            )
    if any(route.is_ours for route in state.table):
        # Left by an earlier run, and so is the table.
        return
    for route in state.routes:
        if route.table == TABLE and route.protocol != RULE_PROTOCOL:
            raise ConfigError(
                f"another program has a route to {route.prefix} in routing table {TABLE}, which is ours: "
                f"remove it (`ip route show table {TABLE}`, also with -6)"
            )


async def _delete_ours(kernel: Any) -> bool:
    """Rules first, from the last to the first, so that no packet meets a table without routes. Returns whether there
    was anything. Raises CryprqError."""
    for number in range(_ROUNDS):
        state = await look_at(kernel)
        rules = [rule for version in state.versions for rule in state.our_rules(version)]
        # All of the table if any of it is ours.
        routes = state.table if number or rules or any(route.is_ours for route in state.table) else []
        if not rules and not routes:
            return number > 0
        for rule in reversed(rules):
            await _do(kernel.rule, "del", rule)
        for route in routes:
            await _do(kernel.route, "del", route)
    raise CryprqError(f"another program puts our routing rules back: stop it, then run `{to_run('cleanup')}`")
