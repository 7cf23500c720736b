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
from typing import Any, Final

from dbus_fast import DBusFastError, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.constants import BusType

from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, reason_of

from ..journal import Record, same_boot
from .left_alone import any_reaches_forwarder
from .resolvconf_files import read
from .setting import ResolverSetting

NAME: Final = "org.freedesktop.resolve1"
KIND: Final = "resolved"
"""The kind of our entry in the journal."""
UPLINK: Final = Path("/run/systemd/resolve/resolv.conf")
"""The file in which resolved lists its servers of all interfaces."""

CALL_SECONDS: Final = 5.0
RETRIES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts to make the settings again after a restart, as resolved may still be starting."""

_PATH: Final = "/org/freedesktop/resolve1"
_MANAGER: Final = "org.freedesktop.resolve1.Manager"
_LINK: Final = "org.freedesktop.resolve1.Link"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_BUS: Final = "org.freedesktop.DBus"
_WATCHED: Final = f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{NAME}'"
_INTERFACE: Final = re.compile(r"[^\s/]{1,15}")

_BUS_ERRORS: Final = (DBusFastError, OSError, EOFError)
"""Errors of a call without a bus, or if the bus ends; TimeoutError is an OSError."""

_REFUSED: Final = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
}
_GONE: Final = {
    f"{NAME}.NoSuchLink",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
}
_OLD: Final = {"org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.NotSupported"}


class _CallFailed(Exception):
    """A method call that resolved (or the bus) answered with an error."""

    def __init__(self, member: str, name: str, text: str) -> None:
        super().__init__(f"{member} gave {name}: {text}" if text else f"{member} gave {name}")
        self.name = name


class Resolved(ResolverSetting):
    """Through systemd-resolved. `uplink`, `retries` and `pause` are for tests."""

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
        self._addresses: tuple[str, ...] = ()
        self._restarted = False

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Let the interface `name`, whose index is `index`, resolve all names at `addresses` (literals).

        Raises ConfigError.
        """
        self._link, self._addresses = (index, name), tuple(addresses)
        self._record({"kind": KIND, "index": index, "name": name})
        self._restarted = False
        try:
            await self._apply(await self._connect(), index)
        except (_CallFailed, *_BUS_ERRORS) as error:
            self._link = None
            with contextlib.suppress(_CallFailed, *_BUS_ERRORS):
                if self._bus is not None:
                    await _revert(self._bus, index)
            await self._disconnect()
            raise _failure(name, error) from None

    async def close(self) -> None:
        """Leave the bus."""
        await self._disconnect()

    async def look(self) -> str:
        if self._link is None:
            return ""
        if self._bus is None or not self._bus.connected or self._restarted:
            return "systemd-resolved was restarted"
        try:
            servers = await _call(
                self._bus,
                "Get",
                "ss",
                [_LINK, "DNS"],
                path=f"{_PATH}/link/{_escaped(self._link[0])}",
                interface=_PROPERTIES,
            )
            found = {(family, bytes(packed)) for family, packed in servers.value}
        except (_CallFailed, *_BUS_ERRORS, AttributeError, TypeError, ValueError):
            # What cannot be asked or understood is not known to be changed; a resolved that goes says so.
            return ""
        return (
            "" if found == set(self._servers()) else f"other servers for {self._link[1]} in systemd-resolved"
        )

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
            except (_CallFailed, *_BUS_ERRORS) as error:
                self._restarted = True
                if delay is None:
                    raise _failure(name, error) from None
                await self._pause(delay)

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        if await _asks_by_tls_only(self._bus_address):
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
        bus = await _open(self._bus_address)
        try:
            bus.add_message_handler(self._signal)
            await _call(bus, "AddMatch", "s", [_WATCHED], on_bus=True)
        except BaseException:
            await _close(bus)
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
        await _ended(bus)
        self._restarted = True

    def _signal(self, message: Message) -> None:
        if (
            message.message_type is MessageType.SIGNAL
            and message.member == "NameOwnerChanged"
            and message.sender == _BUS
            and message.body[:1] == [NAME]
        ):
            self._restarted = True

    def _servers(self) -> list[tuple[int, bytes]]:
        """As resolved takes and gives them: address family and address."""
        families = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
        servers = map(ipaddress.ip_address, self._addresses)
        return [(families[server.version], server.packed) for server in servers]

    async def _apply(self, bus: MessageBus, index: int) -> None:
        for member in ("SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSSEC", "SetLinkDNSOverTLS"):
            try:
                await _call(bus, member, "is", [index, "no"])
            except _CallFailed as error:
                # A resolved without this setting does not have the feature that it turns off.
                if error.name not in _OLD:
                    raise
        await _call(bus, "SetLinkDNS", "ia(iay)", [index, [list(server) for server in self._servers()]])
        await _call(bus, "SetLinkDomains", "ia(sb)", [index, [[".", True]]])
        try:
            await _call(bus, "SetLinkDefaultRoute", "ib", [index, True])
        except _CallFailed as error:
            # Before systemd 240, "~." means it too.
            if error.name not in _OLD:
                raise
        await _call(bus, "FlushCaches", "", [])


