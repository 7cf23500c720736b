"""The network interface of a running tunnel: device, forwarder, routes and system resolver, on the exit's addresses.

    addresses -> forwarder, its servers -> filter -> routes -> packets -> system resolver -> reconciler

Device and routes stand already: they hold everything in from the start. `TunInterface.start` sets up the rest in this
order, and `close` takes it down in reverse. Routes and resolver stand in the journal, whose owner undoes them. The exit
may hand out other addresses at any time, and the lane may take packets of another size: one task follows both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from msgspec import structs

from cryprq_proxy.address import OWN_NAME
from cryprq_proxy.base.buffers import SHARED
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.lane.train import PacketTrain
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.errors import CryprqError, reason_of
from cryprq_proxy.lane.slices import Run
from cryprq_proxy.rules.lists import ListedNames
from cryprq_proxy.status import Traffic, TunStatus

from .device.coalesce import UdpJoiner
from .device.kept import DeviceFact
from .dns.blocklist import load
from .dns.forwarder import Forwarder
from .dns.server import DnsServer
from .dns.setup import build
from .firewall.kill_switch import KillSwitch
from .firewall.own_page import OwnPage, ServePage
from .reconciler import Reconciler
from .routing.lan import Lan
from .routing.tunnel_addresses import TunnelAddresses
from .settings import MIN_MTU, MTU, RESOLVER4, RESOLVER6, SLICE_OVERHEAD, TunnelSettings
from .system import Device, ResolverSetting, Routing, System

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
MAX_RETRY_SECONDS: Final = 60.0
"""After something could not follow the exit, until it is tried again; twice as long each time, as setting the resolver
may add a line to the journal each time."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """What stands before the link is up, and what the interface is built on."""

    system: System
    settings: TunnelSettings
    kill_switch: KillSwitch
    resolver: ResolverSetting
    device: Device
    """Up, without addresses, and not read yet."""
    routes: Routing


type WriteRun = Callable[[memoryview, int, int, Run], bool]
"""As PacketDevice.write_run."""


def _dropped(buffer: memoryview, start: int, end: int, run: Run) -> bool:
    return False


class NoInterface:
    """In place of a TunInterface while there is none: packets are dropped, and nothing follows."""

    def __init__(self) -> None:
        self.write_run: WriteRun = _dropped

    def offer(self, addresses: TunnelAddresses) -> None: ...
    def link_changed(self, up: bool) -> None: ...
    def lane_changed(self) -> None: ...
    def block(self, names: ListedNames) -> None: ...

    async def open_page(self, serve: ServePage) -> int:
        """Let our own page be there for so many seconds as are returned. Raises CryprqError."""
        raise CryprqError("system-wide mode is not up yet: wait for the link, then call it again")

    def status(self) -> TunStatus:
        """The interface's part of it."""
        return TunStatus()

    def traffic(self) -> Traffic:
        return Traffic()


