"""Linux as the system of system-wide mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Final, cast

from cryprq_proxy.base import forwarder_port, leftovers, linux_marks
from cryprq_proxy.base.forwarder_port import FORWARDER_PORT
from cryprq_proxy.base.netlink_watch import filter_changes, netlink_changes
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import ConfigError

from .. import system
from ..firewall.filter_rules import FilterRules
from ..firewall.filter_settings import Cgroup, FilterSettings
from ..firewall.inbound import Inbound
from ..journal import Record, Undoer
from ..routing.address_pool import Occupied
from ..routing.lan import Lan
from ..settings import MARK, MTU, ExitNetworkSettings, TunnelSettings
from ..system import (
    Change,
    Device,
    ExitSide,
    LanChanged,
    LetOut,
    PacketFilter,
    ResolverSetting,
    Routing,
    System,
    Undo,
)
from . import dry_run, sysctl
from .capture import LINUX_LEAK_TEST
from .device import Tun
from .exit_kernel import ExitKernel
from .firewall import exit_table, nft
from .firewall.cgroups import check_cgroups, parts_of, present
from .firewall.filter import Filter
from .firewall.lockdown import Lockdown, forget_mark
from .firewall.open_connections import observe
from .locked import let_out
from .resolver import choose, recovery
from .routing import pool_routes, routes
from .routing.kernel_state import read_lan, read_occupied
from .routing.routes import Routes

_log = logging.getLogger(__name__)


class Linux(System):
    """Linux, in this thread's network namespace."""

    name = "Linux"
    proved = True
    mark = MARK
    link_changes = staticmethod(netlink_changes)
    filter_changes = staticmethod(filter_changes)
    leak_test = LINUX_LEAK_TEST

    # --- the client ---

    def refuse(self, settings: TunnelSettings, rules: FilterRules) -> None:
        for path in settings.exclude_cgroups:
            parts_of(path)

    def prepare(self, settings: TunnelSettings) -> None:
        check_cgroups(settings.exclude_cgroups)
        if why := forwarder_port.open_to_all():
            _log.warning("%s; only root may after: %s", why, forwarder_port.PROTECT)

    def open_device(self, settings: TunnelSettings | ExitNetworkSettings) -> Device:
        return Tun.open(settings.device, mtu=MTU, offload=settings.offload)

    async def read_lan(self, own: str) -> Lan:
        return await read_lan(own)

    def read_inbound(self) -> Inbound:
        return observe()

    def routing(
        self, settings: TunnelSettings, versions: frozenset[int], record: Record, lan_changed: LanChanged
    ) -> Routing:
        return Routes(settings, versions, record, lan_changed)

    async def resolver(self, record: Record, *, leave: bool, state: Path) -> ResolverSetting:
        return await choose.choose(record, leave=leave, state=state)

    def packet_filter(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool
    ) -> PacketFilter:
        return Filter.up(settings, record, ours=ours, keep_inbound=keep_inbound)

    def filter_left(self, *, recorded: bool) -> bool:
        return nft.exists(nft.CLIENT) and (recorded or nft.is_left_over(nft.CLIENT))

    has_lockdown = True

    def lockdown(self, state: Path) -> system.LockdownBlock:
        return Lockdown(state)

    def lift_lockdown(self, state: Path) -> str:
        marked = leftovers.lockdown()
        was_on = Lockdown(state).turn_off()
        if marked:
            forget_mark()
        return "lockdown" if was_on or marked else ""

    def cgroups(self, paths: Sequence[str]) -> frozenset[Cgroup]:
        return present(paths)

    def forwarder_places(
        self, addresses: Sequence[IPv4Interface | IPv6Interface]
    ) -> tuple[Sequence[str], int]:
        return [str(interface.ip) for interface in addresses], FORWARDER_PORT

    # --- the exit ---

    async def read_occupied(self, own: str) -> Occupied:
        return await read_occupied(own)

    async def exit_side(
        self, settings: ExitNetworkSettings, device: Device, record: Record, *, recorded: Collection[str]
    ) -> ExitSide:
        return await ExitKernel.up(settings, cast(Tun, device), record, recorded=recorded)

    def exit_warnings(self, settings: ExitNetworkSettings) -> Sequence[str]:
        return exit_table.warnings(settings.device)

    # --- dry run ---

    async def client_changes(
        self, settings: TunnelSettings, closed: FilterSettings, addressed: FilterSettings
    ) -> Sequence[Change]:
        return await dry_run.client_changes(settings, closed, addressed)

    async def exit_changes(self, settings: ExitNetworkSettings) -> Sequence[Change]:
        return await dry_run.exit_changes(settings)

    # --- undo, leak test ---

    def undo(self, role: Role, state: Path) -> Undo:
        make: Callable[[Path], Undo] = _UNDO[role]
        return make(state)

    def let_out(self) -> LetOut:
        return let_out()


def _undo_of_client(state: Path) -> Undo:
    lockdown = Lockdown(state)
    undoers: Mapping[str, Undoer] = {
        **lockdown.undoers(),
        **sysctl.UNDO,
        **routes.UNDO,
        **choose.undoers(state=state),
    }
    return Undo(
        undoers,
        filter=nft.KIND,
        routes=routes.KIND,
        by_mark=(partial(_undo_resolver, state), _undo_routing, partial(_undo_filter, lockdown)),
        stands=linux_marks.has_header,
        lost=partial(sysctl.lost_settings, nft.CLIENT),
        settings=sysctl.KIND,
    )


def _undo_of_exit(state: Path) -> Undo:
    return Undo(
        {**nft.UNDO, **pool_routes.UNDO, **sysctl.UNDO},
        filter=nft.KIND,
        routes=pool_routes.KIND,
        by_mark=(_undo_pool_routes, partial(_remove_table, nft.EXIT)),
        stands=lambda: False,
        lost=partial(sysctl.lost_settings, nft.EXIT),
        settings=sysctl.KIND,
    )


_UNDO: Final[Mapping[Role, Callable[[Path], Undo]]] = {"client": _undo_of_client, "exit": _undo_of_exit}


def _undo_resolver(state: Path) -> str:
    source = recovery.recover(state)
    return f"resolv.conf (from {source})" if source else ""


def _undo_routing() -> str:
    return "routing" if routes.delete_ours() else ""


def _undo_pool_routes() -> str:
    return "routes to clients" if pool_routes.delete_pool_routes() else ""


def _undo_filter(lockdown: Lockdown) -> str:
    if lockdown.on:
        lockdown.stand()
        return ""
    if leftovers.lockdown():
        # Its file is elsewhere, or somebody has removed it by hand.
        raise ConfigError(
            f"lockdown is on, so the packet filter stands, but {lockdown.file} is not there: name its directory with "
            "--state-dir, or lift the block with --all"
        )
    return _remove_table(nft.CLIENT)


def _remove_table(table: str) -> str:
    if not nft.exists(table):
        return ""
    nft.remove(table)
    return f"table {table}"
