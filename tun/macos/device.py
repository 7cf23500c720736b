"""The utun device of macOS: packets as datagrams of a kernel control socket.

Not yet run on a Mac. Written from Apple's headers (sys/kern_control.h, net/if_utun.h) and ifconfig(8), and tested
elsewhere as far as a pair of sockets can stand in for the kernel.

In front of each packet stand 4 bytes: its address family, in network byte order. There are no offloads: super-packets
from the link are cut in software (offload.split), checksums completed. The device goes when its socket is closed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.lane.slices import MAX_PACKET, Shape
from tun.device.offload import COMPLETE, split
from tun.device.packets import Drop

from ..settings import MIN_MTU
from ..system import Device
from .networks import Interface, MacInterface, read_interfaces
from .programs import Command, ProgramError, Run, asking, change, run

FAMILY_SIZE: Final = 4
AF_INET: Final = 2
AF_INET6: Final = 30
"""macOS's own numbers; Linux has others, so the constants of `socket` would be wrong in tests."""

_AF_SYSTEM: Final = 32
_SYSPROTO_CONTROL: Final = 2
_UTUN_OPT_IFNAME: Final = 2
_CTLIOCGINFO: Final = 0xC0644E03
_CTL_INFO: Final = struct.Struct("=I96s")  # struct ctl_info: u_int32_t ctl_id; char ctl_name[96]
_CONTROL: Final = b"com.apple.net.utun_control"
_NAME: Final = re.compile(r"utun(0|[1-9][0-9]{0,3})?")

_HEADS: Final = {4: AF_INET.to_bytes(FAMILY_SIZE), 6: AF_INET6.to_bytes(FAMILY_SIZE)}
_VERSIONS: Final = {head: version for version, head in _HEADS.items()}


type OpenControl = Callable[[str], tuple[int, str]]
"""Makes the device of this name, or the next free one for `utun`: a non-blocking descriptor, and the name given. Raises
ConfigError."""


def open_control(name: str) -> tuple[int, str]:
    """By a kernel control socket, which is the device for as long as it is open."""
    unit = unit_of(name)
    try:
        control = socket.socket(_AF_SYSTEM, socket.SOCK_DGRAM, _SYSPROTO_CONTROL)
    except OSError as error:
        raise ConfigError(
            f"this system has no kernel control sockets ({reason_of(error)}): is it macOS?"
        ) from error
    with control:
        try:
            info = fcntl.ioctl(control, _CTLIOCGINFO, _CTL_INFO.pack(0, _CONTROL))
            control.connect((_CTL_INFO.unpack(info)[0], unit))
            given = control.getsockopt(_SYSPROTO_CONTROL, _UTUN_OPT_IFNAME, 32)
        except PermissionError as error:
            raise ConfigError(f"the network device {name} may not be created: run as root") from error
        except OSError as error:
            if error.errno == errno.EBUSY:
                text = f"there is a network device {name} already: take another number, or utun alone"
                raise ConfigError(text) from error
            raise ConfigError(f"the kernel does not create {name}: {reason_of(error)}") from error
        control.setblocking(False)
        return control.detach(), given.split(b"\0")[0].decode("ascii", "replace")


def mtu_command(device: str, mtu: int) -> Command:
    return Command(("ifconfig", device, "mtu", str(mtu)))


def address_command(device: str, address: Interface, verb: str) -> Command:
    """`alias` or `-alias`. The other end of the point-to-point device is the address itself."""
    if address.version == 4:
        there = (str(address.ip),) if verb == "alias" else ()
        return Command(("ifconfig", device, "inet", str(address if there else address.ip), *there, verb))
    shown = str(address) if verb == "alias" else str(address.ip)
    return Command(("ifconfig", device, "inet6", shown, verb))


def configuration(device: str, mtu: int, wanted: Sequence[Interface], found: MacInterface) -> list[Command]:
    """What gives the device this MTU and these addresses and no others, in this order, and brings it up."""
    commands = [] if found.mtu == mtu else [mtu_command(device, mtu)]
    for version in (4, 6):
        own = [each for each in found.addresses if each.version == version and not each.ip.is_link_local]
        commands += _readdress(device, own, [each for each in wanted if each.version == version])
    return commands if found.up else [*commands, Command(("ifconfig", device, "up"))]


def _readdress(device: str, own: Sequence[Interface], wanted: Sequence[Interface]) -> Iterator[Command]:
    """The kernel takes the first address of the device for the source of what programs send, and appends new ones: so
    from the first difference on, those that may stay go and come again, each behind the one before. There is always
    one, since with the last one the routes into the device may go."""
    kept = 0
    while kept < min(len(own), len(wanted)) and own[kept] == wanted[kept]:
        kept += 1
    old, new = own[kept:], wanted[kept:]
    for address in new:
        if address in old:
            yield address_command(device, address, "-alias")
        yield address_command(device, address, "alias")
    for address in old:
        if address not in new:
            yield address_command(device, address, "-alias")


