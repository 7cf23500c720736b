"""Many datagrams by one system call where the kernel does not join them: recvmmsg(2), which Python lacks.

    places    [d d d d ...]    each `size` bytes behind the one before: those that are alike already are a batch
    beyond    [. . . . ...]    the rest of what is larger, so that nothing is cut; untouched pages cost nothing
    messages  a struct mmsghdr for each, which the kernel fills in

A call of `recvmsg_into` for each datagram costs three times as much (bench/gathered.py). What was read is taken before
the next call. Where there is no such call, or it is forbidden, `OneByOne` does the same with one datagram in each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from mmap import mmap
from typing import Final, Protocol

from .batch import RECEIVE_SIZE, SocketAddress

PLACES: Final = 48
"""Datagrams in one call: more than 2 ms of 250 Mbit/s."""
MOST_LAYOUTS: Final = 16
"""Sizes of datagrams that are prepared."""
CONTROL_SIZE: Final = 128
"""More than CMSG_SPACE of the segment size, the mark and the larger local address need."""

_POINTER: Final = 8
_NAME_SIZE: Final = 32
"""More than a struct sockaddr_in6 has."""
_IOVECS: Final = struct.Struct("=QQQQ")
"""Two struct iovec: address and length of the place, and of what is beyond it."""
_MESSAGE: Final = struct.Struct("=QI4xQQQQ16x")
"""struct mmsghdr of 64-bit Linux: name, its length, iovecs, their number, control data, its length. Behind these are
flags and the length of what came."""
_TOLD: Final = "8xI28xQi4xI4x"
"""Of the same, what the kernel fills in: length of the name, length of the control data, flags, length."""
_TOLD_OF: Final = [struct.Struct("=" + _TOLD * number) for number in range(PLACES + 1)]
_TOLD_FIELDS: Final = 4
_CONTROL: Final = struct.Struct("=Qii")
"""struct cmsghdr: length with this header, level, kind. Each begins at a multiple of its length field's size."""
_INET: Final = struct.Struct("=2x2s4s")
_INET6: Final = struct.Struct("=2x2s4s16sI")
_NOTHING: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})
_FORBIDDEN: Final = frozenset({errno.ENOSYS, errno.EPERM})
"""By the system, or by a filter of system calls. Any other error is one of the network."""

type Head = tuple[int, list[tuple[int, int, bytes]], SocketAddress]
"""Of a datagram: its size, control data and sender, as `recvmsg_into` has them."""


class Reader(Protocol):
    """What was read of a socket, and has not been taken."""

    left: int
    """Datagrams."""
    dry: bool
    """Whether the last `read` found fewer than it could have taken."""

    def read(self, size: int, most: int) -> None:
        """One system call for up to `most` datagrams, if nothing is left: those of `size` bytes come best. Raises
        OSError, but not because nothing waits."""

    def head(self) -> Head:
        """That of the first one that is left."""

    def alike(self, most: int) -> int:
        """How many, from the first one on, are like it in size, control data, sender and first byte; `most` at most.
        1 if it has another size than was given to the last `read`."""

    def take(self, number: int, room: memoryview) -> None:
        """Copy the first one, or `number` that are alike, behind each other to `room`."""

    @property
    def kind(self) -> int:
        """The first byte of the first one that is left."""


