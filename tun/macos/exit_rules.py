"""The text of the exit's anchor in pf: where packets of clients go, and the address that they go out with.

    scrub      TCP through the device gets segments that fit into it
    nat        a client's packets leave with the address of the interface that they leave by
    in         from clients: outwards only, not to other clients, to the exit itself only a ping of its tunnel address
    out        to clients: answers only; and never a packet from or to the pool by another device, not translated

It is equal in meaning to Linux's table (tun/linux/firewall/exit_table.py). What is different follows from pf: rules see
the addresses behind the translation when a packet leaves, an interface's translation needs its address, and whether
something is an answer is told by the state that the client's packet has made. pf has no word for "every address of this
machine", so they stand in the rules, and the text is written anew when they change.

All rules judge what comes from or goes to our device, or to the pool; the rest is the host's own matter.

Not yet run on a Mac; written from pf.conf(5) of macOS, whose syntax is that of OpenBSD 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork

from ..settings import MTU, ExitNetworkSettings
from .asked import FIRST
from .networks import Address, MacState

MAX_ADDRESSES: Final = 256
"""Addresses of this machine that rules are made for."""
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,14}")
_FAMILY: Final = {4: "inet", 6: "inet6"}
_ECHO: Final = {4: "proto icmp", 6: "proto ipv6-icmp"}
_TYPE: Final = {4: "icmp-type echoreq", 6: "icmp6-type echoreq"}
_HEADERS: Final = {4: 40, 6: 60}
"""Bytes of IP and TCP headers: what a segment is smaller than the packet."""
_NOT_FORWARDED: Final = {
    4: ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255"),
    6: ("::1", "fe80::/10", "ff00::/8"),
}
"""What no exit sends on: this machine would take it for its own."""


class Outward(NamedTuple):
    """An interface by which clients' packets may leave, and the address that they leave with."""

    interface: str
    address: Address


class ExitView(NamedTuple):
    """What of this machine the rules depend on."""

    outward: tuple[Outward, ...]
    own: tuple[Address, ...]
    """All of its addresses but those of the exit's device."""


def view_of(state: MacState, device: str) -> ExitView:
    """In an order that does not depend on that of `ifconfig`."""
    outward, own = [], set()
    for interface in state.interfaces:
        if interface.name == device or not _NAME.fullmatch(interface.name):
            continue
        own |= {each.ip for each in interface.addresses if not each.ip.is_link_local}
        if not interface.up or "LOOPBACK" in interface.flags:
            continue
        for version in (4, 6):
            usable = [
                each.ip
                for each in interface.addresses
                if each.version == version and each not in interface.unfit and not each.ip.is_link_local
            ]
            outward += [Outward(interface.name, usable[0])] if usable else []
    ordered = sorted(own, key=lambda each: (each.version, int(each)))
    return ExitView(tuple(sorted(outward, key=str)[:MAX_ADDRESSES]), tuple(ordered[:MAX_ADDRESSES]))


class _PfPool(NamedTuple):
    version: int
    pool: IPNetwork
    own: Address

    @property
    def family(self) -> str:
        return _FAMILY[self.version]


def text(settings: ExitNetworkSettings, view: ExitView, *, ipv6: bool) -> str:
    """All of the anchor, for one load. Without `ipv6` this exit refuses it. Raises ConfigError for an invalid name of
    the device."""
    if not _NAME.fullmatch(settings.device):
        raise ConfigError(f"{settings.device!r} is no name of a device on macOS")
    pools = [_PfPool(4, settings.pool4, settings.own4)]
    if ipv6:
        pools.append(_PfPool(6, settings.pool6, settings.own6))
    device = settings.device
    lines = [
        f"scrub on {device} {pool.family} proto tcp all max-mss {MTU - _HEADERS[pool.version]}"
        for pool in pools
    ]
    for pool in pools:
        lines += _translations(pool, view.outward)
    first = len(lines)
    for pool in pools:
        lines += _elsewhere(device, pool)
    lines[first] += f' label "{FIRST}"'
    for pool in pools:
        lines += _from_clients(device, pool, view.own, isolate=settings.isolate)
    lines += [f"block drop out quick on {device} {pool.family} from ! {pool.own} to any" for pool in pools]
    if not ipv6:
        lines.append(f"block drop quick on {device} inet6 all")
    return "".join(f"{line}\n" for line in lines)


def _translations(pool: _PfPool, outward: Sequence[Outward]) -> Iterator[str]:
    for one in outward:
        # A client on this machine has an address of the pool itself.
        if one.address.version == pool.version and one.address not in pool.pool:
            yield f"nat on {one.interface} {pool.family} from {pool.pool} to any -> {one.address}"


def _elsewhere(device: str, pool: _PfPool) -> Iterator[str]:
    """What comes from or goes to the pool past the device: packets of others (CVE-2019-14899), answers that another
    program's route leads elsewhere, and what was not translated. What this host says to itself is on loopback with the
    exit's own address at both ends."""
    yield f"block drop in quick on ! lo0 {pool.family} from {pool.own} to any"
    yield f"block drop in quick on ! {device} {pool.family} from ! {pool.own} to {pool.pool}"
    yield f"block drop out quick on ! {device} {pool.family} from ! {pool.own} to {pool.pool}"
    yield f"block drop out quick on ! {device} {pool.family} from {pool.pool} to ! {pool.pool}"


def _from_clients(device: str, pool: _PfPool, own: Iterable[Address], *, isolate: bool) -> Iterator[str]:
    head = f"quick on {device} {pool.family}"
    yield f"block drop in {head} from ! {pool.pool} to any"
    yield (
        f"pass in {head} {_ECHO[pool.version]} from {pool.pool} to {pool.own} {_TYPE[pool.version]} keep state"
    )
    here = [str(pool.own), *(str(each) for each in own if each.version == pool.version)]
    yield f"block return in {head} from any to {{ {', '.join([*here, *_NOT_FORWARDED[pool.version]])} }}"
    if isolate:
        yield f"block return in {head} from any to {pool.pool}"
    else:
        yield f"pass in {head} from {pool.pool} to {pool.pool} no state"
        yield f"pass out {head} from {pool.pool} to {pool.pool} no state"
    # Any flags: connections went on while the exit was not there.
    yield f"pass in {head} from {pool.pool} to any flags any keep state"
