"""macOS as the system of system-wide mode."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.base.paths import Role
from cryprq_proxy.base.route_socket import route_changes
from cryprq_proxy.errors import ConfigError

from ..device.device import OnPacket
from ..firewall.filter_rules import FilterRules
from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import Inbound
from ..journal import Record, Undoer
from ..routing.address_pool import Occupied
from ..routing.lan import Lan
from ..settings import MTU, RESOLVER4, RESOLVER6, ExitNetworkSettings, TunnelSettings
from ..system import (
    Change,
    Device,
    ExitSide,
    LanChanged,
    PacketFilter,
    ResolverSetting,
    Routing,
    System,
    Undo,
)
from . import exit_kernel, exit_routes, networks, pfctl, rehearsal, resolver, sysctl, wanted_routes
from .capture import MACOS_LEAK_TEST
from .device import OpenControl, Utun, open_control
from .exit_kernel import MacExitKernel
from .filter import PfFilter
from .loopback import Loopback
from .open_connections import observe
from .pf_rules import NO_CGROUPS
from .programs import Run, run
from .routing import MacRoutes

if TYPE_CHECKING:
    from ..dns.forwarder import Forwarder

_DEVICE: Final = "utun"
"""The next free one."""
_PORT: Final = 53
_ALIASES: Final = (IPv4Interface(RESOLVER4), IPv6Interface(RESOLVER6))
"""Addresses of the client's device, at which programs ask the forwarder for names."""
_TAKES_OVER_NONE: Final = ""
"""No kind of entry: a start undoes the routes of a killed run, and the packet filter holds everything in meanwhile."""


class MacOS(System):
    """macOS. `run` runs its programs, `control` makes the device."""

    name = "macOS"
    mark = 0
    link_changes = staticmethod(route_changes)
    filter_changes = NoChanges
    leak_test = MACOS_LEAK_TEST
    has_own_page = False
    unseen = "without root pfctl tells nothing, so pf is taken to be as macOS delivers it"

    def __init__(self, run: Run = run, control: OpenControl = open_control) -> None:
        self._run = run
        self._control = control

    # --- the client ---

    def open_device(self, settings: TunnelSettings | ExitNetworkSettings) -> Device:
        aliases = _ALIASES if isinstance(settings, TunnelSettings) else ()
        return Utun.open(_DEVICE, mtu=MTU, aliases=aliases, run=self._run, control=self._control)

    async def read_lan(self, own: str) -> Lan:
        return (await asyncio.to_thread(networks.look, self._run)).lan(own)

    def routing(
        self, settings: TunnelSettings, versions: frozenset[int], record: Record, lan_changed: LanChanged
    ) -> Routing:
        return MacRoutes(settings, versions, record, lan_changed, self._run)

    async def resolver(self, record: Record, *, leave: bool, state: Path) -> ResolverSetting:
        return await resolver.choose(record, leave=leave, run=self._run)

    def forwarder_places(
        self, addresses: Sequence[IPv4Interface | IPv6Interface]
    ) -> tuple[Sequence[str], int]:
        versions = {interface.version for interface in addresses}
        return [str(alias.ip) for alias in _ALIASES if alias.version in versions], _PORT

    def refuse(self, settings: TunnelSettings, rules: FilterRules) -> None:
        if settings.exclude_cgroups:
            raise ConfigError(NO_CGROUPS)

    def read_inbound(self) -> Inbound:
        return observe(self._run)

    def packet_filter(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool
    ) -> PacketFilter:
        return PfFilter.up(settings, record, ours=ours, keep_inbound=keep_inbound, run=self._run)

    def filter_left(self, *, recorded: bool) -> bool:
        return bool(pfctl.loaded(pfctl.ANCHORS["client"], self._run))

    def on_packet(self, forwarder: Forwarder, device: Device, then: OnPacket) -> OnPacket:
        # Loaded late: an exit needs none of it.
        from ..dns.packet_server import PacketDnsServer

        assert isinstance(device, Utun)
        return PacketDnsServer(forwarder, device, Loopback(device, then).packet).packet

    # --- the exit ---

    async def read_occupied(self, own: str) -> Occupied:
        return await exit_kernel.read_occupied(own, self._run)

    async def exit_side(
        self, settings: ExitNetworkSettings, device: Device, record: Record, *, recorded: Collection[str]
    ) -> ExitSide:
        return await MacExitKernel.up(settings, device, record, recorded=recorded, run=self._run)

    # --- dry run ---

    async def client_changes(
        self, settings: TunnelSettings, closed: FilterSettings, addressed: FilterSettings
    ) -> Sequence[Change]:
        return await rehearsal.client_changes(self._run, MacOS, settings, closed, addressed)

    async def exit_changes(self, settings: ExitNetworkSettings) -> Sequence[Change]:
        return await rehearsal.exit_changes(self._run, MacOS, settings)

    # --- undo ---

    def undo(self, role: Role, state: Path) -> Undo:
        undoers: Mapping[str, Undoer] = {
            **pfctl.undoers(self._run),
            **wanted_routes.undoers(self._run),
            **sysctl.undoers(self._run),
            **resolver.undoers(self._run),
        }
        by_mark = [partial(self._flush, role)]
        if role == "client":
            by_mark.insert(0, partial(resolver.take_away_left, self._run))
        else:
            by_mark.insert(0, partial(exit_routes.delete_left, self._run))
        return Undo(
            undoers,
            filter=pfctl.KIND,
            routes=wanted_routes.KIND if role == "exit" else _TAKES_OVER_NONE,
            by_mark=by_mark,
            stands=lambda: False,
            lost=self._lost if role == "exit" else lambda known: "",
            settings=sysctl.KIND,
        )

    def _flush(self, role: Role) -> str:
        anchor = pfctl.ANCHORS[role]
        if not pfctl.loaded(anchor, self._run):
            return ""
        pfctl.flush(anchor, self._run)
        return f"the packet filter's anchor {anchor}"

    def _lost(self, known: Collection[str]) -> str:
        return sysctl.lost_settings(known, self._run)
