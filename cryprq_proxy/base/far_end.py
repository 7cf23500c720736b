"""What the kernel knows about the other end of a TCP connection, and tells nobody who neither reads nor writes.

    TCP_INFO    of every connection: it has failed, or its other end is silent (tcp(7))
    sock_diag   of an end on this machine: does a program still hold it? (sock_diag(7))

A program that dies with all its data sent leaves a FIN, as one that only ends its half does. The kernel sends the FIN
behind the data: while nobody reads the data, not even that is seen. So its own end is looked at.

SO_ERROR is not asked: that would take the error from the one who reads next, to whom it then looks like a clean end.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from enum import Enum, auto
from typing import Final

from .netlink import NetlinkSocket

SILENT_SECONDS: Final = 180.0
"""Without any acknowledgement. More than 120 s, the longest pause between two probes of a closed window."""

_TCP_INFO: Final = getattr(socket, "TCP_INFO", 0) if sys.platform == "linux" else 0
_STATE, _PROBES, _UNACKED, _LAST_ACK = 0, 3, 24, 56
_INFO_SIZE: Final = 60
_CLOSE, _CLOSE_WAIT = 7, 8
_MACOS_INFO: Final = 0x106
"""TCP_CONNECTION_INFO."""
_MACOS_CLOSED, _MACOS_CLOSE_WAIT = 0, 5
_U32: Final = struct.Struct("=I")

_SOCK_DIAG: Final = 4
_DIAG_BY_FAMILY: Final = 20
_ALL_STATES: Final = 0xFFFFFFFF
_QUESTION: Final = struct.Struct("=BBBxI2s2s16s16s4x8s")
"""struct inet_diag_req_v2: family, protocol, extensions, states; ports, addresses, interface, cookie."""
_ANY_COOKIE: Final = b"\xff" * 8
_INODE: Final = 68
"""Offset in struct inet_diag_msg."""


class FarEnd(Enum):
    """`ENDED`: it sends no more, its FIN is here. `OVER`: the connection has failed, by a reset or for want of answers.
    `SILENT`: it acknowledges nothing, since SILENT_SECONDS."""

    THERE = auto()
    ENDED = auto()
    OVER = auto()
    SILENT = auto()


def look_at(sock: socket.socket) -> FarEnd:
    """The other end of a connected TCP socket; takes 2 us. THERE where nothing is known, as on systems without
    TCP_INFO; macOS tells no silence."""
    if sys.platform == "darwin":
        return _state_on_macos(sock)
    if not _TCP_INFO:
        return FarEnd.THERE
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
    except OSError:
        return FarEnd.THERE
    if len(info) < _INFO_SIZE:
        return FarEnd.THERE
    if info[_STATE] == _CLOSE:
        return FarEnd.OVER
    waits = info[_PROBES] or _U32.unpack_from(info, _UNACKED)[0]
    if waits and _U32.unpack_from(info, _LAST_ACK)[0] >= SILENT_SECONDS * 1000:
        return FarEnd.SILENT
    return FarEnd.ENDED if info[_STATE] == _CLOSE_WAIT else FarEnd.THERE


def _state_on_macos(sock: socket.socket) -> FarEnd:
    """The first byte of struct tcp_connection_info (netinet/tcp.h); when the last acknowledgement came is not in it."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _MACOS_INFO, 4)
    except OSError as error:
        return FarEnd.OVER if error.errno == errno.ECONNRESET else FarEnd.THERE
    if len(info) < 1:
        return FarEnd.THERE
    return {_MACOS_CLOSED: FarEnd.OVER, _MACOS_CLOSE_WAIT: FarEnd.ENDED}.get(info[0], FarEnd.THERE)


def unanswered(sock: socket.socket) -> float:
    """For how many seconds the other end of a connected TCP socket has acknowledged nothing, though it has something to
    acknowledge: 0 where it has nothing. Infinity where nothing is known. Takes 2 us."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE) if _TCP_INFO else b""
    except OSError:
        info = b""
    if len(info) < _INFO_SIZE:
        return float("inf")
    waits = info[_PROBES] or _U32.unpack_from(info, _UNACKED)[0]
    return float(_U32.unpack_from(info, _LAST_ACK)[0] / 1000) if waits else 0.0


def has_unread(sock: socket.socket) -> bool:
    """Whether bytes lie unread in `sock`, behind which an end may hide. Takes 1 us, and no error from the reader."""
    try:
        return bool(_U32.unpack(fcntl.ioctl(sock, termios.FIONREAD, bytes(_U32.size)))[0])
    except (OSError, ValueError):
        return False


class Holder(Enum):
    """What holds an end. `UNKNOWN`: it is on another machine or in another network namespace, or the kernel does not
    say."""

    PROGRAM = auto()
    NOBODY = auto()
    UNKNOWN = auto()


def holder_of(sock: socket.socket) -> Holder:
    """What holds the other end. Takes 50 us."""
    try:
        (own, own_port, *_), (far, far_port, *_) = sock.getsockname(), sock.getpeername()
        question = _QUESTION.pack(
            sock.family,
            socket.IPPROTO_TCP,
            0,
            _ALL_STATES,
            far_port.to_bytes(2),
            own_port.to_bytes(2),
            socket.inet_pton(sock.family, far),
            socket.inet_pton(sock.family, own),
            _ANY_COOKIE,
        )
        with NetlinkSocket(_SOCK_DIAG) as kernel:
            _, answer = next(kernel.ask(_DIAG_BY_FAMILY, 0, question), (0, b""))
    except (OSError, ValueError):
        return Holder.UNKNOWN
    if len(answer) < _INODE + _U32.size:
        return Holder.UNKNOWN
    return Holder.PROGRAM if _U32.unpack_from(answer, _INODE)[0] else Holder.NOBODY
