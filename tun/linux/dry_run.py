"""What a start would change on Linux: values, from the functions that a start calls. See tun/dry_run.py.

Only tables of the kernel and files that anybody may read are looked at, so root is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path
from typing import Any, Final

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.forwarder_port import FORWARDER_PORT

from ..device.offload import GSO_MAX_SEGS, GSO_MAX_SIZE
from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import NOT_KEPT
from ..resolver.left_alone import LeftAlone
from ..routing.lan import Uplink
from ..routing.tunnel_addresses import TunnelAddresses
from ..settings import MTU, RESOLVER4, RESOLVER6, ExitNetworkSettings, TunnelSettings
from ..system import Change, ResolverSetting
from . import sysctl
from .device import QUEUE
from .exit_kernel import MAX_GSO, advertisements, forwarding4, own_addresses
from .firewall import exit_table
from .firewall.client_table import script
from .firewall.lockdown import Lockdown
from .firewall.marks import FIRST_MARKS
from .firewall.nft import CLIENT, EXIT
from .firewall.open_connections import observe
from .resolver import choose, resolvconf_files, resolved
from .resolver.resolvconf_text import render
from .routing.kernel_state import FAMILIES, KernelState, look_at, open_kernel
from .routing.pool_routes import unreachable_routes
from .routing.route_rules import wanted_rules
from .routing.table_routes import wanted_routes
from .routing.words import route_words, rule_words

TAG: Final = "0" * 16
"""In place of the one that is drawn for a changed resolv.conf."""
_INDEX: Final = 0
"""In place of the number that the kernel gives to a device."""
_ENDS: Final = "ends with the program, however that ends"


async def client_changes(
    settings: TunnelSettings, closed: FilterSettings, addressed: FilterSettings
) -> list[Change]:
    """Raises CryprqError."""
    async with open_kernel() as kernel:
        state = await look_at(kernel)
    versions = _of_a_device(state.versions)
    if 6 not in versions:
        addressed = replace(addressed, tunnel6=None)
    resolver = await choose.find(_no_record, leave=settings.leave_resolver, state=settings.state)
    upstreams = [ip_address(server) for server in resolver.upstreams()]
    portal = tuple(address for address in upstreams if not address.is_link_local)
    filters = [
        closed,
        replace(closed, portal_resolvers=portal),
        replace(addressed, portal_resolvers=portal, dns_port=FORWARDER_PORT),
    ]
    tables = list(_tables(filters, keep_inbound=settings.keep_inbound))
    device = settings.device
    return [
        _made(device),
        *tables[:1],
        *_connections(settings),
        _up(device, GSO_MAX_SIZE, GSO_MAX_SEGS),
        *_sysctls({sysctl.VALID_MARK: "1"}),
        *_routing(settings, state, versions),
        *tables[1:-1],
        *_addresses(device, TunnelAddresses(addressed.tunnel4, addressed.tunnel6).interfaces()),
        *tables[-1:],
        *_resolver(resolver, device, settings.state, [RESOLVER4, *([RESOLVER6] if 6 in versions else [])]),
        *_lockdown(settings.state),
    ]


async def exit_changes(settings: ExitNetworkSettings) -> list[Change]:
    """Raises CryprqError."""
    async with open_kernel() as kernel:
        state = await look_at(kernel)
    device = settings.device
    uplinks = {version: state.uplink(version, device) for version in FAMILIES}
    ipv6 = uplinks[6] is not None
    table = Change("nft -f -", f"nft delete table inet {EXIT}", exit_table.script(settings, ipv6=ipv6))
    routes = unreachable_routes(settings, state.versions)
    return [
        _made(device),
        table,
        *(_route(route.arguments(), device, deleted=True) for route in routes),
        *_sysctls({sysctl.LIBERAL: "1"}),
        *_forwarding(device, uplinks),
        _up(device, MAX_GSO, MAX_GSO - 1),
        *_addresses(device, own_addresses(settings, ipv6=ipv6)),
    ]


def _no_record(entry: Mapping[str, object]) -> None:
    """Nothing is changed, so nothing is written down."""


# --- device ---


def _made(device: str) -> Change:
    return Change(f"ip tuntap add dev {device} mode tun", _ENDS)


def _up(device: str, size: int, segments: int) -> Change:
    what = (
        f"ip link set dev {device} addrgenmode none multicast off mtu {MTU} txqueuelen {QUEUE} "
        f"gso_max_size {size} gso_max_segs {segments} up"
    )
    return Change(what, _ENDS)


def _addresses(device: str, addresses: Iterable[IPv4Interface | IPv6Interface]) -> Iterator[Change]:
    for address in addresses:
        ip, nodad = ("ip -6", " nodad") if address.version == 6 else ("ip", "")
        yield Change(f"{ip} addr add {address} dev {device}{nodad}", _ENDS)


# --- packet filter ---


def _tables(filters: Sequence[FilterSettings], *, keep_inbound: bool) -> Iterator[Change]:
    """Each version of the client's table that differs from the one before it."""
    inbound = observe() if keep_inbound else NOT_KEPT
    before = ""
    for settings in filters:
        text = script(settings, inbound, marks=FIRST_MARKS)
        if text != before:
            yield Change("nft -f -", f"nft delete table inet {CLIENT}", text)
        before = text


