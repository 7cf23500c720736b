"""The leak test's hands: a capture on all interfaces, and the sockets that the canaries leave by.

    open the capture  ->  all canaries at once, a few times  ->  answers, or the time is up  ->  read the capture

The capture is the operating system's (system.py); watch.py judges what it sees.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryprq_proxy.base.program import to_run
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.rules.ranges import IPNetwork

from ..device.packets import ICMP, ICMP6, TCP, UDP, checksum
from .canaries import Canary, CanaryTargets, canaries
from .held import HeldFlow
from .report import LeakReport
from .system import LeakTestSystem
from .watch import Watch

NO_TUNNEL: Final = ""
"""For a test while lockdown alone stands: no interface has this name."""
SECONDS: Final = 4.0
"""For all canaries together, which are sent at the same time."""
ROUNDS: Final = 2
"""How often each is sent, if it is not answered."""
SETTLE_SECONDS: Final = 0.5
"""What may still wait for a neighbour's address leaves within this time, or never."""
_ECHO_REQUEST: Final = {ICMP: 8, ICMP6: 128}
_ECHO_REPLY: Final = {ICMP: b"\x00", ICMP6: b"\x81"}


async def run(
    *,
    tunnel: str,
    exits: Sequence[tuple[str, int]],
    system: LeakTestSystem,
    allowed: Sequence[IPNetwork] = (),
    targets: CanaryTargets | None = None,
    held: Sequence[HeldFlow] = (),
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
) -> LeakReport:
    """Do the test, which takes `seconds` and a little more: see `Watch` for the parameters.

    The sockets of `held` send as well, and are closed. `system` is that of this machine.

    Raises ConfigError without root, and where there is no such tunnel.
    """
    if tunnel != NO_TUNNEL and tunnel not in {name for _, name in socket.if_nameindex()}:
        raise ConfigError(f"there is no interface {tunnel}: start {to_run('--tun')} first, then test")
    fresh = canaries(targets or CanaryTargets())
    watch = Watch([*fresh, *(flow.canary for flow in held)], tunnel=tunnel, exits=exits, allowed=allowed)
    before = system.packets_sent()
    flight = _Flight(watch, system.bind_to, seconds, rounds)
    with system.capture(watch) as capture:
        flying = [
            spawn(flight.fly(number, canary), f"canary {canary.name} to {canary.target}")
            for number, canary in enumerate(fresh)
        ]
        flying += [
            spawn(flight.fly_held(number, flow), f"kept flow to {flow.canary.target}")
            for number, flow in enumerate(held, len(fresh))
        ]
        try:
            await asyncio.gather(*flying)
            await asyncio.sleep(SETTLE_SECONDS)
        finally:
            for task in flying:
                task.cancel()
        missed = capture.finish()
    after = system.packets_sent()
    counters = {name: count - before.get(name, 0) for name, count in after.items()}
    return watch.report(missed=missed, counters=counters)


@dataclass(frozen=True, slots=True)
class _Flight:
    """How canaries are sent, and who is told what becomes of them."""

    watch: Watch
    bind_to: Callable[[socket.socket, str], None]
    seconds: float
    rounds: int

    async def fly(self, number: int, canary: Canary) -> None:
        """Send one canary until it is answered or the time is up."""
        send = {TCP: self._by_tcp, UDP: self._by_udp}.get(canary.protocol, self._by_icmp)
        for _ in range(self.rounds):
            try:
                async with asyncio.timeout(self.seconds / self.rounds):
                    await send(number, canary)
            except TimeoutError:
                continue
            except OSError as error:
                self.watch.trouble(number, _why(error))
                continue
            self.watch.answered(number)
            return

    async def fly_held(self, number: int, flow: HeldFlow) -> None:
        """Send on a kept flow until it is answered or the time is up."""
        with flow.sock as sock:
            self.watch.launched(number, sock.getsockname()[1])
            for _ in range(self.rounds):
                try:
                    async with asyncio.timeout(self.seconds / self.rounds):
                        flow.send()
                        if await asyncio.get_running_loop().sock_recv(sock, 2048):
                            self.watch.answered(number)
                        return
                except TimeoutError:
                    continue
                except OSError as error:
                    self.watch.trouble(number, _why(error))

    async def _by_udp(self, number: int, canary: Canary) -> None:
        with self._socket(canary, socket.SOCK_DGRAM) as sock:
            sock.connect((canary.address, canary.port))
            self.watch.launched(number, sock.getsockname()[1])
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, canary.payload)
            await loop.sock_recv(sock, 2048)

    async def _by_tcp(self, number: int, canary: Canary) -> None:
        with self._socket(canary, socket.SOCK_STREAM) as sock:
            # So that the port is known before the first packet.
            sock.bind(("", 0))
            self.watch.launched(number, sock.getsockname()[1])
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (canary.address, canary.port))
            await loop.sock_sendall(sock, canary.payload)

    async def _by_icmp(self, number: int, canary: Canary) -> None:
        kind = _ECHO_REQUEST[canary.protocol]
        echo = struct.pack("!BBHHH", kind, 0, 0, secrets.randbits(16), 1) + canary.payload
        if canary.protocol == ICMP:  # the kernel does it for ICMPv6 (RFC 3542 section 3.1)
            echo = echo[:2] + checksum(echo).to_bytes(2) + echo[4:]
        with self._socket(canary, socket.SOCK_RAW, canary.protocol) as sock:
            sock.connect((canary.address, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, echo)
            while not _is_reply(await loop.sock_recv(sock, 2048), canary):
                # A raw socket hears all ICMP from that address.
                pass

    def _socket(self, canary: Canary, kind: int, protocol: int = 0) -> socket.socket:
        family = socket.AF_INET6 if ":" in canary.address else socket.AF_INET
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            if canary.device:
                self.bind_to(sock, canary.device)
        except BaseException:
            sock.close()
            raise
        return sock


def _is_reply(message: bytes, canary: Canary) -> bool:
    """Whether this is the echo reply, and not an error that quotes the request. IPv4 comes with its header (raw(7)),
    whose length and fragment BSD kernels give in the host's order (ip(4)): neither is looked at."""
    start = (message[0] & 0x0F) * 4 if canary.protocol == ICMP and message else 0
    return message[start : start + 1] == _ECHO_REPLY[canary.protocol] and canary.token in message


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "refused by the filter"
    return reason_of(error)