class OneByOne:
    """One datagram in each `read`."""

    def __init__(self, sock: socket.socket) -> None:
        self.left = 0
        self.dry = False
        self._sock = sock
        self._data = memoryview(bytearray(RECEIVE_SIZE))
        self._head: Head = 0, [], ("", 0)

    def read(self, size: int, most: int) -> None:
        self.dry = True
        try:
            got, control, _, address = self._sock.recvmsg_into((self._data,), CONTROL_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        self.dry = False
        self._head = got, control, address
        self.left = 1

    @property
    def kind(self) -> int:
        return self._data[0]

    def head(self) -> Head:
        return self._head

    def alike(self, most: int) -> int:
        return 1

    def take(self, number: int, room: memoryview) -> None:
        size = self._head[0]
        room[:size] = self._data[:size]
        self.left = 0


def _has_call() -> bool:
    return sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == _POINTER


class Gathered:
    """Up to PLACES datagrams in each `read`. Raises OSError if this system has no such call."""

    def __init__(self, sock: socket.socket) -> None:
        if not _has_call():
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        try:
            self._call = ctypes.CDLL(None, use_errno=True).recvmmsg
        except AttributeError:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        self._call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        self.left = self._at = 0
        self.dry = False
        self._sock = sock
        self._size = 0
        """Of each place."""
        self._told: tuple[int, ...] = ()
        self._data = bytearray(RECEIVE_SIZE)
        self._places = memoryview(self._data)
        self._beyond = mmap(-1, PLACES * RECEIVE_SIZE)
        self._names = bytearray(PLACES * _NAME_SIZE)
        self._control = bytearray(PLACES * CONTROL_SIZE)
        self._iovecs = bytearray(PLACES * _IOVECS.size)
        self._messages = bytearray(PLACES * _MESSAGE.size)
        self._address = _address(self._messages)
        self._layouts: dict[int, bytes] = {}
        name, control, iovecs = map(_address, (self._names, self._control, self._iovecs))
        self._blank = b"".join(
            _MESSAGE.pack(
                name + place * _NAME_SIZE,
                _NAME_SIZE,
                iovecs + place * _IOVECS.size,
                2,
                control + place * CONTROL_SIZE,
                CONTROL_SIZE,
            )
            for place in range(PLACES)
        )

    def read(self, size: int, most: int) -> None:
        if size != self._size:
            self._lay_out(size)
        number = min(most, PLACES, RECEIVE_SIZE // size)
        end = number * _MESSAGE.size
        self._messages[:end] = self._blank[:end]
        got = self._call(self._sock.fileno(), self._address, number, socket.MSG_DONTWAIT, None)
        self.dry = got < number
        if got < 0:
            error = ctypes.get_errno()
            if error in _NOTHING:
                return
            raise OSError(error, os.strerror(error))
        self._at, self.left = 0, got
        self._told = _TOLD_OF[got].unpack_from(self._messages)

    def _lay_out(self, size: int) -> None:
        """Make the places `size` bytes large."""
        layout = self._layouts.get(size)
        if layout is None:
            if len(self._layouts) == MOST_LAYOUTS:
                self._layouts.clear()
            places, beyond = _address(self._data), _address(self._beyond)
            layout = b"".join(
                _IOVECS.pack(places + place * size, size, beyond + place * RECEIVE_SIZE, RECEIVE_SIZE)
                for place in range(PLACES)
            )
            self._layouts[size] = layout
        self._size = size
        self._iovecs[:] = layout

    @property
    def kind(self) -> int:
        return self._data[self._at * self._size]

    def head(self) -> Head:
        at = self._at
        _, control_size, _, size = self._told[_TOLD_FIELDS * at : _TOLD_FIELDS * (at + 1)]
        begin = at * CONTROL_SIZE
        control = _control(self._control[begin : begin + control_size])
        return size, control, self._sender(self._names[at * _NAME_SIZE : (at + 1) * _NAME_SIZE])

    def _sender(self, name: bytearray) -> SocketAddress:
        """As the socket module has it."""
        if self._sock.family == socket.AF_INET:
            port, host = _INET.unpack_from(name)
            return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port)
        port, flow, host, scope = _INET6.unpack_from(name)
        return socket.inet_ntop(socket.AF_INET6, host), int.from_bytes(port), int.from_bytes(flow), scope

    def alike(self, most: int) -> int:
        at, number = self._at, min(self.left, most)
        if self._told[_TOLD_FIELDS * at + 3] != self._size:
            return 1  # they do not lie directly behind each other
        if self._are_alike(at, number):
            return number
        count = 1
        while count < number and self._are_alike(at + count - 1, 2):
            count += 1
        return count

    def _are_alike(self, at: int, number: int) -> bool:
        end, size = at + number, self._size
        told, names, control = self._told, self._names, self._control
        return (
            told[_TOLD_FIELDS * at : _TOLD_FIELDS * end]
            == told[_TOLD_FIELDS * at : _TOLD_FIELDS * (at + 1)] * number
            and names[_NAME_SIZE * at : _NAME_SIZE * end]
            == names[_NAME_SIZE * at : _NAME_SIZE * (at + 1)] * number
            # What lies behind the control data of each counts, too: at worst too few are alike.
            and control[CONTROL_SIZE * at : CONTROL_SIZE * end]
            == control[CONTROL_SIZE * at : CONTROL_SIZE * (at + 1)] * number
            and self._data[size * at : size * end : size] == self._data[size * at : size * at + 1] * number
        )

    def take(self, number: int, room: memoryview) -> None:
        at, size = self._at, self._told[_TOLD_FIELDS * self._at + 3]
        begin = at * self._size
        end = begin + min(size, self._size) * number
        room[: end - begin] = self._places[begin:end]
        if size > self._size:
            begin = at * RECEIVE_SIZE
            room[self._size : size] = self._beyond[begin : begin + size - self._size]
        self._at += number
        self.left -= number


def reader(sock: socket.socket) -> Reader:
    """The best one that this system has."""
    try:
        found = Gathered(sock)
        found.read(1, 0)
    except OSError as error:
        if error.errno in _FORBIDDEN:
            return OneByOne(sock)
    return found


def _address(buffer: bytearray | mmap) -> int:
    """Where it is; it stays there as long as it lives, for nobody makes it larger."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _control(data: bytearray) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    at = 0
    while at + _CONTROL.size <= len(data):
        size, level, kind = _CONTROL.unpack_from(data, at)
        if size < _CONTROL.size:
            break
        found.append((level, kind, bytes(data[at + _CONTROL.size : at + size])))
        at += -(-size // _POINTER) * _POINTER
    return found
