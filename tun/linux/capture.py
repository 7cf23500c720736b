"""The capture of the leak test on Linux: packet(7), /proc/net/dev, SO_BINDTODEVICE.

The capture is one AF_PACKET socket for every interface there is or comes, without the link header, and a small filter
in the kernel that keeps only what leaves, and of that the first bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
from pathlib import Path
from typing import Final, Self

from cryprq_proxy.base.faults import Faults
from cryprq_proxy.errors import ConfigError

from ..leaktest.system import SNAP, LeakTestSystem
from ..leaktest.watch import Watch

_log = logging.getLogger(__name__)

CAPTURE_BUFFER: Final = 16 << 20
DRAIN: Final = 256
"""Packets read per wake-up."""

# linux/if_ether.h, linux/if_packet.h, linux/if_arp.h, asm-generic/socket.h
_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_OUTGOING: Final = 4
_ARPHRD_LOOPBACK: Final = 772
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33

# struct sock_filter { u16 code; u8 jt, jf; u32 k; }, linux/filter.h: load skb->pkt_type, and keep what leaves.
_INSTRUCTION: Final = struct.Struct("=HBBI")
_PKTTYPE: Final = 0xFFFFF000 + 4
_FILTER: Final = b"".join(
    (
        _INSTRUCTION.pack(0x30, 0, 0, _PKTTYPE),
        _INSTRUCTION.pack(0x15, 0, 1, _PACKET_OUTGOING),
        _INSTRUCTION.pack(0x06, 0, 0, SNAP),
        _INSTRUCTION.pack(0x06, 0, 0, 0),
    )
)


class SocketCapture:
    """Feeds a `Watch` with all packets that leave by an interface other than loopback. A context manager.

    Raises ConfigError where this process may not capture.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._faults = Faults("leaves packets of the leak test unseen")
        try:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        except PermissionError:
            raise ConfigError("the leak test looks at all packets that leave: run it as root") from None
        try:
            self._sock.setblocking(False)
            with contextlib.suppress(PermissionError):
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, CAPTURE_BUFFER)
            program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
            count = len(_FILTER) // _INSTRUCTION.size
            self._sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(program))
            )
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._sock, self.read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def read(self, most: int = DRAIN) -> int:
        """Hand at most `most` waiting packets to the watch; how many there were."""
        for count in range(most):
            try:
                data, (interface, _, direction, hardware, _) = self._sock.recvfrom(SNAP)
            except BlockingIOError:
                return count
            except OSError as error:
                # An interface went down (ENETDOWN). The kernel says so once, and the capture goes on for the others.
                _log.debug("the capture says %s", error)
                continue
            if direction == _PACKET_OUTGOING and hardware != _ARPHRD_LOOPBACK:
                try:
                    self._watch.frame(interface, data)
                except Exception as error:  # noqa: BLE001  the packet counts as one that was not seen
                    self._faults.report(error)
        return most

    def finish(self) -> int:
        """Read what is left, and say how many packets were not looked at so far: the kernel had to drop them, or this
        program has a fault."""
        while self.read() == DRAIN:
            pass
        _, dropped = struct.unpack(
            "II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, struct.calcsize("II"))
        )
        return int(dropped) + self._faults.count


def packets_sent(path: Path = Path("/proc/thread-self/net/dev")) -> dict[str, int]:
    """Packets sent by each interface of this network namespace but loopback, from the kernel's counters (proc(5))."""
    found = {}
    for line in path.read_text("ascii", "replace").splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        fields = numbers.split()
        if len(fields) > 9 and name.strip() != "lo":
            found[name.strip()] = int(fields[9])
    return found


def bind_to(sock: socket.socket, interface: str) -> None:
    """SO_BINDTODEVICE (socket(7)). Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())


LINUX_LEAK_TEST: Final = LeakTestSystem(SocketCapture, packets_sent, bind_to)
