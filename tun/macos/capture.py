"""The capture of the leak test on macOS: BPF devices, netstat, IP_BOUND_IF.

    /dev/bpfN, one for each interface  ->  records (bpf.py)  ->  what follows the link header  ->  the watch

A BPF device sees one interface, so each interface has its own, and those that come are found at every look. Between its
coming and the next look an interface is not seen; the counters of all interfaces are in the report.

Not yet run on a Mac; written from bpf(4), Apple's net/bpf.h, netinet/in.h and netinet6/in6.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Self

from cryprq_proxy.base.faults import Faults
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of

from ..leaktest.system import SNAP, LeakTestSystem
from ..leaktest.watch import MAX_INTERFACES, Watch
from .bpf import LINK_SIZE, is_known, network_packet, parse_records
from .programs import Run, ask, run

_log = logging.getLogger(__name__)

CAPTURE_BUFFER: Final = 512 << 10
"""Bytes for each interface, twice in the kernel."""
LOOK_SECONDS: Final = 0.1
"""Between two looks at what interfaces there are, and at what each of them has."""
DRAIN: Final = 16
"""Buffers read per wake-up."""
MAX_BPF: Final = 256
"""Devices that are tried: the kernel has no more (debug.bpf_maxdevices)."""

# net/bpf.h
_BIOCSBLEN: Final = 0xC0044266
_BIOCSETF: Final = 0x80104267
_BIOCGDLT: Final = 0x4004426A
_BIOCSETIF: Final = 0x8020426C
_BIOCGSTATS: Final = 0x4008426F
_BIOCIMMEDIATE: Final = 0x80044270
_BIOCSEXTHDR: Final = 0x8004427C
_UINT: Final = struct.Struct("=I")
_STATISTICS: Final = struct.Struct("=II")
_NO_INTERFACE: Final = frozenset({errno.ENXIO, errno.ENETDOWN, errno.EIO})
"""What the kernel says of an interface that is gone or down: nothing leaves by it."""
# struct bpf_insn { u_short code; u_char jt, jf; u_int k; }: keep the first bytes of everything.
_FILTER: Final = struct.pack("=HBBI", 0x06, 0, 0, SNAP + LINK_SIZE)
_UNSEEN: Final = re.compile(r"(lo|pktap|iptap)[0-9]+")
"""Loopback, and the interfaces of tcpdump, which show again what others have."""

# netinet/in.h, netinet6/in6.h
_IP_BOUND_IF: Final = 25
_IPV6_BOUND_IF: Final = 125

type Ioctl = Callable[[int, int, Any], Any]


class BpfDevice(NamedTuple):
    """An open device that captures what one interface has."""

    fd: int
    size: int
    """Bytes of its buffer: each read must ask for exactly so many."""
    link: int
    """What stands in front of the IP header."""


def attach(
    interface: str, open_file: Callable[[str, int], int] = os.open, ioctl: Ioctl = fcntl.ioctl
) -> BpfDevice | None:
    """Open a device for this interface; None where it is gone or down. Raises ConfigError, OSError."""
    fd = _open(open_file)
    try:
        size = bytearray(_UINT.pack(CAPTURE_BUFFER))
        ioctl(fd, _BIOCSBLEN, size)
        # Before the interface, so that the first packet is recorded as all others.
        ioctl(fd, _BIOCSEXTHDR, _UINT.pack(1))
        ioctl(fd, _BIOCIMMEDIATE, _UINT.pack(1))
        program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
        ioctl(fd, _BIOCSETF, struct.pack("=I4xQ", 1, ctypes.addressof(program)))
        ioctl(fd, _BIOCSETIF, struct.pack("=16s16x", interface.encode()))
        link = bytearray(_UINT.size)
        ioctl(fd, _BIOCGDLT, link)
    except OSError as error:
        os.close(fd)
        if error.errno in _NO_INTERFACE:
            return None
        raise
    except BaseException:
        os.close(fd)
        raise
    return BpfDevice(fd, *_UINT.unpack(size), *_UINT.unpack(link))


def _open(open_file: Callable[[str, int], int]) -> int:
    for number in range(MAX_BPF):
        try:
            return open_file(f"/dev/bpf{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise ConfigError("the leak test looks at all packets that leave: run it as root") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                continue
            raise ConfigError(f"/dev/bpf{number} cannot be opened: {reason_of(error)}") from error
    raise ConfigError("all BPF devices are taken: end what captures packets, as tcpdump, and test again")


def _interfaces() -> Iterable[tuple[int, str]]:
    return socket.if_nameindex()


class BpfCapture:
    """Feeds a `Watch` with all packets that leave by an interface other than loopback. A context manager.

    Raises ConfigError where this process may not capture.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        attach: Callable[[str], BpfDevice | None] = attach,
        interfaces: Callable[[], Iterable[tuple[int, str]]] = _interfaces,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        self._watch = watch
        self._attach = attach
        self._interfaces = interfaces
        self._ioctl = ioctl
        self._faults = Faults("leaves packets of the leak test unseen")
        self._devices: dict[tuple[int, str], BpfDevice] = {}
        self._lost = 0
        self._untaken: set[tuple[int, str]] = set()
        """Interfaces that came and could not be captured."""
        self._following: asyncio.Task[None] | None = None
        try:
            self._look()
        except OSError as error:
            self._close()
            raise ConfigError(f"the leak test cannot capture packets: {reason_of(error)}") from error
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        for device in self._devices.values():
            self._listen(device)
        self._following = spawn(self._follow(), "interfaces of the leak test")
        return self

    def __exit__(self, *_: object) -> None:
        if self._following is not None:
            self._following.cancel()
        for key in list(self._devices):
            self._drop(key)

    def finish(self) -> int:
        """Read what is left, and say how many packets were not looked at so far: the kernel had to drop them, this
        program has a fault, they came on a link that it cannot read, or on an interface that it could not capture."""
        for key in list(self._devices):
            while self._read(key):
                pass
        dropped = sum(self._dropped(device) for device in self._devices.values())
        return dropped + self._lost + self._faults.count + len(self._untaken)

    async def _follow(self) -> None:
        # Nothing tells all of it: an interface, and the first packet on a device, may come at any time.
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                for device in self._look():
                    self._listen(device)
            except (OSError, CryprqError) as error:
                _log.debug("the capture does not follow: %s", error)
            for key in list(self._devices):
                self._read(key)

    def _look(self) -> list[BpfDevice]:
        """Capture what there is now. Raises OSError, ConfigError; all other interfaces are captured then."""
        present = {(index, name) for index, name in self._interfaces() if not _UNSEEN.fullmatch(name)}
        for key in self._devices.keys() - present:
            self._read(key)
            self._drop(key)
        new = []
        failed: OSError | CryprqError | None = None
        for key in sorted(present - self._devices.keys() - self._untaken):
            if len(self._devices) >= MAX_INTERFACES:
                self._untaken.add(key)
                continue
            try:
                device = self._attach(key[1])
            except (OSError, CryprqError) as error:
                self._untaken.add(key)
                failed = error
                continue
            if device is not None:
                self._devices[key] = device
                new.append(device)
        if failed is not None:
            raise failed
        return new

    def _listen(self, device: BpfDevice) -> None:
        key = next(key for key, each in self._devices.items() if each is device)
        asyncio.get_running_loop().add_reader(device.fd, self._read, key)

    def _read(self, key: tuple[int, str]) -> bool:
        """Hand what waits to the watch, a bounded number of buffers. Returns whether more may wait."""
        for _ in range(DRAIN):
            if key not in self._devices:
                return False
            device = self._devices[key]
            try:
                data = os.read(device.fd, device.size)
            except BlockingIOError:
                return False
            except OSError as error:
                # The interface is gone. With it went what it had.
                _log.debug("the capture on %s says %s", key[1], error)
                self._drop(key)
                return False
            if not data:
                return False
            self._hand_over(key[1], device.link, data)
        return True

    def _hand_over(self, interface: str, link: int, data: bytes) -> None:
        packets, damaged = parse_records(data)
        self._lost += damaged
        if not is_known(link):
            self._lost += len(packets)
            return
        for packet in packets:
            try:
                self._watch.frame(interface, network_packet(link, packet)[:SNAP])
            except Exception as error:  # noqa: BLE001  the packet counts as one that was not seen
                self._faults.report(error)

    def _dropped(self, device: BpfDevice) -> int:
        statistics = bytearray(_STATISTICS.size)
        try:
            self._ioctl(device.fd, _BIOCGSTATS, statistics)
        except OSError:
            return 0
        return int(_STATISTICS.unpack(statistics)[1])

    def _drop(self, key: tuple[int, str]) -> None:
        device = self._devices.pop(key)
        self._lost += self._dropped(device)
        # Not every caller has a loop.
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(device.fd)
        os.close(device.fd)

    def _close(self) -> None:
        for key in list(self._devices):
            self._drop(key)


