"""The options of TCP sockets, and the time that one has to connect."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Final

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to connect a target, resolving included, unless an exit's configuration says otherwise."""
UNSENT: Final = 65_536
LARGEST_DATAGRAM: Final = 65_535
KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_PROBES: Final = 6
_KEEPALIVE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (
        # As macOS calls it.
        ("TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    )
    if hasattr(socket, name)
)
_NOTSENT_LOWAT: Final[int] = getattr(socket, "TCP_NOTSENT_LOWAT", 0)
_CONGESTION: Final = getattr(socket, "TCP_CONGESTION", None)
_UNPACED: Final = b"reno"
"""A congestion control that Linux always has and every user may choose."""
_INHERITS: Final = sys.platform == "linux"
"""Whether an accepted connection has the options of its listener."""
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_LINGER_NONE: Final = struct.pack("ii", 0, 0)


def is_local(host: str) -> bool:
    """Whether the IP address `host` is one of loopback."""
    return host.startswith("127.") or host == "::1"


def prepare(sock: socket.socket, host: str) -> socket.socket:
    """Make `sock` non-blocking and prompt; `host` is the IP address of its other end."""
    sock.setblocking(False)
    _set(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_local(host):
        _do_not_pace(sock)
    return sock


def prepare_listener(listener: socket.socket, host: str) -> None:
    """Give a TCP socket that listens on the IP address `host` what its connections are to have: Linux gives each of
    them a copy of its options, which saves six system calls a connection. See `prepare_accepted`."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(listener)
    if is_local(host):
        _do_not_pace(listener)


def prepare_accepted(sock: socket.socket, host: str, listens: str) -> None:
    """Make a connection that a prepared listener on `listens` has accepted from `host` non-blocking and prompt, and
    let the kernel ask whether its other end is there."""
    if not _INHERITS:
        prepare(sock, host)
        keep_alive(sock)
        return
    sock.setblocking(False)
    if is_local(host) and not is_local(listens):
        _do_not_pace(sock)


def _do_not_pace(sock: socket.socket) -> None:
    """A connection on this machine crosses no network: a congestion control that paces (BBR) would only set a timer for
    every piece."""
    if _CONGESTION is not None:
        _set(sock, socket.IPPROTO_TCP, _CONGESTION, _UNPACED)


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel ask the other end of a quiet connection whether it is there: an error comes within 90 s if not."""
    _set(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        _set(sock, socket.IPPROTO_TCP, option, value)


def bound_unsent(sock: socket.socket) -> None:
    """Let the kernel take no more than UNSENT bytes beyond those that the other end has room for. Without this bound a
    target that does not read costs 2.6 MiB of the kernel's memory, with it 100 KiB."""
    if _NOTSENT_LOWAT:
        _set(sock, socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT)


def set_mark(sock: socket.socket, mark: int) -> None:
    """Mark all packets of a socket (socket(7)). Raises OSError, also on systems without marks."""
    if sys.platform != "linux":
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)


def let_send_largest(sock: socket.socket) -> None:
    """Let a UDP socket send a datagram of any size. macOS takes none that is larger than the buffer to send, which is
    9,216 bytes at first (net.inet.udp.maxdgram)."""
    if sys.platform == "darwin":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_DATAGRAM)


def set_reset_on_close(sock: socket.socket) -> None:
    """Let `close` send a TCP reset, so that the other side sees an error and not an early end. The same holds when
    this process is killed."""
    _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def set_end_on_close(sock: socket.socket) -> None:
    """Let `close` end the connection in order, after all that was sent."""
    _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)


def _set(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    """Nothing where the connection has ended: macOS refuses it then (EINVAL), and whoever reads next sees the end."""
    try:  # noqa: SIM105  contextlib.suppress takes longer than the call, and each connection makes several
        sock.setsockopt(level, option, value)
    except OSError:
        pass
