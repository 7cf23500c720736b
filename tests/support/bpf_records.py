"""What a BPF device of macOS gives, made by hand from net/bpf.h, and a device that gives it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from tun.macos.capture import BpfDevice

ETHERNET4 = bytes.fromhex("a45e60000001 a45e60000002 0800")
ETHERNET6 = bytes.fromhex("a45e60000001 a45e60000002 86dd")
NULL4, NULL6 = struct.pack("=I", 2), struct.pack("=I", 30)
EXTENDED = 62
"""The size of the extended header in front of an Ethernet frame: with the 14 bytes behind it, a multiple of 4."""


def record(frame: bytes, *, outgoing: bool = True, size: int = EXTENDED, old: bool = False) -> bytes:
    """One record with its padding. `old`: the flags stand as before macOS 11."""
    flag = int(outgoing)
    flags = (flag, 0) if old else (0, flag)
    head = struct.pack("=IIIIHBB", 1_700_000_000, 123_456, len(frame), len(frame), size, *flags)
    whole = head.ljust(size, b"\0") + frame
    return whole + bytes(-len(whole) % 4)


class FakeBpf:
    """The kernel's side of the BPF devices: `attach` stands in for the function of that name, and for the ioctl."""

    def __init__(self) -> None:
        self.links: dict[str, int] = {}
        """The interfaces that there are, with their link types."""
        self.dropped = 0
        self.refused: OSError | None = None
        self._inside: dict[str, socket.socket] = {}

    def interfaces(self) -> list[tuple[int, str]]:
        return [(number, name) for number, name in enumerate(self.links, 1)]

    def attach(self, name: str) -> BpfDevice | None:
        if self.refused is not None:
            raise self.refused
        mine, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        given.setblocking(False)
        self._inside[name] = mine
        return BpfDevice(given.detach(), 1 << 16, self.links[name])

    def give(self, name: str, buffer: bytes) -> None:
        """What the next read on the device of this interface gives."""
        self._inside[name].send(buffer)

    def remove(self, name: str) -> None:
        """The interface goes."""
        del self.links[name]
        self._inside.pop(name).close()

    def close(self) -> None:
        for sock in self._inside.values():
            sock.close()

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        if request != 0x4008426F:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        argument[:] = struct.pack("=II", 99, self.dropped)


class FakeIoctl:
    """Answers the requests of an `attach` in the order that bpf(4) demands; `failing` is the one that is refused."""

    def __init__(self, failing: int = 0, error: int = 0, link: int = 1) -> None:
        self.asked: list[int] = []
        self.interface = b""
        self._failing = failing
        self._error = error
        self._link = link

    def __call__(self, fd: int, request: int, argument: Any) -> None:
        self.asked.append(request)
        if request == self._failing:
            raise OSError(self._error, os.strerror(self._error))
        if request == 0xC0044266:
            argument[:] = struct.pack("=I", 32_768)
        elif request == 0x8020426C:
            self.interface = argument.rstrip(b"\0")
        elif request == 0x4004426A:
            argument[:] = struct.pack("=I", self._link)


def bpf_files(*errors: int) -> tuple[list[str], Callable[[str, int], int]]:
    """An os.open of which the first files answer with these errors, and what was opened."""
    opened: list[str] = []

    def open_file(path: str, flags: int) -> int:
        number = len(opened)
        opened.append(path)
        if number < len(errors):
            raise OSError(errors[number], os.strerror(errors[number]))
        return os.open(os.devnull, flags)

    return opened, open_file
