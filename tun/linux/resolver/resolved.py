"""The system's resolver where systemd-resolved runs: the tunnel's interface gets name servers and all names.

    off: LLMNR, mDNS, DNSSEC, DNS over TLS  ->  name servers  ->  the domain "~."  ->  default route  ->  flush caches

These settings belong to the interface, so they end with it, also if this process is killed; `RevertLink` ends them
earlier. The domain "~." makes these servers resolve all names. The default route does the same for versions and set-ups
where another interface has "~." too (org.freedesktop.resolve1(5)). resolved loses such settings at a restart; they are
made again when it owns its name on the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from dbus_fast import Message
from dbus_fast.aio import MessageBus

from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError

from ...journal import Record, same_boot
from ...resolver.left_alone import any_reaches_forwarder
from ...system import ResolverSetting
from . import resolved_bus
from .resolvconf_files import read
from .resolved_bus import ERRORS, CallFailed, call, failure, owns_name

KIND: Final = "resolved"
"""The kind of our entry in the journal."""
UPLINK: Final = Path("/run/systemd/resolve/resolv.conf")
"""The file in which resolved lists its servers of all interfaces."""

RETRIES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts to make the settings again after a restart, as resolved may still be starting."""

_INTERFACE: Final = re.compile(r"[^\s/]{1,15}")


