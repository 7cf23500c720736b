"""The TUN device of Linux, with the kernel's offloads if available.

With vnet_hdr, one read or write moves a super-packet of up to 57,344 bytes (offload.py), without it one packet. The
device is not persistent: it, its addresses and its routes end when its descriptor is closed, also by a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cryprq_proxy.base.rtnetlink import SECONDS, rtnetlink
from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.lane.slices import KIND_MASK, MAX_PACKET, TCP4, TCP6, UDP_GSO, Shape
from tun.device.offload import COMPLETE, GSO_MAX_SEGS, GSO_MAX_SIZE, VNET_SIZE, describe, split, vnet_header
from tun.device.packets import Drop

from ..settings import MIN_MTU
from ..system import Device

QUEUE: Final = 1000
"""Packets that wait to be read."""

_TUN_PATH: Final = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x4000, 0x8000
_TSO: Final = 0x01 | 0x02 | 0x04  # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6. TUN_F_TSO_ECN stays off.
_USO: Final = 0x20 | 0x40  # TUN_F_USO4, TUN_F_USO6: Linux 6.2
_IFREQ: Final = struct.Struct("16sH22x")
_NAME_SIZE: Final = 15
_ADDR_GEN_MODE_NONE: Final = 1
_IFF_MULTICAST: Final = 0x1000
_IFA_F_NODAD: Final = 0x02
_IFF_UP: Final = 0x1
_KINDS: Final = {TCP4: "tso4", TCP6: "tso6", UDP_GSO: "uso"}
_NO_IPV6: Final = frozenset({errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})


class Tun(Device):
    """A TUN device of Linux, with or without vnet_hdr and offloads."""

    def __init__(self, fd: int, name: str, mtu: int, offloads: int | None, index: int = 0) -> None:
        """`fd` is already a device; use `open` to make one. `offloads`: TUN_F_ bits, None without vnet_hdr. `index` is
        the kernel's number of the device, which stays when it is renamed."""
        super().__init__(fd, name, mtu, 0 if offloads is None else VNET_SIZE)
        self._vnet = offloads is not None
        self._offloads = offloads or 0
        # For each kind of super-packet: may it be written whole, and was one ever written?
        self._whole = {
            0: self._vnet,
            TCP4: self._vnet,
            TCP6: self._vnet,
            UDP_GSO: bool(self._offloads & _USO),
        }
        self._proved: set[int] = set()
        self._index = index
        self._setting = asyncio.Lock()
        self._addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
        self._queue = QUEUE
        self._caps = GSO_MAX_SIZE, GSO_MAX_SEGS

    @classmethod
    def open(cls, name: str, *, mtu: int, offload: bool = True) -> Tun:
        """Create the device `name`, down and without addresses: `configure` is the next step.

        `offload`: whether to use the offloads that the kernel has. Raises ConfigError.
        """
        if not 0 < len(name.encode()) <= _NAME_SIZE or not name.isprintable() or set(name) & set("/: %"):
            raise ConfigError(f"{name!r} is no name for a network device: use at most 15 letters and digits")
        _check_mtu(mtu)
        try:
            fd = os.open(_TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            raise ConfigError(f"{_TUN_PATH} may not be opened: run as root") from error
        except OSError as error:
            raise ConfigError(
                f"there is no TUN device here ({_TUN_PATH}: {reason_of(error)}): "
                "load the kernel module tun, or give the container this device"
            ) from error
        try:
            offloads = _attach(fd, name, offload)
            return cls(fd, name, mtu, offloads, socket.if_nametoindex(name))
        except BaseException:
            os.close(fd)
            raise

    def index(self) -> int:
        return socket.if_nametoindex(self.name)

    async def configure(
        self,
        addresses: Sequence[IPv4Interface | IPv6Interface],
        *,
        gso_max_size: int = GSO_MAX_SIZE,
        gso_max_segs: int = GSO_MAX_SEGS,
        queue: int = QUEUE,
    ) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Give the device these addresses and no others, its MTU and caps, and bring it up. May be called again.

        `queue` is in packets. Returns the addresses that are set: without IPv6 in this kernel, the IPv4 ones only.
        Raises ConfigError.
        """
        async with self._setting:
            self._caps, self._queue = (gso_max_size, gso_max_segs), queue
            self._addresses = tuple(addresses)
            async with self._netlink("cannot be set up") as netlink:
                self._addresses = await self._configure(netlink)
            return self._addresses

    def versions(self) -> frozenset[int]:
        """The IP versions that it can have routes of."""
        with contextlib.suppress(OSError):
            if _switch(self.name).read_text(encoding="ascii").strip() == "0":
                return frozenset({4, 6})
        return frozenset({4})

    async def set_mtu(self, mtu: int) -> None:
        """Change the MTU, `MIN_MTU` or more. Raises ConfigError."""
        _check_mtu(mtu)
        async with self._setting, self._netlink("does not take another MTU") as netlink:
            await netlink.link("set", index=self._index, mtu=mtu)
            self.mtu = mtu

    async def difference(self) -> str:
        """What is not as it was configured, in words; nothing if all of it stands. Raises ConfigError."""
        async with self._setting, self._netlink("cannot be read") as netlink:
            (link,) = [message async for message in await netlink.get_links(self._index)]
            present = await _present_addresses(netlink, self._index)
        found = [f"the address {wanted} was removed" for wanted in self._addresses if wanted not in present]
        found += [f"the address {other} was added" for other in present if other not in self._addresses]
        if (mtu := link.get_attr("IFLA_MTU")) != self.mtu:
            found.insert(0, f"its MTU was {mtu}")
        if link["flags"] & _IFF_MULTICAST:
            found.insert(0, "it took multicast")
        if not link["flags"] & _IFF_UP:
            found.insert(0, "it was down")
        if (name := link.get_attr("IFLA_IFNAME")) != self.name:
            found.insert(0, f"it was renamed to {name}")
        return ", ".join(found)

    async def restore(self) -> None:
        """Configure it again, under its own name. Raises ConfigError."""
        async with self._setting, self._netlink("cannot be set up again") as netlink:
            await _rename(netlink, self._index, self.name)
            # With an MTU below MIN_MTU the device has lost all of IPv6, its switch too.
            await netlink.link("set", index=self._index, mtu=self.mtu)
            if any(address.version == 6 for address in self._addresses):
                # The switch is the device's own, and ends with it.
                _switch(self.name).write_text("0", encoding="ascii")
            configured = await self._configure(netlink)
        if configured != self._addresses:
            raise ConfigError(f"{self.name} does not take its IPv6 address back: IPv6 is switched off here")

    async def _configure(self, netlink: AsyncIPRoute) -> tuple[IPv4Interface | IPv6Interface, ...]:
        await _cap(netlink, self._index, *self._caps)
        await _no_link_local(netlink, self._index)
        # Else the kernel has a route for IPv6 groups into the tunnel, which it asks before all rules.
        await netlink.link("set", index=self._index, flags=0, change=_IFF_MULTICAST)
        await netlink.link("set", index=self._index, mtu=self.mtu, txqlen=self._queue, state="up")
        return await _set_addresses(netlink, self._index, self._addresses)

    @asynccontextmanager
    async def _netlink(self, failure: str) -> AsyncIterator[AsyncIPRoute]:
        """A netlink socket whose errors become a ConfigError. A device that is gone is told to the reader."""
        try:
            async with rtnetlink(SECONDS) as netlink:
                yield netlink
        except (NetlinkError, OSError) as error:
            number = error.code if isinstance(error, NetlinkError) else error.errno
            if number == errno.ENODEV:
                self.lost(OSError(number, os.strerror(number)))
                raise ConfigError(f"another program removed the device {self.name}") from error
            advice = ": run as root" if number == errno.EPERM else ""
            reason = reason_of(OSError(number, "") if isinstance(error, NetlinkError) else error)
            raise ConfigError(f"{self.name} {failure} ({reason}){advice}") from error

    def write(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        kind = shape.flags & KIND_MASK
        if self._whole[kind]:
            at = vnet_header(buffer, start, end, shape)
            failed = self._write_message(buffer[at:end], end - start)
            if not failed:
                if kind:
                    self._proved.add(kind)
                return True
            if not kind or failed != errno.EINVAL:
                return self._dropped(failed)
            # Some kernels refuse all super-packets of a kind. A kernel that has taken one refuses only this packet.
            self._whole[kind] = kind in self._proved
        for low, high in split(buffer, start, end, shape):
            at = vnet_header(buffer, low, high, COMPLETE) if self._vnet else low
            failed = self._write_message(buffer[at:high], high - low)
            if failed:
                return self._dropped(failed)
        return True

    def _shape(self, buffer: memoryview, start: int, end: int) -> Shape | Drop:
        return describe(buffer, start, end) if self._vnet else COMPLETE

    def _read_offloads(self) -> tuple[str, ...]:
        named = ((0x01, "csum"), (0x02, "tso4"), (0x04, "tso6"), (0x20, "uso"))
        return tuple(name for bit, name in named if self._offloads & bit)

    def _write_offloads(self) -> tuple[str, ...]:
        return tuple(name for kind, name in _KINDS.items() if self._whole[kind])


def _switch(name: str) -> Path:
    """1 where IPv6 is switched off at the device; missing where the kernel has none."""
    return Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")


def _check_mtu(mtu: int) -> None:
    if not MIN_MTU <= mtu <= MAX_PACKET:
        raise ConfigError(
            f"the tunnel's MTU cannot be {mtu}: it must be from {MIN_MTU} to {MAX_PACKET} bytes"
        )


def _attach(fd: int, name: str, offload: bool) -> int | None:
    """Make the descriptor a device. Returns its active offloads, None without vnet_hdr. Raises ConfigError."""
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL | (_IFF_VNET_HDR if offload else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except PermissionError as error:
        raise ConfigError(f"the network device {name} may not be created: run as root") from error
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise ConfigError(
                f"there is a network device {name} already: stop what uses it, or choose another name"
            ) from error
        raise ConfigError(
            f"the kernel does not create the network device {name}: {reason_of(error)}"
        ) from error
    if not offload:
        return None
    for offloads in (_TSO | _USO, _TSO):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
        except OSError:
            continue
        return offloads
    return 0


async def _cap(netlink: AsyncIPRoute, index: int, size: int, segments: int) -> None:
    """Cap super-packets; a `gso_max_size` of at most 65,536 holds for both families. An old kernel takes no caps, and
    super-packets may be longer then."""
    try:
        await netlink.link("set", index=index, gso_max_size=size, gso_max_segs=segments)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise


async def _no_link_local(netlink: AsyncIPRoute, index: int) -> None:
    """Prevent a link-local address: with one, the kernel would look for routers in the tunnel."""
    mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
    try:
        await netlink.link("set", index=index, attrs=[("IFLA_AF_SPEC", {"attrs": [("AF_INET6", mode)]})])
    except NetlinkError as error:
        if error.code not in _NO_IPV6:
            raise


async def _set_addresses(
    netlink: AsyncIPRoute, index: int, addresses: Sequence[IPv4Interface | IPv6Interface]
) -> tuple[IPv4Interface | IPv6Interface, ...]:
    found = await _present_addresses(netlink, index)
    present = found & set(addresses)
    others = [*(found - present)]
    # A device without IPv4 address loses its routes, so the new address comes first. In the same network it would be
    # removed with the old one.
    for other in [*others]:
        if any(address.network == other.network for address in addresses):
            others.remove(other)
            await _address(netlink, "del", index, other)
    for address in addresses:
        if address in present:
            continue
        try:
            await _address(netlink, "add", index, address)
        except NetlinkError as error:
            if address.version == 4 or error.code not in _NO_IPV6:
                raise
        else:
            present.add(address)
    for other in others:
        await _address(netlink, "del", index, other)
    return tuple(address for address in addresses if address in present)


async def _present_addresses(netlink: AsyncIPRoute, index: int) -> set[IPv4Interface | IPv6Interface]:
    found = set()
    async for message in await netlink.get_addr(index=index):
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.add(ip_interface(f"{text}/{message['prefixlen']}"))
    return found


async def _address(
    netlink: AsyncIPRoute, command: str, index: int, address: IPv4Interface | IPv6Interface
) -> None:
    flags = {"flags": _IFA_F_NODAD} if command == "add" and address.version == 6 else {}
    await netlink.addr(
        command, index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags
    )


async def _rename(netlink: AsyncIPRoute, index: int, name: str) -> None:
    try:
        await netlink.link("set", index=index, ifname=name)
    except NetlinkError as error:
        # Before Linux 6.2 a device that is up keeps its name.
        if error.code != errno.EBUSY:
            raise
        await netlink.link("set", index=index, state="down")
        await netlink.link("set", index=index, ifname=name)
