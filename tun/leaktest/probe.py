"""The leak test's hands: a capture on all interfaces, and the sockets that the canaries leave by.

    open the capture  ->  all canaries at once, a few times  ->  answers, or the time is up  ->  read the capture

The capture is one AF_PACKET socket for every interface there is or comes, without the link header, and a small filter
in the kernel that keeps only what leaves, and of that the first bytes. watch.py judges what it sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from cryprq_proxy.base.faults import Faults
from cryprq_proxy.base.program import to_run
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.rules.ranges import IPNetwork

from ..device.packets import ICMP, ICMP6, TCP, UDP, checksum
from .canaries import Canary, CanaryTargets, canaries
from .held import HeldFlow
from .report import LeakReport
from .watch import Watch

_log = logging.getLogger(__name__)

NO_TUNNEL: Final = ""
"""For a test while lockdown alone stands: no interface has this name."""
SECONDS: Final = 4.0
"""For all canaries together, which are sent at the same time."""
ROUNDS: Final = 2
"""How often each is sent, if it is not answered."""
SETTLE_SECONDS: Final = 0.5
"""What may still wait for a neighbour's address leaves within this time, or never."""
SNAP: Final = 320
"""Bytes captured of a packet; a canary has its token before that, behind any headers."""
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
_ECHO_REQUEST: Final = {ICMP: 8, ICMP6: 128}
_ECHO_REPLY: Final = {ICMP: b"\x00", ICMP6: b"\x81"}


class Capture:
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


async def run(
    *,
    tunnel: str,
    exits: Sequence[tuple[str, int]],
    allowed: Sequence[IPNetwork] = (),
    targets: CanaryTargets | None = None,
    held: Sequence[HeldFlow] = (),
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
) -> LeakReport:
    """Do the test, which takes `seconds` and a little more: see `Watch` for the parameters.

    The sockets of `held` send as well, and are closed.

    Raises ConfigError without root, and where there is no such tunnel.
    """
    if tunnel != NO_TUNNEL and tunnel not in {name for _, name in socket.if_nameindex()}:
        raise ConfigError(f"there is no interface {tunnel}: start {to_run('--tun')} first, then test")
    fresh = canaries(targets or CanaryTargets())
    watch = Watch([*fresh, *(flow.canary for flow in held)], tunnel=tunnel, exits=exits, allowed=allowed)
    before = packets_sent()
    with Capture(watch) as capture:
        flying = [
            spawn(_fly(watch, number, canary, seconds, rounds), f"canary {canary.name} to {canary.target}")
            for number, canary in enumerate(fresh)
        ]
        flying += [
            spawn(_fly_held(watch, number, flow, seconds, rounds), f"kept flow to {flow.canary.target}")
            for number, flow in enumerate(held, len(fresh))
        ]
        try:
            await asyncio.gather(*flying)
            await asyncio.sleep(SETTLE_SECONDS)
        finally:
            for task in flying:
                task.cancel()
        missed = capture.finish()
    after = packets_sent()
    counters = {name: count - before.get(name, 0) for name, count in after.items() if name != "lo"}
    return watch.report(missed=missed, counters=counters)


async def _fly(watch: Watch, number: int, canary: Canary, seconds: float, rounds: int) -> None:
    """Send one canary until it is answered or the time is up."""
    send = {TCP: _by_tcp, UDP: _by_udp}.get(canary.protocol, _by_icmp)
    for _ in range(rounds):
        try:
            async with asyncio.timeout(seconds / rounds):
                await send(watch, number, canary)
        except TimeoutError:
            continue
        except OSError as error:
            watch.trouble(number, _why(error))
            continue
        watch.answered(number)
        return


async def _fly_held(watch: Watch, number: int, flow: HeldFlow, seconds: float, rounds: int) -> None:
    """Send on a kept flow until it is answered or the time is up."""
    with flow.sock as sock:
        watch.launched(number, sock.getsockname()[1])
        for _ in range(rounds):
            try:
                async with asyncio.timeout(seconds / rounds):
                    flow.send()
                    if await asyncio.get_running_loop().sock_recv(sock, 2048):
                        watch.answered(number)
                    return
            except TimeoutError:
                continue
            except OSError as error:
                watch.trouble(number, _why(error))


async def _by_udp(watch: Watch, number: int, canary: Canary) -> None:
    with _socket(canary, socket.SOCK_DGRAM) as sock:
        sock.connect((canary.address, canary.port))
        watch.launched(number, sock.getsockname()[1])
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, canary.payload)
        await loop.sock_recv(sock, 2048)


async def _by_tcp(watch: Watch, number: int, canary: Canary) -> None:
    with _socket(canary, socket.SOCK_STREAM) as sock:
        # So that the port is known before the first packet.
        sock.bind(("", 0))
        watch.launched(number, sock.getsockname()[1])
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (canary.address, canary.port))
        await loop.sock_sendall(sock, canary.payload)


async def _by_icmp(watch: Watch, number: int, canary: Canary) -> None:
    kind = _ECHO_REQUEST[canary.protocol]
    echo = struct.pack("!BBHHH", kind, 0, 0, secrets.randbits(16), 1) + canary.payload
    if canary.protocol == ICMP:  # the kernel does it for ICMPv6 (RFC 3542 section 3.1)
        echo = echo[:2] + checksum(echo).to_bytes(2) + echo[4:]
    with _socket(canary, socket.SOCK_RAW, canary.protocol) as sock:
        sock.connect((canary.address, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, echo)
        while not _is_reply(await loop.sock_recv(sock, 2048), canary):
            # A raw socket hears all ICMP from that address.
            pass


def _is_reply(message: bytes, canary: Canary) -> bool:
    """Whether this is the echo reply, and not an error that quotes the request. IPv4 comes with its header (raw(7))."""
    start = (message[0] & 0x0F) * 4 if canary.protocol == ICMP and message else 0
    return message[start : start + 1] == _ECHO_REPLY[canary.protocol] and canary.token in message


def _socket(canary: Canary, kind: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in canary.address else socket.AF_INET
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if canary.device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, canary.device.encode())
    except BaseException:
        sock.close()
        raise
    return sock


def packets_sent(path: Path = Path("/proc/thread-self/net/dev")) -> dict[str, int]:
    """Packets sent by each interface of this network namespace, from the kernel's counters (proc(5))."""
    found = {}
    for line in path.read_text("ascii", "replace").splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        fields = numbers.split()
        if len(fields) > 9:
            found[name.strip()] = int(fields[9])
    return found


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "refused by the filter"
    return reason_of(error)