class TunInterface(NoInterface):
    """A running interface, made by `start`; `close` ends it."""

    def __init__(
        self,
        foundation: Foundation,
        link: Exits,
        names: Names,
        offered: TunnelAddresses,
        addresses: TunnelAddresses,
        stack: AsyncExitStack,
    ) -> None:
        """`addresses` are those of `offered` that this kernel has taken. `stack` undoes what stands already."""
        super().__init__()
        self.write_run = foundation.device.write_run
        self._foundation = foundation
        self._link = link
        self._device = foundation.device
        self._names = names
        self._offered = offered
        self._addresses = addresses
        self._ipv6_here = addresses == offered
        self._asked_at = resolver_addresses(addresses)
        self._stack = stack
        self._page = OwnPage(names.forwarder, foundation.kill_switch)
        self._changed = asyncio.Event()
        self._reconciler = Reconciler(
            [DeviceFact(foundation.device, foundation.system.link_changes), foundation.resolver]
        )
        self._following = spawn(self._follow(), "tunnel interface")
        self.lane_changed()

    @classmethod
    async def start(
        cls,
        foundation: Foundation,
        link: Exits,
        offered: TunnelAddresses,
        lost: Callable[[OSError], None],
    ) -> TunInterface:
        """Route everything into the tunnel. `offered` has an IPv4 address.

        `lost` is called once, when another program has removed the device. Raises CryprqError; then device and
        forwarder are gone, and the filter still stands.
        """
        device, routes, kill_switch = foundation.device, foundation.routes, foundation.kill_switch
        async with AsyncExitStack() as stack:
            stack.callback(device.close)
            configured = await device.configure(offered.interfaces())
            addresses = offered if len(configured) == len(offered.interfaces()) else offered.without_ipv6()
            names = await Names.read(foundation, link, addresses)
            stack.callback(names.close)
            await names.listen(addresses)
            await kill_switch.follow_addresses(addresses, names.server.port)

            async def follow_lan(lan: Lan) -> None:
                before = kill_switch.collisions()
                await kill_switch.follow_lan(lan)
                if set(kill_switch.collisions()) - set(before):
                    # The exit hands out addresses with each carrier, and then they are judged.
                    link.redial()

            routes.lan_changed = follow_lan
            routes.uplink_changed = link.redial
            await routes.carry(addresses.versions)
            joiner = UdpJoiner(link.send_packet)
            train = SHARED.one(PacketTrain)

            def drained() -> None:
                joiner.flush()
                train.flush()

            on_packet = foundation.system.on_packet(names.forwarder, device, joiner.packet)
            device.start(asyncio.get_running_loop(), on_packet, drained, lost)
            stack.push_async_callback(foundation.resolver.close)
            await set_resolver(foundation, resolver_addresses(addresses))
            return cls(foundation, link, names, offered, addresses, stack.pop_all())

    async def close(self) -> None:
        """Restore and follow nothing any more, then end forwarder and device."""
        await self._reconciler.stop()
        self._following.cancel()
        await asyncio.wait([self._following])
        await self._page.close()
        await self._stack.aclose()

    # --- what changes while it runs ---

    def offer(self, addresses: TunnelAddresses) -> None:
        """The exit hands out these addresses, perhaps others than before."""
        if addresses.ipv4 is None:
            _log.error("the exit carries no packets any more; its log says why")
            return
        self._offered = addresses
        self._changed.set()

    def link_changed(self, up: bool) -> None:
        if up:
            self._names.forwarder.link_restored()
        else:
            self._names.forwarder.link_lost()

    def lane_changed(self) -> None:
        """The link's `lane_size` may be another."""
        self._changed.set()

    def block(self, names: ListedNames) -> None:
        """The forwarder blocks these names from now on, and no others."""
        self._names.forwarder.block(names)

    async def open_page(self, serve: ServePage) -> int:
        if not self._foundation.system.has_own_page:
            raise CryprqError(
                f"{OWN_NAME} is not there in system-wide mode on {self._foundation.system.name}: open the dashboard"
            )
        return await self._page.open(serve)

    async def _follow(self) -> None:
        told, wait = "", RETRY_SECONDS
        while True:
            await self._changed.wait()
            self._changed.clear()
            failed = ""
            for change in (self._readdress, self._resize):
                try:
                    await change()
                except CryprqError as error:
                    failed = str(error)
            if failed:
                if failed != told:
                    _log.error("the tunnel could not follow the exit, and tries again: %s", failed)
                asyncio.get_running_loop().call_later(wait, self._changed.set)
            told, wait = failed, min(2 * wait, MAX_RETRY_SECONDS) if failed else RETRY_SECONDS

    async def _readdress(self) -> None:
        """Another exit, or one that was started anew with another pool, hands out other addresses.

        After a failure anywhere all of it is done again.
        """
        addresses = self._offered if self._ipv6_here else self._offered.without_ipv6()
        before = self._addresses
        if addresses == before:
            return
        self._names.server.close()
        self._names.forwarder.offer_ipv6(addresses.ipv6 is not None)
        await self._device.configure(addresses.interfaces())
        await self._foundation.routes.carry(addresses.versions)
        await self._names.listen(addresses)
        await self._foundation.kill_switch.follow_addresses(addresses, self._names.server.port)
        asked_at = resolver_addresses(addresses)
        if asked_at != self._asked_at:
            await set_resolver(self._foundation, asked_at)
            self._asked_at = asked_at
        self._addresses = addresses
        if addresses.ipv4 == before.ipv4:
            _log.info("the exit carries %s", "no IPv6 any more" if addresses.ipv6 is None else "IPv6 now")
        else:
            _log.warning("the exit handed out other addresses: connections through the tunnel end")

    async def _resize(self) -> None:
        """Make packets as large as the lane takes them whole; smaller than MIN_MTU they are cut instead."""
        size = self._link.lane_size
        mtu = MTU if size is None else max(MIN_MTU, min(MTU, size - SLICE_OVERHEAD))
        if mtu != self._device.mtu:
            await self._device.set_mtu(mtu)

    def traffic(self) -> Traffic:
        return self._device.traffic()

    def status(self) -> TunStatus:
        resolver = self._foundation.resolver
        dns = self._names.forwarder.status()
        return TunStatus(
            device=self._device.status(),
            addresses=tuple(str(interface.ip) for interface in self._addresses.interfaces()),
            ipv6=self._addresses.ipv6 is not None,
            dns=structs.replace(dns, resolver=resolver.kind),
            repairs=self._reconciler.status(),
        )


