"""systemd-resolved over D-Bus (org.freedesktop.resolve1(5)): a connection to the bus, one call, its errors in words.

resolved.py says which calls set the resolver. None of them starts a resolved that does not run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

from dbus_fast import DBusFastError, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.constants import BusType

from cryprq_proxy.errors import ConfigError, reason_of

NAME: Final = "org.freedesktop.resolve1"
CALL_SECONDS: Final = 5.0

_PATH: Final = "/org/freedesktop/resolve1"
_MANAGER: Final = "org.freedesktop.resolve1.Manager"
_LINK: Final = "org.freedesktop.resolve1.Link"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_BUS: Final = "org.freedesktop.DBus"
_WATCHED: Final = f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{NAME}'"

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


class CallFailed(Exception):
    """A method call that resolved (or the bus) answered with an error."""

    def __init__(self, member: str, name: str, text: str) -> None:
        super().__init__(f"{member} gave {name}: {text}" if text else f"{member} gave {name}")
        self.name = name

    @property
    def is_gone(self) -> bool:
        """Whether the interface or resolved itself is not there."""
        return self.name in _GONE

    @property
    def is_unknown(self) -> bool:
        """Whether this resolved does not have what was called or set."""
        return self.name in _OLD


ERRORS: Final = (CallFailed, DBusFastError, OSError, EOFError)
"""What a call raises: the answer is an error, there is no bus, or it ends. TimeoutError is an OSError."""


# --- the connection ---


async def open_bus(address: str | None) -> MessageBus:
    """The system bus, or that of `address`. Raises one of ERRORS."""
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM)
    async with asyncio.timeout(CALL_SECONDS):
        return await bus.connect()


async def close_bus(bus: MessageBus) -> None:
    if bus.connected:
        bus.disconnect()
    await ended(bus)


async def ended(bus: MessageBus) -> None:
    """Return when the connection's socket is closed."""
    closed: Awaitable[None] = bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    with contextlib.suppress(*ERRORS):
        await closed


@contextlib.asynccontextmanager
async def _connection(address: str | None) -> AsyncIterator[MessageBus]:
    bus = await open_bus(address)
    try:
        yield bus
    finally:
        await close_bus(bus)


# --- calls ---


async def call(
    bus: MessageBus,
    member: str,
    signature: str,
    body: list[Any],
    *,
    on_bus: bool = False,
    path: str = _PATH,
    interface: str = _MANAGER,
) -> Any:
    """The first value of the answer, or None. Raises one of ERRORS."""
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
        raise CallFailed(member, reply.error_name or "an error", text[:200])
    return reply.body[0] if reply.body else None


async def servers_of(bus: MessageBus, index: int) -> set[tuple[int, bytes]] | None:
    """Address family and address of each server of an interface; None where that cannot be asked or understood."""
    # No part of an object path begins with a digit (sd_bus_path_encode(3)).
    path = f"{_PATH}/link/_3{index}"
    try:
        servers = await call(bus, "Get", "ss", [_LINK, "DNS"], path=path, interface=_PROPERTIES)
        return {(family, bytes(packed)) for family, packed in servers.value}
    except (*ERRORS, AttributeError, TypeError, ValueError):
        return None


async def watch(bus: MessageBus) -> None:
    """Have the bus tell when resolved comes or goes: `has_come_or_gone` knows the message. Raises one of ERRORS."""
    await call(bus, "AddMatch", "s", [_WATCHED], on_bus=True)


def has_come_or_gone(message: Message) -> bool:
    """Whether the bus says that resolved does."""
    return bool(
        message.message_type is MessageType.SIGNAL
        and message.member == "NameOwnerChanged"
        and message.sender == _BUS
        and message.body[:1] == [NAME]
    )


async def owns_name(bus: MessageBus) -> bool:
    """Whether systemd-resolved is on this bus. Raises one of ERRORS."""
    return bool(await call(bus, "NameHasOwner", "s", [NAME], on_bus=True))


async def runs(bus_address: str | None = None) -> bool:
    """Whether systemd-resolved owns its name on the system bus (or on that of `bus_address`); does not start it."""
    with contextlib.suppress(*ERRORS):
        async with _connection(bus_address) as bus:
            return await owns_name(bus)
    return False


async def asks_by_tls_only(bus_address: str | None) -> bool:
    """Whether resolved is set so as a whole; False where it cannot be asked. An interface may be set otherwise."""
    with contextlib.suppress(*ERRORS, AttributeError):
        async with _connection(bus_address) as bus:
            setting = await call(bus, "Get", "ss", [_MANAGER, "DNSOverTLS"], interface=_PROPERTIES)
            return bool(setting.value == "yes")
    return False


# --- words ---


def failure(name: str, error: Exception) -> ConfigError:
    """A sentence about the resolver of the interface `name`, from one of ERRORS."""
    if isinstance(error, CallFailed):
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
