"""Which of the kernel's congestion controls sends what a carrier carries.

    long path    BBR, where the kernel has and allows it
    short path   what the host has chosen; on this machine reno (base/sockets.py)

Reno and CUBIC take each lost segment for a full queue (RFC 5681, RFC 9438): with 1 % of loss and 50 ms they send
2 Mbit/s, whatever the line could carry. BBR (draft-ietf-ccwg-bbr) sends at the rate at which segments have arrived.
All connections of a client share its carrier, so what slows the carrier slows them all.

BBR paces: a timer for every few segments. On a line of some 100 Mbit/s that is not seen. Between two machines of one
network, where nothing is lost and the CPU is the bound, it costs half of the throughput.

Who runs the host has the last word: the kernel refuses what `net.ipv4.tcp_allowed_congestion_control` does not name,
and leaves alone a route with `congctl lock`. The two ends of a carrier choose alone, each for what it sends.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Final, NamedTuple

BBR: Final = "bbr"
SHORT_PATH: Final = 0.002
"""Seconds. Where a segment and its acknowledgement take less, the path is short. At 2 ms and 1 % of loss reno still
sends 70 Mbit/s."""
_TCP_INFO: Final = 11
_NAME_MAX: Final = 16
"""TCP_CA_NAME_MAX of linux/tcp.h, like all below."""
_LEAST_ROUND_TRIP: Final = struct.Struct("=148xI")
"""tcpi_min_rtt of struct tcp_info, in microseconds. Kernels before 4.6 end before it; they have no BBR either."""
_UNKNOWN: Final = 0xFFFFFFFF


class CongestionChoice(NamedTuple):
    """What sends, and what it was chosen by."""

    control: str = ""
    """The name of the congestion control; "" where the system tells none."""
    round_trip: float | None = None
    """The least of the connection until then, in seconds; None if the kernel does not know it."""


def choose(sock: socket.socket) -> CongestionChoice:
    """Ask the kernel for BBR if the path of `sock`, a TCP connection, is long. Returns what sends now."""
    if sys.platform != "linux":
        return CongestionChoice()
    round_trip = _least_round_trip(sock)
    if is_long(round_trip):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, BBR.encode())
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_MAX)
    except OSError:
        return CongestionChoice("", round_trip)
    return CongestionChoice(name.rstrip(b"\0").decode("ascii", "replace"), round_trip)


def is_long(round_trip: float | None) -> bool:
    """Whether a path with this least round trip in seconds is one for BBR."""
    return round_trip is not None and round_trip >= SHORT_PATH


def _least_round_trip(sock: socket.socket) -> float | None:
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LEAST_ROUND_TRIP.size)
        (least,) = _LEAST_ROUND_TRIP.unpack(told)
    except (OSError, struct.error):
        return None
    return None if least == _UNKNOWN else least / 1e6