class Utun(Device):
    """A utun device; the same to its user as the TUN of Linux."""

    def __init__(
        self, fd: int, name: str, mtu: int, run: Run = run, aliases: Sequence[Interface] = ()
    ) -> None:
        """For a connected control socket; else use `open`."""
        super().__init__(fd, name, mtu, FAMILY_SIZE)
        self._run = run
        self._setting = asyncio.Lock()
        self._addresses: tuple[Interface, ...] = ()
        self._aliases = tuple(aliases)
        self.own: frozenset[bytes] = frozenset()
        """The addresses that it is configured with, packed."""

    @classmethod
    def open(
        cls,
        name: str,
        *,
        mtu: int,
        aliases: Sequence[Interface] = (),
        run: Run = run,
        control: OpenControl = open_control,
    ) -> Utun:
        """Create the device `name`: utun and a number, or utun alone for the next free one.

        It gets `aliases` besides each address of their family that it is configured with. Raises ConfigError.
        """
        fd, given = control(name)
        try:
            return cls(fd, given, mtu, run, aliases)
        except BaseException:
            os.close(fd)
            raise

    def index(self) -> int:
        return 0

    async def configure(self, addresses: Sequence[Interface]) -> tuple[Interface, ...]:
        async with self._setting:
            self._addresses = tuple(addresses)
            self.own = frozenset(each.ip.packed for each in self._wanted())
            await asyncio.to_thread(self._configure)
        return self._addresses

    def _wanted(self) -> list[Interface]:
        versions = {address.version for address in self._addresses}
        return [*self._addresses, *(alias for alias in self._aliases if alias.version in versions)]

    def versions(self) -> frozenset[int]:
        return frozenset({4, 6})

    async def set_mtu(self, mtu: int) -> None:
        if not MIN_MTU <= mtu <= MAX_PACKET:
            raise ConfigError(
                f"the tunnel's MTU cannot be {mtu}: it must be from {MIN_MTU} to {MAX_PACKET} bytes"
            )
        async with self._setting:
            await asyncio.to_thread(self._change, mtu_command(self.name, mtu))
            self.mtu = mtu

    async def difference(self) -> str:
        async with self._setting:
            found = await asyncio.to_thread(self._present)
        own = sorted((each for each in found.addresses if not each.ip.is_link_local), key=_version)
        wanted = sorted(self._wanted(), key=_version)
        said = [f"the address {address} was removed" for address in wanted if address not in own]
        said += [f"the address {address} was added" for address in own if address not in wanted]
        if not said and own != wanted:
            said.append("its addresses stood in another order")
        if found.mtu != self.mtu:
            said.insert(0, f"its MTU was {found.mtu}")
        if not found.up:
            said.insert(0, "it was down")
        return ", ".join(said)

    async def restore(self) -> None:
        async with self._setting:
            await asyncio.to_thread(self._configure)

    def _configure(self) -> None:
        found = self._present()
        wanted = self._wanted()
        for command in configuration(self.name, self.mtu, wanted, found):
            self._change(command)

    def _present(self) -> MacInterface:
        """Raises ConfigError, and tells the reader, if the device is gone."""
        command = asking("ifconfig", self.name)
        answer = self._run(command)
        found = next(read_interfaces(answer.out), None)
        if found is not None and found.name == self.name:
            return found
        if "does not exist" in answer.err:
            self.lost(OSError(errno.ENXIO, os.strerror(errno.ENXIO)))
            raise ConfigError(f"another program removed the device {self.name}")
        raise ConfigError(
            f"`{command}` answers in a form that is not understood: nothing can be told of {self.name}"
        )

    def _change(self, command: Command) -> None:
        try:
            change(self._run, command)
        except ProgramError as error:
            raise ConfigError(f"{self.name} cannot be set up: {error}") from None

    def write(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        for low, high in split(buffer, start, end, shape):
            head = _HEADS.get(buffer[low] >> 4)
            if head is None or high - low < 20:
                self.drops[Drop.VERSION] += 1
                return False
            at = low - FAMILY_SIZE
            buffer[at:low] = head
            failed = self._write_message(buffer[at:high], high - low)
            if failed:
                return self._dropped(failed)
        return True

    def _shape(self, buffer: memoryview, start: int, end: int) -> Shape | Drop:
        version = _VERSIONS.get(bytes(buffer[start - FAMILY_SIZE : start]))
        return COMPLETE if version == buffer[start] >> 4 else Drop.FAMILY


def _version(address: Interface) -> int:
    return address.version


def unit_of(name: str) -> int:
    """The unit number that asks the control for this device: one more than the name's, 0 for any."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} is no name for a tunnel on macOS: use utun, or utun and a number")
    return int(match[1]) + 1 if match[1] else 0
