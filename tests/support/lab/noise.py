"""A process inside a host that sends as many kinds of packets as it can think of, whatever becomes of them.

    with Noise(client, "eth0", SERVER4, SERVER6):
        ...

Every few milliseconds each address gets a new TCP connection, UDP datagrams to some ports (DNS and QUIC among them),
from a socket kept since the beginning, a new one, and one bound to the outer interface, and an ICMP echo request. The
process is this file, run as a script with the standard library alone.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.support.lab.net import Namespace

PORTS = (7, 53, 443)
PAUSE = 0.01
"""Seconds between two rounds, if nothing else is asked for."""
KEPT = 64
"""Connections that are being made at any time."""
ECHO4, ECHO6 = struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), struct.pack("!BBHHH", 128, 0, 0, 0, 0)
DNS = bytes.fromhex("1234 0100 0001 0000 0000 0000 01 61 04 74657374 00 0001 0001")


class Noise:
    """Runs until `stop`, or the end of the `with`. Each address has had its first round when this begins."""

    def __init__(self, host: Namespace, device: str, *addresses: str, pause: float = PAUSE) -> None:
        self._child = host.popen(
            [sys.executable, __file__, str(pause), device, *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        said, *ports = self._child.stdout.readline().split() or [""]
        if said != "ready":
            raise OSError("the noise did not start")
        self.bound_ports = frozenset(map(int, ports))
        """Source ports of the UDP sockets that have opened the device by name."""

    def stop(self) -> tuple[int, int]:
        """Packets that the kernel took, and those that it refused."""
        output, _ = self._child.communicate()
        taken, refused = output.split()
        return int(taken), int(refused)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.stdout is not None and not self._child.stdout.closed:
            self.stop()


class Sender:
    """The sockets of one address."""

    def __init__(self, address: str, device: str) -> None:
        self.address = address
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
        self._echo = ECHO6 if ":" in address else ECHO4
        self._ping = socket.socket(self._family, socket.SOCK_RAW, protocol)
        self._old = socket.socket(self._family, socket.SOCK_DGRAM)
        self._bound = socket.socket(self._family, socket.SOCK_DGRAM)
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        for sock in (self._ping, self._old, self._bound):
            sock.setblocking(False)
        self._bound.bind(("", 0))
        self.bound_port: int = self._bound.getsockname()[1]
        self._connecting: list[socket.socket] = []
        self.taken = self.refused = 0

    def round(self) -> None:
        with socket.socket(self._family, socket.SOCK_DGRAM) as new:
            new.setblocking(False)
            for sock in (self._old, new, self._bound):
                for port in PORTS:
                    self._try(sock, DNS, port)
        self._try(self._ping, self._echo, 0)
        for port in (53, 80):
            sock = socket.socket(self._family, socket.SOCK_STREAM)
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect((self.address, port))
            self._connecting.append(sock)
        while len(self._connecting) > KEPT:
            self._connecting.pop(0).close()

    def _try(self, sock: socket.socket, data: bytes, port: int) -> None:
        try:
            sock.sendto(data, (self.address, port))
            self.taken += 1
        except OSError:
            self.refused += 1


def main(pause: str, device: str, *addresses: str) -> None:
    """The child: sends until its input ends, then says how much it was."""
    senders = [Sender(address, device) for address in addresses]
    for sender in senders:
        sender.round()
    print("ready", *(sender.bound_port for sender in senders), flush=True)
    while not select.select([sys.stdin], [], [], float(pause))[0]:
        for sender in senders:
            sender.round()
    print(sum(sender.taken for sender in senders), sum(sender.refused for sender in senders))


if __name__ == "__main__":
    main(*sys.argv[1:])
