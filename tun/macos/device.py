"""The utun device of macOS: packets as datagrams of a kernel control socket.

Not yet run on a Mac. Written from Apple's headers (sys/kern_control.h, net/if_utun.h), and tested elsewhere as far as
a pair of sockets can stand in for the kernel.

In front of each packet stand 4 bytes: its address family, in network byte order. There are no offloads: super-packets
from the link are cut in software (offload.split), checksums completed. The device goes when its socket is closed.
"""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import struct
from typing import Final

from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.lane.slices import Shape
from tun.device.device import PacketDevice
from tun.device.offload import COMPLETE, split
from tun.device.packets import Drop

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


class Utun(PacketDevice):
    """A utun device; the same to its user as the TUN of Linux."""

    def __init__(self, fd: int, name: str, mtu: int) -> None:
        """For a connected control socket; else use `open`. The MTU is set by tun/macos/network.py."""
        super().__init__(fd, name, mtu, FAMILY_SIZE)

    @classmethod
    def open(cls, name: str, *, mtu: int) -> Utun:
        """Create the device `name`: utun and a number, or utun alone for the next free one. Raises ConfigError."""
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
            return cls(control.detach(), given.split(b"\0")[0].decode("ascii", "replace"), mtu)

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


def unit_of(name: str) -> int:
    """The unit number that asks the control for this device: one more than the name's, 0 for any."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} is no name for a tunnel on macOS: use utun, or utun and a number")
    return int(match[1]) + 1 if match[1] else 0
