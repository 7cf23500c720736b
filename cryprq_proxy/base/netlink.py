"""Asks the kernel by netlink with nothing but the standard library: one question at a time, and its answers.

For dumps of many thousand messages of which a few bytes matter, and for every user. netlink(7); the kernel alone is
believed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, Self

SECONDS: Final = 1.0
"""For each datagram of the kernel, which makes it while it is asked."""
MAX_DATAGRAMS: Final = 4096
"""Of one answer that are looked at, of up to 32 KiB each. What is behind them is left out."""
ROUTE: Final = 0
"""NETLINK_ROUTE: the netlink protocol of links, addresses, routes and rules."""
NETFILTER: Final = 12
"""NETLINK_NETFILTER: that of packet filters."""
DUMP: Final = 0x300

_SOL_NETLINK: Final = 270
_STRICT_CHECK: Final = 12  # NETLINK_GET_STRICT_CHK
_REQUEST: Final = 1
_ACK: Final = 4
_BUFFER: Final = 1 << 16
_RECEIVE_BUFFER: Final = 4 << 20
_ERROR: Final = 2
_DONE: Final = 3
_TYPE_MASK: Final = 0x3FFF
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


def netlink_socket(protocol: int) -> socket.socket:
    """A socket that is not bound. Raises OSError, also on systems without netlink."""
    if sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


class NetlinkSocket:
    """A netlink socket that asks one thing at a time. A context manager; raises OSError.

    With `strict` a dump of routes has only those of the table that the question names; an old kernel gives all.
    """

    def __init__(self, protocol: int, *, strict: bool = False) -> None:
        self._sock = netlink_socket(protocol)
        try:
            self._sock.settimeout(SECONDS)
            if strict:
                with contextlib.suppress(OSError):
                    self._sock.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._sock.bind((0, 0))
        except BaseException:
            self._sock.close()
            raise
        self._sequence = 0

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """The answers' types and bodies, to the last one. Raises OSError for what the kernel refuses.

        An answer without DUMP has no end of its own: take its one message.
        """
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0)
        self._sock.send(header + body)
        for _ in range(MAX_DATAGRAMS):
            data, sender = _received(self._sock)
            # Only the kernel has the port id 0.
            for answer, sequence, content in messages(data) if sender == 0 else ():
                if sequence != self._sequence:
                    continue
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    number = -int.from_bytes(content[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield answer, content

    def delete(self, kind: int, body: bytes) -> bool:
        """Have one thing deleted; False if it has ended by itself. Raises OSError for what the kernel refuses."""
        try:
            for _ in self.ask(kind, _ACK, body):
                pass
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def _received(sock: socket.socket) -> tuple[bytes, int]:
    """Some messages, and the port id of who sent them."""
    data, (sender, _) = sock.recvfrom(_BUFFER)
    return data, sender


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message; what is cut off or garbled ends them."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= size <= len(data) - at:
            return
        yield kind, sequence, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Those of one level, the last of each type; what is cut off or garbled ends them."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= size <= len(data) - at:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)