class Names:
    """The forwarder, and the server where it is asked, on each address of the tunnel."""

    def __init__(self, system: System, forwarder: Forwarder) -> None:
        self._system = system
        self.forwarder = forwarder
        self.server = DnsServer(forwarder)

    @classmethod
    async def read(cls, foundation: Foundation, link: Exits, addresses: TunnelAddresses) -> Names:
        """Read the blocklists and make the forwarder. Raises CryprqError."""
        dns = foundation.settings.dns
        dns = replace(dns, ipv6=dns.ipv6 and addresses.ipv6 is not None)
        blocklist = await read_blocked(dns.blocklists, dns.block, dns.allow)
        forwarder = build(
            dns,
            resolver=link.open_resolver,
            connect=link.open,
            mark=foundation.system.mark,
            blocklist=blocklist,
            also_blocks=lambda name: foundation.kill_switch.policy.blocks(name),
        )
        return cls(foundation.system, forwarder)

    async def listen(self, addresses: TunnelAddresses) -> None:
        """Answer for a device with these addresses. Raises ConfigError where another program has the port."""
        await self.server.listen(*self._system.forwarder_places(addresses.interfaces()))

    def close(self) -> None:
        self.server.close()
        self.forwarder.close()


async def read_blocked(blocklists: Sequence[Path], block: Sequence[str], allow: Sequence[str]) -> ListedNames:
    """The names that the forwarder blocks; says what is wrong in the files. Raises ConfigError."""
    names = await asyncio.get_running_loop().run_in_executor(None, load, blocklists, block, allow)
    for problem in names.problems:
        _log.warning("blocklist: %s", problem)
    return names


def resolver_addresses(addresses: TunnelAddresses) -> list[str]:
    """Where the system asks for names, over each family that the exit carries."""
    return [str(RESOLVER4), *([] if addresses.ipv6 is None else [str(RESOLVER6)])]


async def set_resolver(foundation: Foundation, asked_at: Sequence[str]) -> None:
    """Raises CryprqError, also while another program has renamed the device."""
    device = foundation.settings.device
    try:
        index = foundation.device.index()
    except OSError as error:
        raise CryprqError(f"the system's resolver is not set: {device}: {reason_of(error)}") from error
    await foundation.resolver.set(asked_at, index, device)
