"""Numbers of a UDP socket's options and control data: those of Linux, and of macOS where it has the same.

socket(7), ip(7), ipv6(7), udp(7); netinet/in.h and netinet6/in6.h of macOS. The socket module does not have them all.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

LINUX: Final = sys.platform == "linux"
MACOS: Final = sys.platform == "darwin"

SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MARK: Final = 36
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_MTU_DISCOVER: Final = 10
IP_MTU: Final = 14
IP_PMTUDISC_PROBE: Final = 3
"""Never fragmented, and sent at any size that the device takes: what a router said by ICMP is not believed."""
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24

IP_DONTFRAG: Final = 28
IPV6_DONTFRAG: Final = 62
"""Of macOS, since version 11."""

IP_PKTINFO: Final = 26 if MACOS else 8
IPV6_RECVPKTINFO: Final = socket.IPV6_RECVPKTINFO
IPV6_PKTINFO: Final = socket.IPV6_PKTINFO
IP_RECVTOS: Final = socket.IP_RECVTOS
IPV6_RECVTCLASS: Final = socket.IPV6_RECVTCLASS
IP_TOS: Final = socket.IP_TOS
IPV6_TCLASS: Final = socket.IPV6_TCLASS

MARKS: Final = frozenset({IP_RECVTOS if MACOS else IP_TOS, IPV6_TCLASS})
"""The kinds of control data with which a datagram's type of service comes."""
SETS_TOS: Final = LINUX
"""Whether control data sets the type of service of one IPv4 datagram. macOS passes over it."""


def smaller_until_taken(sock: socket.socket, option: int, size: int) -> None:
    """Give a buffer `size` bytes; where the system refuses what Linux cuts down, the half, and so on."""
    while sock.getsockopt(socket.SOL_SOCKET, option) < size:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            size //= 2
        else:
            return