def _connections(settings: TunnelSettings) -> Iterator[Change]:
    if settings.kill_switch:
        yield Change(
            "end the connections that are open now, but for those that the filter lets past (conntrack)",
            "programs open them anew",
        )


def _lockdown(state: Path) -> Iterator[Change]:
    lockdown = Lockdown(state)
    if leftovers.lockdown() or lockdown.on:
        yield Change(f"write the filter without addresses to {lockdown.file}", "stays, until lockdown is off")


# --- routes and settings of the kernel ---


def _routing(settings: TunnelSettings, state: KernelState, versions: Collection[int]) -> Iterator[Change]:
    lan = state.lan(settings.device)
    for version in state.versions:
        for route in wanted_routes(version, _INDEX, versions):
            # Those into the device end with it.
            yield _route(route.arguments(), settings.device, deleted=not route.hops)
        for rule in wanted_rules(settings, lan, version):
            yield Change(rule_words("add", rule.arguments()), rule_words("del", rule.arguments()))


def _route(arguments: Mapping[str, Any], device: str, *, deleted: bool) -> Change:
    undo = route_words("del", arguments, device) if deleted else "ends with the device"
    return Change(route_words("replace", arguments, device), undo)


def _of_a_device(versions: Iterable[int]) -> frozenset[int]:
    """Those of which a new device can have routes."""
    off = sysctl.before_a_start("net.ipv6.conf.default.disable_ipv6", "0") is not None
    return frozenset(version for version in versions if version == 4 or not off)


def _sysctls(wanted: Mapping[str, str]) -> Iterator[Change]:
    for name, value in wanted.items():
        if (before := sysctl.before_a_start(name, value)) is not None:
            yield Change(f"sysctl -w {name}={value}", f"sysctl -w {name}={before}, if it is {value} still")


def _forwarding(device: str, uplinks: Mapping[int, Uplink | None]) -> Iterator[Change]:
    """As ExitKernel.up: the switch for all sets those of the devices."""
    uplink4, uplink6 = uplinks[4], uplinks[6]
    switch, *of_devices = forwarding4(device, uplink4.name if uplink4 else "")
    if switched := list(_switched(switch)):
        yield from switched
    else:
        # A new device begins with the default.
        present = {name: name.replace(f".{device}.", ".default.") for name in of_devices}
        for name, read in present.items():
            if (before := sysctl.before_a_start(read, "1")) is not None:
                yield Change(f"sysctl -w {name}=1", f"sysctl -w {name}={before}, if it is 1 still")
    if uplink6 is not None:
        yield from _sysctls({advertisements(uplink6.name): "2"})
        yield from _switched(sysctl.FORWARD6)


def _switched(switch: str) -> Iterator[Change]:
    for change in _sysctls({switch: "1"}):
        yield change._replace(
            undo=f"{change.undo}; then the devices' own switches, and redirects, as they were"
        )


# --- resolver ---


def _resolver(
    setting: ResolverSetting, device: str, state: Path, asked_at: Sequence[IPv4Address | IPv6Address]
) -> Iterator[Change]:
    addresses = list(map(str, asked_at))
    if isinstance(setting, LeftAlone):
        return
    if isinstance(setting, resolved.Resolved):
        for call in resolved.calls(_INDEX, addresses):
            yield Change(f"systemd-resolved: {_in_words(call, device)}", _undo_in_words(call, device))
        return
    path = resolvconf_files.RESOLV_CONF
    backup = resolvconf_files.backup_of(state, TAG)
    kind = "link" if os.path.islink(path) else "file"
    content = resolvconf_files.content_of(path)
    yield Change(f"copy the {kind} {path} to {backup}", "removed at the end")
    yield Change(
        f"write {path}",
        f"put {backup} back, if {path} is ours still",
        render(addresses, content, TAG).decode("ascii"),
    )


def _in_words(call: resolved.Call, device: str) -> str:
    """With the name of the device in place of its number."""
    values = call.body[1:]
    if call.member == "SetLinkDNS":
        values = [str(ip_address(packed)) for _, packed in values[0]]
    elif call.member == "SetLinkDomains":
        values = [f"{'~' if routing else ''}{domain}" for domain, routing in values[0]]
    return " ".join(
        [call.member, *([device] if call.body else []), *(str(value).lower() for value in values)]
    )


def _undo_in_words(call: resolved.Call, device: str) -> str:
    return f"systemd-resolved: RevertLink {device}; ends with the device" if call.body else "nothing to undo"
