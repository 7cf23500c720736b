"""What an exit sets in the kernel for its network interface, and keeps: table, forwarding, device.

    up            table -> forwarding -> addresses and state of the device
    facts         what the reconciler looks after
    follow_ipv6   one task

A host may get its IPv6 default route long after the exit has started, by a router advertisement, and may lose it. The
exit carries IPv6 while there is one: the table lets it pass, the device has its address, and the clients are told. A
short loss is waited out, since new addresses at the clients end what goes on there.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final, Self

from cryprq_proxy.base.netlink_watch import Changes, pause
from cryprq_proxy.errors import CryprqError

from .device.kept import DeviceFact
from .device.linux import Tun
from .firewall.exit_table import ExitFilter
from .journal import Record
from .reconciler import Fact
from .routing.kernel_state import default_route
from .routing.lan import Uplink
from .settings import ExitNetworkSettings
from .sysctl import FORWARD4, FORWARD6, LIBERAL, KernelSetting

_log = logging.getLogger(__name__)

MAX_GSO: Final = 65_536
"""The kernel's own limit for a super-packet."""
LOSS_SECONDS: Final = 5.0
"""For which IPv6 is carried on without a default route."""


class ExitKernel:
    """All that stands in the kernel, made by `up`. The journal undoes it."""

    def __init__(self, settings: ExitNetworkSettings, tun: Tun, table: ExitFilter, record: Record) -> None:
        """For `up` only."""
        self.ipv6 = False
        """Whether IPv6 is carried."""
        self._settings = settings
        self._tun = tun
        self._table = table
        self._connections = KernelSetting("connection tracking", "1", record)
        self._forwarding4 = KernelSetting("IPv4 forwarding", "1", record)
        self._forwarding6 = KernelSetting("IPv6 forwarding", "1", record)
        self._advertisements = KernelSetting("router advertisements", "2", record)
        self._lost_at = math.inf

    @classmethod
    async def up(cls, settings: ExitNetworkSettings, tun: Tun, record: Record, *, ours: bool) -> Self:
        """Set all of it. `ours`: an older entry of the journal names the table. Raises CryprqError."""
        uplink6 = await default_route(6, settings.device)
        table = ExitFilter.up(settings, record, ipv6=uplink6 is not None, ours=ours)
        kernel = cls(settings, tun, table, record)
        kernel._connections.keep(LIBERAL)
        kernel._forwarding4.keep(FORWARD4)
        if uplink6 is not None:
            kernel._forward6(uplink6)
        kernel.ipv6 = await kernel._configure(ipv6=uplink6 is not None)
        return kernel

    def facts(self) -> list[Fact]:
        """What is to be kept."""
        return [
            self._table,
            DeviceFact(self._tun),
            self._connections,
            self._forwarding4,
            self._forwarding6,
            self._advertisements,
        ]

    async def follow_ipv6(self, tell: Callable[[], None]) -> None:
        """Carry IPv6 while there is an uplink, until cancelled. `tell` is called after `ipv6` has changed."""
        clock = asyncio.get_running_loop().time
        with Changes() as changes:
            while True:
                started = clock()
                try:
                    if await self._check_ipv6(started):
                        tell()
                except CryprqError as error:
                    _log.warning("IPv6 of the exit: %s", error)
                await asyncio.sleep(pause(clock() - started))
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(
                        None if self._lost_at == math.inf else self._lost_at + LOSS_SECONDS
                    ):
                        await changes.wait()

    def _forward6(self, uplink: Uplink) -> None:
        """Let the kernel forward IPv6.

        A host that forwards IPv6 takes no more router advertisements, and so may lose its own default route, unless it
        is told to (accept_ra in ip-sysctl.rst).
        """
        self._advertisements.keep(f"net.ipv6.conf.{uplink.name}.accept_ra")
        self._forwarding6.keep(FORWARD6)

    async def _configure(self, *, ipv6: bool) -> bool:
        """Give the device its addresses. Returns whether it has an IPv6 one."""
        # No caps: forwarded packets were made for other devices, and the kernel cuts a super-packet above a cap to
        # single packets. The lane sends a larger one in two pieces.
        addresses = list(_addresses(self._settings, ipv6=ipv6))
        configured = await self._tun.configure(addresses, gso_max_size=MAX_GSO, gso_max_segs=MAX_GSO - 1)
        return ipv6 and len(configured) == len(addresses)

    async def _check_ipv6(self, now: float) -> bool:
        """Carry IPv6 if there is an uplink, and no longer if there was none for a while.

        Returns whether that is a change. Raises CryprqError.
        """
        uplink = await default_route(6, self._settings.device)
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


def _addresses(settings: ExitNetworkSettings, *, ipv6: bool) -> Iterator[IPv4Interface | IPv6Interface]:
    yield IPv4Interface((settings.own4, settings.pool4.prefixlen))
    if ipv6:
        yield IPv6Interface((settings.own6, settings.pool6.prefixlen))