class Resolved(ResolverSetting):
    """Through systemd-resolved. `uplink`, `retries` and `pause` are for tests."""

    changes = staticmethod(netlink_changes)
    kind = "systemd-resolved"

    def __init__(
        self,
        record: Record,
        *,
        bus_address: str | None = None,
        uplink: Path = UPLINK,
        retries: Sequence[float] = RETRIES,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._record = record
        self._bus_address = bus_address
        self._uplink = uplink
        self._retries = tuple(retries)
        self._pause = pause
        self._bus: MessageBus | None = None
        self._following: asyncio.Task[None] | None = None
        self._link: tuple[int, str] | None = None
        self._recorded: tuple[int, str] | None = None
        """What the journal knows: it need not grow with each change of the servers."""
        self._addresses: tuple[str, ...] = ()
        self._restarted = False

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Let the interface `name`, whose index is `index`, resolve all names at `addresses` (literals).

        Raises ConfigError.
        """
        self._link, self._addresses = (index, name), tuple(addresses)
        if self._recorded != (index, name):
            self._record({"kind": KIND, "index": index, "name": name})
            self._recorded = index, name
        self._restarted = False
        try:
            await self._apply(await self._connect(), index)
        except ERRORS as error:
            self._link = None
            with contextlib.suppress(*ERRORS):
                if self._bus is not None:
                    await _revert(self._bus, index)
            await self._disconnect()
            raise failure(name, error) from None

    async def close(self) -> None:
        """Leave the bus."""
        await self._disconnect()

    async def look(self) -> str:
        if self._link is None:
            return ""
        if self._bus is None or not self._bus.connected or self._restarted:
            return "systemd-resolved was restarted"
        servers = await resolved_bus.servers_of(self._bus, self._link[0])
        # What cannot be asked is not known to be changed; a resolved that goes says so.
        if servers is None or servers == set(self._servers()):
            return ""
        return f"other servers for {self._link[1]} in systemd-resolved"

    async def put_back(self) -> None:
        """Make the settings again. A resolved that has restarted knows its interfaces only after a moment."""
        if self._link is None:
            return
        index, name = self._link
        delays: tuple[float | None, ...] = (*self._retries, None)
        for delay in delays:
            self._restarted = False
            try:
                bus = await self._connect()
                if await owns_name(bus):
                    await self._apply(bus, index)
                    return
                self._restarted = True
                raise ConfigError("systemd-resolved has stopped: names are not resolved until it is back")
            except ERRORS as error:
                self._restarted = True
                if delay is None:
                    raise failure(name, error) from None
                await self._pause(delay)

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        if await resolved_bus.asks_by_tls_only(self._bus_address):
            return (
                "systemd-resolved asks by TLS only, which is refused past the tunnel; "
                "set DNSOverTLS=no in resolved.conf(5)"
            )
        if any_reaches_forwarder(self.upstreams(), addresses):
            return ""
        return (
            "systemd-resolved knows no server whose questions reach the forwarder; name one in resolved.conf(5), "
            f"for example DNS={addresses[0]}"
        )

    def upstreams(self) -> tuple[str, ...]:
        """resolved's servers on other interfaces; they resolve the exit's own name."""
        try:
            found = nameservers(read(self._uplink))
        except OSError:
            return ()
        return tuple(address for address in found if address not in self._addresses)

    async def _connect(self) -> MessageBus:
        if self._bus is not None and self._bus.connected:
            return self._bus
        await self._disconnect()
        bus = await resolved_bus.open_bus(self._bus_address)
        try:
            bus.add_message_handler(self._signal)
            await resolved_bus.watch(bus)
        except BaseException:
            await resolved_bus.close_bus(bus)
            raise
        self._bus = bus
        self._following = spawn(self._follow(bus), "connection to the bus")
        return bus

    async def _disconnect(self) -> None:
        bus, self._bus = self._bus, None
        following, self._following = self._following, None
        if bus is not None and bus.connected:
            bus.disconnect()
        if following is not None:
            # Until the socket is closed.
            await following

    async def _follow(self, bus: MessageBus) -> None:
        await resolved_bus.ended(bus)
        self._restarted = True

    def _signal(self, message: Message) -> None:
        if resolved_bus.has_come_or_gone(message):
            self._restarted = True

    def _servers(self) -> list[tuple[int, bytes]]:
        return packed(self._addresses)

    async def _apply(self, bus: MessageBus, index: int) -> None:
        for wanted in calls(index, self._addresses):
            try:
                await call(bus, wanted.member, wanted.signature, wanted.body)
            except CallFailed as error:
                if not wanted.may_be_unknown or not error.is_unknown:
                    raise


class Call(NamedTuple):
    """One call of resolved's manager (org.freedesktop.resolve1(5))."""

    member: str
    signature: str
    body: list[Any]
    may_be_unknown: bool = False
    """Some versions do not have it, and go without."""


def packed(addresses: Sequence[str]) -> list[tuple[int, bytes]]:
    """As resolved takes and gives them: address family and address."""
    families = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
    return [(families[server.version], server.packed) for server in map(ipaddress.ip_address, addresses)]


def calls(index: int, addresses: Sequence[str]) -> list[Call]:
    """What lets the interface of this index resolve all names at `addresses`, in order."""
    # A resolved without such a setting does not have the feature that it turns off.
    off = [
        Call(member, "is", [index, "no"], may_be_unknown=True)
        for member in ("SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSSEC", "SetLinkDNSOverTLS")
    ]
    return [
        *off,
        Call("SetLinkDNS", "ia(iay)", [index, [list(server) for server in packed(addresses)]]),
        Call("SetLinkDomains", "ia(sb)", [index, [[".", True]]]),
        # Before systemd 240, "~." means it too.
        Call("SetLinkDefaultRoute", "ib", [index, True], may_be_unknown=True),
        Call("FlushCaches", "", []),
    ]


def undo(entry: Mapping[str, Any], *, bus_address: str | None = None) -> None:
    """Take back the settings of the interface in `entry`; nothing if it or resolved is gone. Idempotent.

    Blocks, also inside of a running event loop: it works on a thread with a loop of its own. Raises ConfigError.
    """
    index, name = entry.get("index"), entry.get("name")
    if not (
        isinstance(index, int)
        and 0 < index < 1 << 31
        and isinstance(name, str)
        and _INTERFACE.fullmatch(name)
    ):
        raise ConfigError("the journal holds an entry for systemd-resolved that this program did not write")
    try:
        if not same_boot(entry) or socket.if_nametoindex(name) != index:
            # Another interface may have taken the name or the number.
            return
    except OSError:
        return
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _undo(index, bus_address)).result()
    except ERRORS as error:
        raise failure(name, error) from None


async def _undo(index: int, bus_address: str | None) -> None:
    try:
        bus = await resolved_bus.open_bus(bus_address)
    except (FileNotFoundError, ConnectionRefusedError):
        # No bus, no resolved.
        return
    try:
        await _revert(bus, index)
    finally:
        await resolved_bus.close_bus(bus)


async def _revert(bus: MessageBus, index: int) -> None:
    for member, signature, body in (("RevertLink", "i", [index]), ("FlushCaches", "", [])):
        try:
            await call(bus, member, signature, body)
        except CallFailed as error:
            if not error.is_gone:
                raise
