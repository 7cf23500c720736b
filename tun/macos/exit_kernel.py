"""What an exit sets in the kernel of macOS for its network interface, and keeps: rules, routes, forwarding, device.

    up               rules of pf -> routes that refuse -> forwarding -> addresses of the device -> routes into it
    facts            what the reconciler looks after
    follow_uplinks   one task

A host may get its IPv6 default route long after the exit has started, and may lose it. The exit carries IPv6 while
there is one: the rules let it pass, the device has its address, and the clients are told. A short loss is waited out,
since new addresses at the clients end what goes on there. The rules name this machine's addresses, so they follow each
change of them.

Not yet run on a Mac. Not known from the documentation: whether a Mac that forwards IPv6 goes on taking the router
advertisements that its own default route comes from.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final, Self

from cryprq_proxy.base.changes import Changes, NoChanges, pause
from cryprq_proxy.base.route_socket import route_changes
from cryprq_proxy.errors import CryprqError, reason_of

from ..device.kept import DeviceFact
from ..journal import Record, Undoer
from ..reconciler import Fact
from ..routing.address_pool import Occupied
from ..settings import ExitNetworkSettings
from ..system import Device, Withhold
from . import networks, pfctl, sysctl, wanted_routes
from .exit_filter import MacExitFilter
from .exit_routes import MacPoolRoutes
from .exit_rules import view_of
from .networks import MacState
from .programs import Run, run
from .sysctl import FORWARD4, FORWARD6, MacSetting

_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 5.0
"""Between two looks at the uplinks where the kernel tells no changes."""
LOSS_SECONDS: Final = 5.0
"""For which IPv6 is carried on without a default route."""

type OpenChanges = Callable[[], Changes]


class MacExitKernel:
    """All that stands in the kernel, made by `up`. The journal undoes it."""

    def __init__(
        self,
        settings: ExitNetworkSettings,
        device: Device,
        table: MacExitFilter,
        record: Record,
        run: Run,
        changes: OpenChanges,
    ) -> None:
        """For `up` only."""
        self.ipv6 = False
        """Whether IPv6 is carried."""
        self._settings = settings
        self._device = device
        self._table = table
        self._run = run
        self._changes = changes
        self._routes = MacPoolRoutes(settings, record, run)
        self._forwarding4 = MacSetting("IPv4 forwarding", record, run)
        self._forwarding6 = MacSetting("IPv6 forwarding", record, run)
        self._lost_at = math.inf

    @classmethod
    async def up(
        cls,
        settings: ExitNetworkSettings,
        device: Device,
        record: Record,
        *,
        recorded: Collection[str],
        run: Run = run,
        changes: OpenChanges = route_changes,
    ) -> Self:
        """Set all of it. `recorded`: the kinds of what stands in the journal already. `changes` tells of changes of
        interfaces, addresses and routes. Raises CryprqError."""
        state = await asyncio.to_thread(networks.look, run)
        ipv6 = _has_uplink(state, 6, settings.device)
        view = view_of(state, settings.device)
        table = await MacExitFilter.up(
            settings, view, record, ipv6=ipv6, ours=pfctl.KIND in recorded, run=run
        )
        kernel = cls(settings, device, table, record, run, changes)
        await kernel._routes.apply()
        await kernel._forwarding4.keep(FORWARD4)
        if ipv6:
            await kernel._forwarding6.keep(FORWARD6)
        kernel.ipv6 = await kernel._configure(ipv6=ipv6)
        return kernel

    def facts(self) -> list[Fact]:
        """What is to be kept."""
        return [
            self._table,
            self._routes,
            DeviceFact(self._device, self._changes),
            self._forwarding4,
            self._forwarding6,
        ]

    async def close(self) -> None:
        """End what still works on it; then the journal can undo it. Nothing may be put back any more."""

    def tell_of_table(self, withhold: Withhold) -> None:
        """As MacExitFilter.tell."""
        self._table.tell(withhold)

    async def follow_uplinks(self, tell: Callable[[], None]) -> None:
        """Follow the addresses of this machine, and carry IPv6 while there is an uplink, until cancelled.

        `tell` is called after `ipv6` has changed.
        """
        clock = asyncio.get_running_loop().time
        changes, most = self._listen()
        with changes:
            while True:
                started = clock()
                try:
                    if await self._check(started):
                        tell()
                except CryprqError as error:
                    _log.warning("the exit cannot follow its uplinks: %s", error)
                await asyncio.sleep(pause(clock() - started))
                until = min(self._lost_at + LOSS_SECONDS, clock() + most)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(None if until == math.inf else until):
                        await changes.wait()

    def _listen(self) -> tuple[Changes, float]:
        """What tells of changes, and the seconds after which it is looked without having been told."""
        try:
            return self._changes(), math.inf
        except OSError as error:
            _log.warning(
                "the kernel tells no changes (%s), so the exit's uplinks are looked at every %g s",
                reason_of(error),
                POLL_SECONDS,
            )
            return NoChanges(), POLL_SECONDS

    async def _configure(self, *, ipv6: bool) -> bool:
        """Give the device its addresses and the routes into it. Returns whether it has an IPv6 one."""
        addresses = list(_addresses(self._settings, ipv6=ipv6))
        configured = await self._device.configure(addresses)
        carried = ipv6 and len(configured) == len(addresses)
        await self._routes.carry(ipv6=carried)
        return carried

    async def _check(self, now: float) -> bool:
        """Follow this machine's addresses, and carry IPv6 if there is an uplink, and no longer if there was none for a
        while.

        Returns whether IPv6 has changed. Raises CryprqError.
        """
        state = await asyncio.to_thread(networks.look, self._run)
        await self._table.follow(view_of(state, self._settings.device), ipv6=self.ipv6)
        if not _has_uplink(state, 6, self._settings.device):
            if not self.ipv6:
                return False
            self._lost_at = min(self._lost_at, now)
            return now >= self._lost_at + LOSS_SECONDS and await self._change(state, ipv6=False)
        self._lost_at = math.inf
        await self._forwarding6.keep(FORWARD6)
        return not self.ipv6 and await self._change(state, ipv6=True)

    async def _change(self, state: MacState, *, ipv6: bool) -> bool:
        await self._table.follow(view_of(state, self._settings.device), ipv6=ipv6)
        carried = await self._configure(ipv6=ipv6)
        self._lost_at = math.inf
        if carried == self.ipv6:
            return False
        self.ipv6 = carried
        _log.warning("IPv6 %s; the clients are told", "is here now" if carried else "is gone")
        return True


def _has_uplink(state: MacState, version: int, device: str) -> bool:
    """Whether clients' packets can leave: a default route, and an address for them."""
    route = state.default(version, device)
    return route is not None and any(
        one.interface == route.interface and one.address.version == version
        for one in view_of(state, device).outward
    )


def _addresses(settings: ExitNetworkSettings, *, ipv6: bool) -> Iterator[IPv4Interface | IPv6Interface]:
    """Alone: the routes to the pool are ours, not those of an address."""
    yield IPv4Interface(settings.own4)
    if ipv6:
        yield IPv6Interface(settings.own6)


async def read_occupied(own: str, run: Run = run) -> Occupied:
    """What addresses are in use on and around this machine, but for the device `own`, what the kernel makes of its
    addresses, and routes that refuse, as an earlier exit's do. Raises CryprqError."""
    state = await asyncio.to_thread(networks.look, run)
    return Occupied(
        networks.networks_of(state.interfaces, own),
        tuple(
            route.prefix
            for route in state.routes
            if route.interface != own and not (route.scoped or route.cloned or "R" in route.flags)
        ),
    )


def undoers(run: Run = run) -> dict[str, Undoer]:
    """By the kind of the entry in the exit's journal. Make them anew for each undo."""
    return {**pfctl.undoers(run), **wanted_routes.undoers(run), **sysctl.undoers(run)}
