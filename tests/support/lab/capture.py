"""What went over one interface of a host: every packet's addresses, ports and size, from AF_PACKET.

    with Capture(client, "eth0") as capture:
        ...
    strange = [packet for packet in capture.packets if packet.sent and not link(packet)]

`take` cuts a capture that goes on in two, with no gap and nothing in both.

The packets are read by a process of its own inside the host (this file, run as a script with the standard library
alone), so that a busy test delays nothing. The kernel counts what its buffer could not hold; a capture that missed a
packet proves nothing, so leaving the `with` then raises LabError. With offloads one packet is up to 64 KiB.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from tests.support.lab.net import Namespace

# include/uapi/linux/if_packet.h, if_ether.h, asm-generic/socket.h
ETH_P_ALL = 3
PACKET_OUTGOING = 4
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
BUFFER = 256 << 20
SNAP = 192
"""Bytes of a packet that are looked at: an IPv6 header with a few extensions, and ports."""

PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
LINK_TYPES = {0x0806: "arp"}
EXTENSIONS = {0, 43, 60}
FRAGMENT = 44


class Packet(NamedTuple):
    """One packet on the interface. A port of ICMP is its type (source) and code (destination)."""

    sent: bool
    """Left the host, else came in."""
    protocol: str
    """ "tcp", "udp", "icmp", "icmpv6", "igmp", "arp", or the number of something else."""
    source: str
    source_port: int
    destination: str
    destination_port: int
    size: int
    """Of the IP packet in bytes."""


def parse(sent: bool, kind: int, data: bytes, size: int) -> Packet:
    """A packet by its ethertype and first bytes. Ports are 0 where there are none, or cut off."""
    if kind == 0x0800 and len(data) >= 20:
        protocol, at = data[9], 4 * (data[0] & 15)
        source, destination = (socket.inet_ntop(socket.AF_INET, data[i : i + 4]) for i in (12, 16))
        first = not struct.unpack_from(">H", data, 6)[0] & 0x1FFF
    elif kind == 0x86DD and len(data) >= 40:
        protocol, at, first = data[6], 40, True
        source, destination = (socket.inet_ntop(socket.AF_INET6, data[i : i + 16]) for i in (8, 24))
        while (protocol in EXTENSIONS or protocol == FRAGMENT) and first and len(data) >= at + 8:
            if protocol == FRAGMENT:
                first = struct.unpack_from(">H", data, at + 2)[0] < 8
                protocol, at = data[at], at + 8
            else:
                protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    else:
        return Packet(sent, LINK_TYPES.get(kind, f"ethertype {kind:#06x}"), "", 0, "", 0, size)
    ports = (0, 0)
    if first and protocol in (6, 17) and len(data) >= at + 4:
        ports = struct.unpack_from(">HH", data, at)
    elif first and protocol in (1, 58) and len(data) >= at + 2:
        ports = (data[at], data[at + 1])
    name = PROTOCOLS.get(protocol, str(protocol))
    return Packet(sent, name, source, ports[0], destination, ports[1], size)


class Capture:
    """Begins at once, and holds all packets when its `with` is left or after `stop`."""

    def __init__(self, host: Namespace, device: str) -> None:
        self.packets: list[Packet] = []
        self._name = f"{host.label} {device}"
        self._child = host.popen(
            [sys.executable, "-I", "-S", __file__, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None
        if self._child.stdout.readline() != "ready\n":
            raise OSError(f"no capture on {self._name}: the interface is not there")

    def stop(self) -> list[Packet]:
        """Ends the capture; what was sent before is in it. Raises OSError if packets were missed."""
        if self._child.stdout is None or self._child.stdout.closed:
            return self.packets
        output, _ = self._child.communicate()
        self.packets = self._read(iter(output.splitlines()))
        return self.packets

    def take(self) -> list[Packet]:
        """What went over the interface before this call, and since the one before; the capture goes on.

        Raises OSError if packets were missed.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write("take\n")
        self._child.stdin.flush()
        return self._read(line.rstrip("\n") for line in self._child.stdout)

    def _read(self, lines: Iterator[str]) -> list[Packet]:
        packets: list[Packet] = []
        for line in lines:
            if line.startswith("missed "):
                if line != "missed 0":
                    raise OSError(f"the capture on {self._name} {line} packets")
                return packets
            packets.append(parse(*_decode(line)))
        raise OSError(f"the capture on {self._name} ended too early")

    def sent(self) -> list[Packet]:
        """What left the host, link-local neighbour discovery, MLD and ARP left out."""
        return leaving(self.packets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def leaving(packets: list[Packet]) -> list[Packet]:
    """Those that left the host, without what is only for its own link."""
    return [packet for packet in packets if packet.sent and not is_neighbourly(packet)]


def is_neighbourly(packet: Packet) -> bool:
    """What a host says only to its own link, whatever it is told to do: ARP, neighbour discovery, MLD, IGMP."""
    if packet.protocol == "icmpv6":
        return packet.source_port in (130, 131, 132, 133, 135, 136, 143)
    return packet.protocol in ("arp", "igmp")


def _decode(line: str) -> tuple[bool, int, bytes, int]:
    sent, kind, size, data = line.split(" ")
    return sent == "1", int(kind), bytes.fromhex(data), int(size)


def main(device: str) -> None:
    """The child: captures until its input ends. At each "take", and at the end, it writes a line per packet, and how
    many were missed."""
    # SOCK_DGRAM takes the link-layer header off, so that a TUN looks like an Ethernet device.
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.bind((device, ETH_P_ALL))
        sock.setblocking(False)
        sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)  # reading resets it
        print("ready", flush=True)
        seen: list[tuple[bool, int, int, bytes]] = []
        buffer = bytearray(SNAP)
        ended = False
        while not ended:
            readable, _, _ = select.select([sock, sys.stdin], [], [])
            asked = sys.stdin in readable
            ended = asked and not os.read(sys.stdin.fileno(), 100)
            # What was sent before the question is in the buffer already.
            for _ in range(1 << 20 if asked else 256):
                try:
                    size, _, _, address = sock.recvmsg_into([buffer], 0, socket.MSG_TRUNC)
                except BlockingIOError:
                    break
                except OSError:  # the interface went down or away
                    break
                _, kind, direction, *_ = address
                seen.append((direction == PACKET_OUTGOING, kind, size, bytes(buffer[: min(size, SNAP)])))
            if asked:
                _, missed = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
                for sent, kind, size, data in seen:
                    print(int(sent), kind, size, data.hex())
                print(f"missed {missed}", flush=True)
                seen.clear()


if __name__ == "__main__":
    main(sys.argv[1])
