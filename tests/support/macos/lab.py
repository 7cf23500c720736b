"""The client on a fake Mac in the lab's client host, against a real exit: packets of programs are made by hand."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.lab.links import Links
from tests.support.lab.net import LONG, Namespace, until
from tests.support.macos import packet
from tests.support.macos.kernel import Fate, Kernel
from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import End
from tun.settings import RESOLVER4, RESOLVER6


class MacLinks(Links):
    """Links whose clients run on the fake Mac; exits do not."""

    def __init__(self, directory: Path, mac: FakeMac) -> None:
        super().__init__(directory)
        self.mac = mac
        mac.install()

    def command(self, *arguments: str) -> list[str]:
        if arguments[0] == "exit":
            return super().command(*arguments)
        return [sys.executable, "-m", "tests.support.macos.driver", str(self.mac.directory), *arguments]

    def cleanup(self, host: Namespace) -> subprocess.CompletedProcess[str]:
        return self.call(host, "cleanup", "--state-dir", str(self.state_dir))


def prepare(host: Namespace) -> None:
    """The forwarder's sockets are the host's own, so its addresses are there."""
    host.ip(f"addr add {RESOLVER4}/32 dev lo")
    host.ip(f"addr add {RESOLVER6}/128 dev lo")


class Programs:
    """Programs on the Mac that send by its kernel, and get what comes back."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._got: list[bytes] = []
        self._changed = threading.Condition()
        kernel.on_local = self._take

    def _take(self, interface: str, data: bytes) -> None:
        with self._changed:
            self._got.append(data)
            self._changed.notify_all()

    def address(self, version: int = 4) -> str:
        """Of the tunnel."""
        own = {str(RESOLVER4), str(RESOLVER6)}
        found = [
            each.address
            for one in self._kernel.mac.read().interfaces
            if one.owner == "a control socket"
            for each in one.addresses
            if each.address not in own and not each.address.startswith("fe80")
        ]
        return next(each for each in found if (":" in each) == (version == 6))

    def exchange(self, data: bytes, answers: Callable[[bytes], bool]) -> bytes:
        """Send until it is answered, as programs do; the last answer. Raises AssertionError without one."""
        found: list[bytes] = []

        def answered() -> bool:
            fate = self._kernel.send(data)
            assert fate.where.startswith("utun"), fate
            with self._changed:
                self._changed.wait_for(lambda: any(map(answers, self._got)), 1)
                found[:] = [each for each in self._got if answers(each)]
            return bool(found)

        until(answered, "an answer", LONG)
        return found[-1]

    def ping(self, destination: str) -> None:
        version = 6 if ":" in destination else 4
        request = packet.ping(self.address(version), destination)
        kind = 129 if version == 6 else 0

        def answers(data: bytes) -> bool:
            seen = packet.read_packet(data)
            return (
                str(seen.source) == destination and seen.icmp_type == kind and seen.proto.startswith("icmp")
            )

        self.exchange(request, answers)

    def udp(self, destination: End, payload: bytes, port: int = 40001) -> bytes:
        """The payload of the answer."""
        own = self.address(6 if ":" in destination.address else 4)
        sent = packet.udp(End(own, port), destination, payload)

        def answers(data: bytes) -> bool:
            seen = packet.read_packet(data)
            return (str(seen.source), seen.source_port, seen.destination_port) == (*destination, port)

        return packet.payload_of(self.exchange(sent, answers))

    def tcp(self, destination: End, payload: bytes, port: int = 40002) -> bytes:
        """What an echo service says to this: a handshake, one segment there and one back."""
        own = End(self.address(6 if ":" in destination.address else 4), port)

        def answers(data: bytes, flag: str) -> bool:
            seen = packet.read_packet(data)
            ends = (str(seen.source), seen.source_port, seen.destination_port)
            there = ends == (*destination, port) and flag in seen.flags
            return there and (flag == "S" or bool(packet.payload_of(data)))

        first = self.exchange(packet.tcp(own, destination, "S", 1000), lambda data: answers(data, "S"))
        theirs = packet.numbers_of(first)[0] + 1
        said = self.exchange(
            packet.tcp(own, destination, "PA", 1001, theirs, payload), lambda data: answers(data, "P")
        )
        self._kernel.send(packet.tcp(own, destination, "R", 1001 + len(payload)))
        return packet.payload_of(said)

    def fate(self, destination: str, *, uid: int | None = 501, scope: str = "") -> Fate:
        """Of a program's datagram there, as sent from the Mac's own network."""
        own = "2001:db8:1:2:1c2f:11ff:fe22:3344" if ":" in destination else "192.168.1.23"
        return self._kernel.fate(packet.udp(End(own, 40003), End(destination, 9)), uid=uid, scope=scope)