def packets_sent(run: Run = run) -> dict[str, int]:
    """Packets sent by each interface but loopback, from `netstat -ibn`. Raises CryprqError.

    Each interface has one line with the number of its link, and more with its addresses. The column of the address may
    be empty, so columns are counted from the end.
    """
    head, *lines = ask(run, "netstat", "-ibn").splitlines() or [""]
    columns = head.split()
    if "Opkts" not in columns:
        raise CryprqError(f"netstat gives no table of interfaces, but: {head[:80]!r}")
    back = columns.index("Opkts") - len(columns)
    found = {}
    for line in lines:
        fields = line.split()
        if len(fields) < 3 - back or not fields[2].startswith("<Link#"):
            continue
        # A star marks an interface that is down.
        name, count = fields[0].rstrip("*"), fields[back]
        if count.isdecimal() and not _UNSEEN.fullmatch(name):
            found[name] = int(count)
    return found


def bind_to(sock: socket.socket, interface: str) -> None:
    """IP_BOUND_IF (ip(4)), IPV6_BOUND_IF. Raises OSError."""
    index = socket.if_nametoindex(interface)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_BOUND_IF, index)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_BOUND_IF, index)


MACOS_LEAK_TEST: Final = LeakTestSystem(BpfCapture, packets_sent, bind_to)
