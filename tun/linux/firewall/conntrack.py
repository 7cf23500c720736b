"""Deletes entries of conntrack whose reason has ended, one by one: by tuple, zone and id.

    filter replaced  ->  dump  ->  chosen by a pure predicate  ->  each deleted  ->  dump again, until none is left

The filter loses the accept first, so the safety of the tunnel never depends on a deletion: what is left behind bears a
worthless mark (marks.py). A deletion lets a program's socket go on, along the route that it should take now. Nothing
is ever flushed: a kernel may ignore the filter of a flush and delete everything.

`Ended` chooses under new settings, `EndedWithTable` at the end. Everything blocks, and works on the network
namespace of the calling thread. ctnetlink: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from cryprq_proxy.base.netlink import DUMP, NETFILTER, NetlinkSocket, attribute, attributes
from cryprq_proxy.base.own_addresses import local_networks
from cryprq_proxy.errors import reason_of
from cryprq_proxy.rules.ranges import IPNetwork

from ...firewall.inbound import Address
from .marks import MarkKind, Marks, Reason, reason_of_mark

_log = logging.getLogger(__name__)

ROUNDS: Final = 4
"""Dumps at most, each with its deletions."""
MAX_ENTRIES: Final = 1 << 19
"""Entries that one dump looks at."""

_CT_NEW: Final = 0x100
_CT_GET: Final = 0x101
_CT_DELETE: Final = 0x102

_TUPLE_ORIG: Final = 1
_TUPLE_REPLY: Final = 2
_STATUS: Final = 3
_MARK: Final = 8
_ID: Final = 12
_ZONE: Final = 18
_NESTED: Final = 0x8000
_ANSWERED: Final = 1 << 1  # IPS_SEEN_REPLY
_SNAT: Final = 1 << 4
_DNAT: Final = 1 << 5

_AGAIN: Final = (errno.ENOBUFS, errno.EINTR, errno.EBUSY)
"""The kernel's answers were lost, so the next round asks again."""
_TCP_UDP: Final = (6, 17)
_DNS: Final = 53


class Flow(NamedTuple):
    """One direction of a connection; ports are 0 where there are none."""

    source: Address
    destination: Address
    protocol: int
    source_port: int
    port: int


class CtEntry(NamedTuple):
    """An entry of conntrack, as far as it is looked at."""

    family: int
    original: Flow
    reply: Flow
    """As answers look on the wire: what NAT has done is seen here."""
    mark: int
    status: int
    identity: bytes
    """The attributes that name it to the kernel: tuple, zone, id."""

    @property
    def is_answered(self) -> bool:
        return bool(self.status & _ANSWERED)

    @property
    def is_snat(self) -> bool:
        return bool(self.status & _SNAT)

    @property
    def is_dnat(self) -> bool:
        return bool(self.status & _DNAT)


type Choose = Callable[[CtEntry], bool]


# --- which ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The predicate of running settings: whether the reason of an entry has ended."""

    marks: Marks
    paused: bool = False
    """Whether the pause of `marks` is still open."""
    keep_inbound: bool = False
    excludes: bool = False
    """Whether any cgroup is excluded. The filter asks which, at the next packet."""
    direct: Callable[[Flow], bool] = field(default=lambda flow: False)
    """Whether a person's rules send this flow past the tunnel now."""
    own: frozenset[Address] = frozenset()
    """This machine's addresses, those of the tunnel included."""
    left: frozenset[Address] = frozenset()
    """Addresses that the tunnel had before, and has no more."""
    guests: tuple[IPNetwork, ...] = ()
    forwarder: frozenset[tuple[Address, int]] = frozenset()
    """Where DNS is redirected to now."""

    def __call__(self, entry: CtEntry) -> bool:
        reason = reason_of_mark(entry.mark)
        if reason is not None:
            if reason.kind == MarkKind.BYPASS:
                return False
            if self._is_over(entry, reason):
                return True
            if reason.kind == MarkKind.PAUSED:
                return False
        if entry.is_snat and entry.reply.destination in self.left:
            return True
        return self._is_stray_dns(entry) or self._is_stray_of_a_guest(entry)

    def _is_over(self, entry: CtEntry, reason: Reason) -> bool:
        if reason.kind == MarkKind.PAUSED:
            return not self.paused or (reason.run, reason.pause) != self.marks
        if reason.kind == MarkKind.INBOUND:
            return not self.keep_inbound
        if reason.kind == MarkKind.EXCLUDED:
            return not self.excludes
        if reason.kind == MarkKind.DIRECT:
            moved = entry.is_snat and entry.reply.destination not in self.own
            return moved or not self.direct(entry.original)
        return reason.run != self.marks.run

    def _is_stray_dns(self, entry: CtEntry) -> bool:
        """A question of this host or its guests that is not sent to the forwarder, or to an older one."""
        original = entry.original
        if original.port != _DNS or original.protocol not in _TCP_UDP:
            return False
        if original.destination in self.own or original.destination.is_loopback:
            return False
        source = original.source
        ours = source in self.own or source in self.left or any(source in guests for guests in self.guests)
        return ours and (entry.reply.source, entry.reply.source_port) not in self.forwarder

    def _is_stray_of_a_guest(self, entry: CtEntry) -> bool:
        """Begun by a guest while there was no filter, so without NAT: nobody outside can answer. This machine and
        other guests can, as the forwarder does some time after it was asked: such an entry is in use."""
        if entry.is_snat or entry.is_answered:
            return False
        # Where NAT has sent it.
        target = entry.reply.source
        if target in self.own or any(target in guests for guests in self.guests):
            return False
        return any(entry.original.source in guests for guests in self.guests)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedWithTable:
    """The predicate of the end: NAT of ours, and what only a filter holds in."""

    tunnels: frozenset[Address]
    """The tunnel's addresses, as the last table had them."""
    dns_port: int

    def __call__(self, entry: CtEntry) -> bool:
        reason = reason_of_mark(entry.mark)
        if reason is not None and reason.kind != MarkKind.BYPASS:
            return entry.is_snat or entry.is_dnat or reason.kind in (MarkKind.PAUSED, MarkKind.BLOCKED)
        if entry.is_snat and entry.reply.destination in self.tunnels:
            return True
        redirected = entry.is_dnat and entry.original.port == _DNS
        return redirected and (entry.reply.source_port == self.dns_port or entry.reply.source in self.tunnels)


