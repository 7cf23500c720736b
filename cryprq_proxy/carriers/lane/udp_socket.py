"""A UDP socket that moves batches: many datagrams in one system call, in both directions.

    send:     [d d d d d d d l]  --sendmsg + UDP_SEGMENT-->  the kernel cuts it into datagrams
    receive:  the kernel joins datagrams of one sender  --recvmsg + UDP_GRO-->  [d d d d d d d l]

In a batch all datagrams have the same size (`segment`) apart from the last, which may be shorter. The size goes with
each send and is never set on the socket, where it would stay and cut later sends. What the kernel cannot do in a
batch is done one by one, with the same result: if the check at the start (offload_check.py) fails, or if the kernel
refuses a batch. Both are logged with the reason.

A datagram may be lost at any time, so nothing waits here: what the socket does not take is dropped and counted, and no
error of the network is raised. `send` returns what became of the batch, because the path acts on three of the errors:
too big, unreachable, and a full queue.

With `ect` a batch leaves as one of a sender that heeds congestion marks (ECT(0) of RFC 3168), and what arrives says
whether a router has marked it. Only who does heed them may say so: the packets of a network interface have marks of
their own inside, and nobody would read those outside.

A socket that is bound to a wildcard address keeps the local address at which a batch arrived as a part of `UdpPeer`,
and answers leave from there: the other side's socket is connected, and drops what comes from another address.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

from ...errors import ConfigError
from .batch import MAX_BATCH, MAX_SEGMENTS, Batch, Sent, SocketAddress, UdpOffload, UdpPeer
from .gathered import CONTROL_SIZE, Reader
from .gathered import reader as make_reader
from .shared_port import share, steer
from .udp_options import (
    IP_DONTFRAG,
    IP_MTU,
    IP_MTU_DISCOVER,
    IP_PKTINFO,
    IP_PMTUDISC_PROBE,
    IP_RECVTOS,
    IP_TOS,
    IPV6_DONTFRAG,
    IPV6_MTU,
    IPV6_MTU_DISCOVER,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
    IPV6_TCLASS,
    LINUX,
    MACOS,
    MARKS,
    SETS_TOS,
    SO_MARK,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    smaller_until_taken,
)

PASSED_OVER: Final = 32
"""Errors and empty datagrams that one `receive` reads past."""
SOCKET_BUFFER: Final = 7 << 20
ETHERNET_MTU: Final = 1_500
WILDCARDS: Final = ("0.0.0.0", "::")
HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}
"""IP and UDP headers in front of a payload."""

_FULL: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENODEV, errno.EINVAL}
)
"""EINVAL, on a plain send, is Linux's answer when the socket's own address is no longer one of this host."""
_UNSUPPORTED: Final = frozenset(
    {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}
)
"""EIO comes from a device without checksum offload."""

_IPV4_INFO: Final = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface, local address, address in the header."""
_IPV6_INFO: Final = struct.Struct("=16si")
_NUMBER: Final = struct.Struct("=H")
_ECT: Final = struct.pack("=i", 2)
"""ECT(0), as the value of IP_TOS and IPV6_TCLASS."""
_CE: Final = 3
"""The mark of a router, in the two lowest bits of either (RFC 3168 section 5)."""
_LOWEST: Final = 0 if sys.byteorder == "little" else -1
"""Index of the lowest byte of a number."""

_log = logging.getLogger(__name__)


