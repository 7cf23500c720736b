"""What an exit sets in the kernel for its network interface, and keeps: table, routes, forwarding, device.

    up               table -> routes -> forwarding -> addresses and state of the device
    facts            what the reconciler looks after
    follow_uplinks   one task

The kernel forwards IPv4 that came in on a device whose own switch is on, so the switches of tunnel and uplink are kept,
beside the one for all. For IPv6 there is only the one for all.

A host may get its IPv6 default route long after the exit has started, by a router advertisement, and may lose it. The
exit carries IPv6 while there is one: the table lets it pass, the device has its address, and the clients are told. A
short loss is waited out, since new addresses at the clients end what goes on there.
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
from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.errors import CryprqError, reason_of

from ..device.kept import DeviceFact
from ..journal import Record
from ..reconciler import Fact
from ..routing.lan import Uplink
from ..settings import ExitNetworkSettings
from ..system import Withhold
from .device import Tun
from .firewall import nft
from .firewall.exit_table import ExitFilter
from .routing import pool_routes
from .routing.kernel_state import read_uplinks
from .routing.pool_routes import PoolRoutes
from .sysctl import FORWARD4, FORWARD6, LIBERAL, KernelSetting

_log = logging.getLogger(__name__)

MAX_GSO: Final = 65_536
"""The kernel's own limit for a super-packet."""
POLL_SECONDS: Final = 5.0
"""Between two looks at the uplinks where the kernel tells no changes, for instance without a free descriptor."""
LOSS_SECONDS: Final = 5.0
"""For which IPv6 is carried on without a default route."""


class ExitKernel:
    """All that stands in the kernel, made by `up`. The journal undoes it."""

    def __init__(
        self, settings: ExitNetworkSettings, tun: Tun, table: ExitFilter, routes: PoolRoutes, record: Record
    ) -> None:
        """For `up` only."""
        self.ipv6 = False
        """Whether IPv6 is carried."""
        self._settings = settings
        self._tun = tun
        self._table = table
        self._routes = routes
        self._connections = KernelSetting("connection tracking", "1", record)
        self._forwarding4 = KernelSetting("IPv4 forwarding", "1", record)
        self._forwarding6 = KernelSetting("IPv6 forwarding", "1", record)
        self._advertisements = KernelSetting("router advertisements", "2", record)
        self._lost_at = math.inf
        self._uplink4 = ""
        """The device of the last one."""

    @classmethod
    async def up(
        cls, settings: ExitNetworkSettings, tun: Tun, record: Record, *, recorded: Collection[str]
    ) -> Self:
        """Set all of it. `recorded`: the kinds of what stands in the journal already. Raises CryprqError."""
        uplinks = await read_uplinks(settings.device)
        uplink6 = uplinks[6]
        table = ExitFilter.up(settings, record, ipv6=uplink6 is not None, ours=nft.KIND in recorded)
        routes = PoolRoutes(settings)
        await routes.apply(record, ours=pool_routes.KIND in recorded)
        kernel = cls(settings, tun, table, routes, record)
        kernel._connections.keep(LIBERAL)
        kernel._forward4(uplinks[4])
        if uplink6 is not None:
            kernel._forward6(uplink6)
        kernel.ipv6 = await kernel._configure(ipv6=uplink6 is not None)
        return kernel

    def facts(self) -> list[Fact]:
        """What is to be kept."""
        return [
            self._table,
            self._routes,
            DeviceFact(self._tun, netlink_changes),
            self._connections,
            self._forwarding4,
            self._forwarding6,
            self._advertisements,
        ]

    async def close(self) -> None:
        """End what still works on it; then the journal can undo it. Nothing may be put back any more."""
        await self._table.close()

    def tell_of_table(self, withhold: Withhold) -> None:
        """As ExitFilter.tell."""
        self._table.tell(withhold)

    async def follow_uplinks(self, tell: Callable[[], None]) -> None:
        """Forward from the present uplinks, and carry IPv6 while there is one, until cancelled.

        `tell` is called after `ipv6` has changed.
        """
        clock = asyncio.get_running_loop().time
        changes, most = _listen()
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

    def _forward4(self, uplink: Uplink | None) -> None:
        """Let the kernel forward IPv4; without an uplink, from the earlier one."""
        if uplink is not None:
            self._uplink4 = uplink.name
        self._forwarding4.keep(*forwarding4(self._settings.device, self._uplink4))

    def _forward6(self, uplink: Uplink) -> None:
        """Let the kernel forward IPv6.

        A host that forwards IPv6 takes no more router advertisements, and so may lose its own default route, unless it
        is told to (accept_ra in ip-sysctl.rst).
        """
        self._advertisements.keep(advertisements(uplink.name))
        self._forwarding6.keep(FORWARD6)

    async def _configure(self, *, ipv6: bool) -> bool:
        """Give the device its addresses. Returns whether it has an IPv6 one."""
        # No caps: forwarded packets were made for other devices, and the kernel cuts a super-packet above a cap to
        # single packets. The lane sends a larger one in two pieces.
        addresses = list(own_addresses(self._settings, ipv6=ipv6))
        configured = await self._tun.configure(addresses, gso_max_size=MAX_GSO, gso_max_segs=MAX_GSO - 1)
        carried = ipv6 and len(configured) == len(addresses)
        self._routes.carry(ipv6=carried)
        return carried

    async def _check(self, now: float) -> bool:
        """Forward IPv4, and carry IPv6 if there is an uplink, and no longer if there was none for a while.

        Returns whether IPv6 has changed. Raises CryprqError.
        """
        uplinks = await read_uplinks(self._settings.device)
        self._forward4(uplinks[4])
        uplink = uplinks[6]
        if uplink is None:
            if not self.ipv6:
                return False
            self._lost_at = min(self._lost_at, now)
            return now >= self._lost_at + LOSS_SECONDS and await self._change(ipv6=False)
        self._lost_at = math.inf
        self._forward6(uplink)
        return not self.ipv6 and await self._change(ipv6=True)

    async def _change(self, *, ipv6: bool) -> bool:
        await self._table.follow(ipv6=ipv6)
        carried = await self._configure(ipv6=ipv6)
        self._lost_at = math.inf
        if carried == self.ipv6:
            return False
        self.ipv6 = carried
        _log.warning("IPv6 %s; the clients are told", "is here now" if carried else "is gone")
        return True


def _listen() -> tuple[Changes, float]:
    """What tells of changes, and the seconds after which it is looked without having been told."""
    try:
        return netlink_changes(), math.inf
    except OSError as error:
        _log.warning(
            "the kernel tells no changes (%s), so the exit's uplinks are looked at every %g s",
            reason_of(error),
            POLL_SECONDS,
        )
        return NoChanges(), POLL_SECONDS


def forwarding4(device: str, uplink: str) -> list[str]:
    """The switches of IPv4 that are kept at 1, for the tunnel's device and that of the uplink, which may be ""."""
    return [FORWARD4, *(f"net.ipv4.conf.{name}.forwarding" for name in (device, uplink) if name)]


def advertisements(uplink: str) -> str:
    """The setting of the uplink that is kept at 2."""
    return f"net.ipv6.conf.{uplink}.accept_ra"


def own_addresses(settings: ExitNetworkSettings, *, ipv6: bool) -> Iterator[IPv4Interface | IPv6Interface]:
    yield IPv4Interface((settings.own4, settings.pool4.prefixlen))
    if ipv6:
        yield IPv6Interface((settings.own6, settings.pool6.prefixlen))