# --- how ---


def parse_entry(body: bytes) -> CtEntry | None:
    """An entry from the body of a message; None if it is none, or lacks something. Raises nothing."""
    found = attributes(body[4:])
    original, reply = _flow(found.get(_TUPLE_ORIG, b"")), _flow(found.get(_TUPLE_REPLY, b""))
    identifier = found.get(_ID, b"")
    if original is None or reply is None or len(identifier) != 4:
        return None
    identity = attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG]) + attribute(_ID, identifier)
    if _ZONE in found:
        identity += attribute(_ZONE, found[_ZONE])
    mark, status = (int.from_bytes(found.get(kind, b"")[:4]) for kind in (_MARK, _STATUS))
    return CtEntry(body[0], original, reply, mark, status, identity)


def _flow(data: bytes) -> Flow | None:
    parts = attributes(data)
    addresses, protocol = attributes(parts.get(1, b"")), attributes(parts.get(2, b""))
    source = _address(addresses, 1, 3)
    destination = _address(addresses, 2, 4)
    number = protocol.get(1, b"")
    if source is None or destination is None or len(number) != 1:
        return None
    ports = (int.from_bytes(protocol.get(kind, b"")[:2]) for kind in (2, 3))
    return Flow(source, destination, number[0], *ports)


def _address(found: Mapping[int, bytes], four: int, six: int) -> Address | None:
    if len(packed := found.get(four, b"")) == 4:
        return IPv4Address(packed)
    if len(packed := found.get(six, b"")) == 16:
        return IPv6Address(packed)
    return None


def _dump(kernel: NetlinkSocket) -> Iterator[CtEntry]:
    for number, (kind, body) in enumerate(kernel.ask(_CT_GET, DUMP, bytes(4))):
        entry = parse_entry(body) if kind == _CT_NEW and number < MAX_ENTRIES else None
        if entry is not None:
            yield entry


def entries() -> list[CtEntry]:
    """All entries. Raises OSError."""
    with NetlinkSocket(NETFILTER) as kernel:
        return list(_dump(kernel))


def delete(choose: Choose) -> int:
    """Delete the chosen entries; how many. Where the kernel has no ctnetlink, or fails, that is logged."""
    deleted = 0
    for _ in range(ROUNDS):
        try:
            with NetlinkSocket(NETFILTER) as kernel:
                chosen = [entry for entry in _dump(kernel) if choose(entry)]
                deleted += sum(
                    kernel.delete(_CT_DELETE, bytes((entry.family, 0, 0, 0)) + entry.identity)
                    for entry in chosen
                )
        except OSError as error:
            if error.errno not in _AGAIN:
                _unavailable(error)
                break
        else:
            if not chosen:
                break
    if deleted:
        _log.debug("deleted %d connections of conntrack whose reason has ended", deleted)
    return deleted


def seen_runs() -> Collection[int]:
    """The numbers of runs that entries of the kernel bear; empty where it cannot be asked."""
    try:
        reasons = [reason_of_mark(entry.mark) for entry in entries()]
    except OSError as error:
        _unavailable(error)
        return ()
    return {reason.run for reason in reasons if reason is not None}


def own_addresses_or_none() -> frozenset[Address]:
    """This machine's addresses, and none where the kernel cannot be asked."""
    with contextlib.suppress(OSError):
        return frozenset(
            network.network_address
            for network in local_networks()
            if network.prefixlen == network.max_prefixlen
        )
    return frozenset()


_told: set[int | None] = set()


def _unavailable(error: OSError) -> None:
    """Say once that connections cannot be looked at; what they bear is worthless without that, too."""
    if error.errno in _told:
        return
    _told.add(error.errno)
    _log.warning(
        "connections from before cannot be looked at (%s): some may have to be opened anew; nothing of them leaves past"
        " the tunnel",
        reason_of(error),
    )


def addresses(texts: Iterable[object]) -> frozenset[Address]:
    """The addresses among what nft lists as a set's elements."""
    found = set()
    for text in texts:
        with contextlib.suppress(ValueError):
            found.add(ip_address(str(text)))
    return frozenset(found)