class UdpSocket:
    """A non-blocking UDP socket of one family, bound to `address`: (host literal, port), port 0 for any.

    `mark` is the fwmark of its packets (0: none). With a `tag`, another process may have the port too: see
    shared_port.py. Raises OSError if the address cannot be had, ConfigError if the mark may not be set. Close it.
    Counters are in datagrams and in bytes of UDP payload.
    """

    def __init__(
        self, address: SocketAddress, offload: UdpOffload, mark: int = 0, tag: int | None = None
    ) -> None:
        self.family: Final = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._sock = socket.socket(self.family, socket.SOCK_DGRAM)
        self._gso, self._gro, self._reason = offload
        self._peer: UdpPeer | None = None
        self._last = UdpPeer(("", 0))
        self._last_local: bytes | None = None
        self._control_for: tuple[int, bytes, bool] = (0, b"", False)
        self._control: list[tuple[int, int, bytes]] = []
        self._reader: Reader | None = None
        """For what the kernel does not join."""
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.dropped = 0
        """Datagrams that the kernel's queue had no room for."""
        self.errors = 0
        """Errors that the kernel reported: ICMP messages, filters, missing routes."""
        try:
            self._sock.setblocking(False)
            self._configure(mark)
            self.shared = LINUX and tag is not None and share(self._sock)
            """Whether another process may have the port at the same time."""
            self._sock.bind(address)
            if self.shared and tag is not None:
                steer(self._sock, tag)
            self._report_local(address[0] in WILDCARDS)
        except BaseException:
            self._sock.close()
            raise

    @classmethod
    def connected(cls, address: SocketAddress, offload: UdpOffload, mark: int = 0) -> UdpSocket:
        """A socket for `address` only; the kernel drops what others send. Raises like the class."""
        sock = cls(("::" if ":" in address[0] else "0.0.0.0", 0), offload, mark)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def connect(self, address: SocketAddress) -> None:
        """Exchange datagrams with `address` only, from now on. Raises OSError, also if there is no route."""
        self._sock.connect(address)
        self._peer = UdpPeer(address)
        self._report_local(False)

    def _configure(self, mark: int) -> None:
        sock = self._sock
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The packets inside have a DSCP of their own; the outer one tells nothing about it.
        if self.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0)
        if LINUX:
            self._configure_linux(mark)
        else:
            self._gso = self._gro = False
            self._reason = self._reason or "this system has none"
        if MACOS:
            self._configure_macos()
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            smaller_until_taken(sock, name, SOCKET_BUFFER)

    def _configure_linux(self, mark: int) -> None:
        sock = self._sock
        if self.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        if mark:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            except PermissionError:
                raise ConfigError(
                    "the link's packets cannot be marked without the right to administer the network;"
                    " start the program as root"
                ) from None
        for name in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            with suppress(OSError):  # not allowed; the ordinary option follows
                sock.setsockopt(socket.SOL_SOCKET, name, SOCKET_BUFFER)
        if self._gro:
            try:
                sock.setsockopt(SOL_UDP, UDP_GRO, 1)
            except OSError as error:
                self._gro = False
                self._reason = f"the kernel does not join datagrams ({error_name(error)})"

    def _configure_macos(self) -> None:
        with suppress(OSError):  # macOS 10.15 and older
            if self.family == socket.AF_INET:
                self._sock.setsockopt(socket.IPPROTO_IP, IP_DONTFRAG, 1)
            else:
                self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        # The other side may say that it heeds marks, and relies on hearing of them.
        if self.family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)

    def _report_local(self, wanted: bool) -> None:
        """Whether batches come with the local address that they were sent to."""
        if not LINUX and not MACOS:
            return
        if self.family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, wanted)
        else:
            self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, wanted)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def address(self) -> SocketAddress:
        """Where the socket is bound."""
        address: SocketAddress = self._sock.getsockname()
        return address

    @property
    def peer(self) -> UdpPeer | None:
        """The address to which the socket is connected, if it is."""
        return self._peer

    @property
    def offload(self) -> UdpOffload:
        """What is in use now."""
        return UdpOffload(self._gso, self._gro, self._reason)

    def mtu(self) -> int:
        """The largest UDP payload in bytes that the route's device takes, as far as the kernel tells.

        1,472 (IPv4) or 1,452 (IPv6) where it does not: the socket is not connected, or the system has no such option.
        """
        mtu = ETHERNET_MTU
        if LINUX and self._peer is not None:
            with suppress(OSError):
                if self.family == socket.AF_INET:
                    mtu = self._sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
                else:
                    mtu = self._sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        return min(mtu - HEADERS[self.family], MAX_BATCH)

    def close(self) -> None:
        self._sock.close()

    # --- out -------------------------------------------------------------------------------------------------------

    def send(self, data: memoryview, segment: int, to: UdpPeer | None = None, ect: bool = False) -> Sent:
        """Send `data` as datagrams of `segment` bytes each, the last one shorter if it does not come out even.

        One system call for up to 64 datagrams and 65,507 bytes. `to` is left out on a connected socket. `ect`: the
        sender heeds congestion marks. Never raises for anything that the network or the kernel does; `sent` tells how
        many datagrams of a batch went out that was not taken whole.
        """
        size = len(data)
        if size <= segment or not self._gso:
            return self._send_plain(data, segment, to, ect)
        most = min(MAX_SEGMENTS, MAX_BATCH // segment) * segment
        if size <= most:
            return self._send_batch(data, segment, to, ect)
        if not most:
            return Sent.TOO_BIG
        for start in range(0, size, most):
            outcome = self._send_batch(data[start : start + most], segment, to, ect)
            if outcome is not Sent.OK:
                self.dropped += -(-max(size - start - most, 0) // segment)
                return outcome
        return Sent.OK

    def _send_batch(self, data: memoryview, segment: int, to: UdpPeer | None, ect: bool) -> Sent:
        try:
            self._push(data, segment, to, ect)
        except OSError as error:
            return self._batch_failed(error, data, segment, to, ect)
        self.sent += -(-len(data) // segment)
        self.sent_bytes += len(data)
        return Sent.OK

    def _push(self, data: memoryview, segment: int, to: UdpPeer | None, ect: bool) -> None:
        """One sendmsg; `segment` 0 for a single datagram. Raises OSError."""
        local = b"" if to is None else to.local
        if self._control_for != (segment, local, ect):
            self._control = [(SOL_UDP, UDP_SEGMENT, _NUMBER.pack(segment))] if segment else []
            if local and self.family == socket.AF_INET:
                self._control.append((socket.IPPROTO_IP, IP_PKTINFO, local))
            elif local:
                self._control.append((socket.IPPROTO_IPV6, IPV6_PKTINFO, local))
            if ect and self.family == socket.AF_INET:
                if SETS_TOS:
                    self._control.append((socket.IPPROTO_IP, IP_TOS, _ECT))
            elif ect:
                self._control.append((socket.IPPROTO_IPV6, IPV6_TCLASS, _ECT))
            self._control_for = (segment, local, ect)
        if to is None:
            self._sock.sendmsg((data,), self._control)
        else:
            self._sock.sendmsg((data,), self._control, 0, to.address)

    def _batch_failed(
        self, error: OSError, data: memoryview, segment: int, to: UdpPeer | None, ect: bool
    ) -> Sent:
        """Find the cause: an earlier datagram, the size, or the batch as such."""
        if error.errno not in _FULL:
            self.errors += 1
            try:  # an ICMP error is reported once, in place of the next send
                self._push(data, segment, to, ect)
            except OSError as again:
                error = again
            else:
                self.sent += -(-len(data) // segment)
                self.sent_bytes += len(data)
                return Sent.OK
        if error.errno in _FULL:
            self.dropped += -(-len(data) // segment)
            return Sent.FULL
        outcome = self._send_plain(data, segment, to, ect)
        if outcome is Sent.OK and error.errno in _UNSUPPORTED:
            self._gso = False
            self._reason = f"the kernel refused a batch ({error_name(error)})"
            _log.warning("UDP datagrams are sent one by one from now on: %s", self._reason)
        return outcome

    def _send_plain(self, data: memoryview, segment: int, to: UdpPeer | None, ect: bool) -> Sent:
        size = len(data)
        if size <= segment:
            return self._send_one(data, to, ect)
        for start in range(0, size, segment):
            outcome = self._send_one(data[start : start + segment], to, ect)
            if outcome is not Sent.OK:
                self.dropped += -(-max(size - start - segment, 0) // segment)
                return outcome
        return Sent.OK

    def _send_one(self, datagram: memoryview, to: UdpPeer | None, ect: bool) -> Sent:
        try:
            self._push(datagram, 0, to, ect)
        except OSError as error:
            outcome = self._one_failed(error, datagram, to, ect)
            if outcome is not Sent.OK:
                return outcome
        self.sent += 1
        self.sent_bytes += len(datagram)
        return Sent.OK

    def _one_failed(self, error: OSError, datagram: memoryview, to: UdpPeer | None, ect: bool) -> Sent:
        if error.errno not in _FULL:
            self.errors += 1
            try:  # as above; EMSGSIZE too can be what a router said about an earlier datagram
                self._push(datagram, 0, to, ect)
            except OSError as again:
                error = again
            else:
                return Sent.OK
        if error.errno in _FULL:
            self.dropped += 1
            return Sent.FULL
        if error.errno == errno.EMSGSIZE:
            return Sent.TOO_BIG
        return Sent.UNREACHABLE if error.errno in _UNREACHABLE else Sent.FAILED

    # --- in --------------------------------------------------------------------------------------------------------

    def receive(self, buffer: memoryview, at: int = 0) -> Batch | None:
        """The next batch, in `buffer`, which has RECEIVE_SIZE bytes from `at` on; None if nothing waits. `at` is not
        part of the Batch."""
        room = buffer[at:] if at else buffer
        while (reader := self._reader) is not None and reader.left:
            head = reader.head()
            reader.take(1, room)
            if head[0]:
                batch = self._batch(buffer, *head)
                self._count(batch)
                return batch
        for _ in range(PASSED_OVER):
            try:
                size, control, _, address = self._sock.recvmsg_into((room,), CONTROL_SIZE)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:
                self.errors += 1
                continue
            if not size:
                continue
            batch = self._batch(buffer, size, control, address)
            self._count(batch)
            return batch
        return None

    def receive_behind(self, batch: Batch, most: int) -> tuple[Batch, Batch | None, bool]:
        """Read on behind `batch`, which was received last, until it has `most` bytes, nothing waits, or something comes
        that the kernel would not have joined to it. Returns the batch with all that is like it; that other one: in the
        same buffer, behind it, where RECEIVE_SIZE bytes are left; and whether nothing more was waiting. What was read
        and is not returned comes with the next calls: until `receive` returns None, or nothing was waiting."""
        buffer, size, segment, peer, marked = batch
        kind = buffer[0]
        other: Batch | None = None
        if self._reader is None:
            self._reader = make_reader(self._sock)
        reader = self._reader
        while size + segment <= most:
            if not reader.left and not self._gather(reader, segment, (most - size) // segment):
                break
            head = reader.head()
            got, room = head[0], buffer[size:]
            if not got:
                reader.take(1, room)
                break
            found = self._batch(buffer, *head)
            alike = (found.segment, found.peer, found.marked, reader.kind) == (got, peer, marked, kind)
            if not alike or got > segment:
                reader.take(1, room)
                self._count(found)
                other = found
                break
            number = reader.alike((most - size) // segment) if got == segment else 1
            reader.take(number, room)
            size += number * got
            if got < segment:
                break
        self.received += -((batch.size - size) // segment)
        self.received_bytes += size - batch.size
        return batch._replace(size=size), other, reader.dry and not reader.left

    def _gather(self, reader: Reader, segment: int, most: int) -> bool:
        """Read some; False if nothing waits."""
        try:
            reader.read(segment, most)
        except OSError:
            self.errors += 1
        return reader.left > 0

    def _batch(
        self, buffer: memoryview, size: int, control: list[tuple[int, int, bytes]], address: SocketAddress
    ) -> Batch:
        segment, local, marked = size, None, False
        for _, kind, value in control:
            if kind == UDP_GRO:
                segment = int.from_bytes(value, sys.byteorder)
            elif kind in MARKS:
                marked = value[_LOWEST] & _CE == _CE
            else:
                local = value
        return Batch(buffer, size, segment, self._peer or self._sender(address, local), marked)

    def _count(self, batch: Batch) -> None:
        self.received += -(-batch.size // batch.segment)
        self.received_bytes += batch.size

    def _sender(self, address: SocketAddress, local: bytes | None) -> UdpPeer:
        """The sender of a batch: mostly the same as before."""
        if self._last.address != address or self._last_local != local:
            self._last, self._last_local = UdpPeer(address, self._answer(local)), local
        return self._last

    def _answer(self, local: bytes | None) -> bytes:
        """The control data for answers, made of that of a received batch. The routes choose the interface."""
        if local is None:
            return b""
        if self.family == socket.AF_INET:
            _, specific, header = _IPV4_INFO.unpack(local)
            # macOS fills in the second one alone.
            return _IPV4_INFO.pack(0, specific if any(specific) else header, bytes(4))
        own, _ = _IPV6_INFO.unpack(local)
        return _IPV6_INFO.pack(own, 0)


def error_name(error: OSError) -> str:
    """The symbol of the error, as errno(3) has it."""
    return errno.errorcode.get(error.errno or 0, str(error))