async def runs(bus_address: str | None = None) -> bool:
    """Whether systemd-resolved owns its name on the system bus (or on that of `bus_address`); does not start it."""
    try:
        bus = await _open(bus_address)
    except _BUS_ERRORS:
        return False
    try:
        return await owns_name(bus)
    except (_CallFailed, *_BUS_ERRORS):
        return False
    finally:
        await _close(bus)


async def _asks_by_tls_only(bus_address: str | None) -> bool:
    """Whether resolved is set so as a whole; False where it cannot be asked. An interface may be set otherwise."""
    try:
        bus = await _open(bus_address)
    except _BUS_ERRORS:
        return False
    try:
        setting = await _call(bus, "Get", "ss", [_MANAGER, "DNSOverTLS"], interface=_PROPERTIES)
        return bool(setting.value == "yes")
    except (_CallFailed, *_BUS_ERRORS, AttributeError):
        return False
    finally:
        await _close(bus)


async def owns_name(bus: MessageBus) -> bool:
    """Whether systemd-resolved is on this bus."""
    return bool(await _call(bus, "NameHasOwner", "s", [NAME], on_bus=True))


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
    except (_CallFailed, *_BUS_ERRORS) as error:
        raise _failure(name, error) from None


async def _undo(index: int, bus_address: str | None) -> None:
    try:
        bus = await _open(bus_address)
    except (FileNotFoundError, ConnectionRefusedError):
        # No bus, no resolved.
        return
    try:
        await _revert(bus, index)
    finally:
        await _close(bus)


async def _revert(bus: MessageBus, index: int) -> None:
    for member, signature, body in (("RevertLink", "i", [index]), ("FlushCaches", "", [])):
        try:
            await _call(bus, member, signature, body)
        except _CallFailed as error:
            if error.name not in _GONE:
                raise


async def _open(address: str | None) -> MessageBus:
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM)
    async with asyncio.timeout(CALL_SECONDS):
        return await bus.connect()


async def _close(bus: MessageBus) -> None:
    if bus.connected:
        bus.disconnect()
    await _ended(bus)


async def _ended(bus: MessageBus) -> None:
    """Returns when the connection's socket is closed."""
    ended: Awaitable[None] = bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    with contextlib.suppress(*_BUS_ERRORS):
        await ended


async def _call(
    bus: MessageBus,
    member: str,
    signature: str,
    body: list[Any],
    *,
    on_bus: bool = False,
    path: str = _PATH,
    interface: str = _MANAGER,
) -> Any:
    """The first value of the answer, or None. Raises _CallFailed, TimeoutError, and what dbus-fast raises."""
    message = Message(
        destination=_BUS if on_bus else NAME,
        path="/org/freedesktop/DBus" if on_bus else path,
        interface=_BUS if on_bus else interface,
        member=member,
        signature=signature,
        body=body,
        # A resolved that does not run has no settings of ours.
        flags=MessageFlag.NO_AUTOSTART,
    )
    async with asyncio.timeout(CALL_SECONDS):
        reply = await bus.call(message)
    if reply.message_type is MessageType.ERROR:
        text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
        raise _CallFailed(member, reply.error_name or "an error", text[:200])
    return reply.body[0] if reply.body else None


def _escaped(index: int) -> str:
    """The number of an interface in an object path, where no part begins with a digit (sd_bus_path_encode(3))."""
    return f"_3{index}"


def _failure(name: str, error: Exception) -> ConfigError:
    if isinstance(error, _CallFailed):
        if error.name in _REFUSED:
            return ConfigError(
                f"systemd-resolved does not let this user change the resolver of {name}; run this as root"
            )
        if error.name == f"{NAME}.LinkBusy":
            return ConfigError(
                f"systemd-resolved takes the resolver of {name} from systemd-networkd; let networkd leave that "
                f"interface alone (Unmanaged=yes in its [Link] section)"
            )
        return ConfigError(f"systemd-resolved did not take the resolver of {name}: {error}")
    if isinstance(error, TimeoutError):
        return ConfigError(
            f"systemd-resolved did not answer within {CALL_SECONDS:g} s about the resolver of {name}; see whether it "
            f"hangs (systemctl status systemd-resolved)"
        )
    why = reason_of(error) if isinstance(error, OSError) else str(error)
    return ConfigError(f"systemd-resolved cannot be reached over D-Bus to set the resolver of {name}: {why}")
