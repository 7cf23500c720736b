"""One question to the kernel, and which answers count."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base import netlink
from cryprq_proxy.base.netlink import DUMP, NetlinkSocket, attribute, attributes, messages

GET, NEW, DELETE = 0x101, 0x100, 0x102


def message(kind: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def refusal(number: int, sequence: int = 1) -> bytes:
    return message(2, sequence, struct.pack("=i", -number))


class Kernel:
    """The other end of the socket: each datagram and its sender."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, int]] = []
        self.read = 0

    def received(self, sock: socket.socket) -> tuple[bytes, int]:
        self.read += 1
        return self.datagrams.pop(0) if self.datagrams else (b"", 0)

    def says(self, *data: bytes, sender: int = 0) -> None:
        self.datagrams.append((b"".join(data), sender))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(netlink, "_received", kernel.received)
    return kernel


@pytest.fixture
def sock(kernel: Kernel) -> Iterator[NetlinkSocket]:
    with NetlinkSocket(socket.NETLINK_ROUTE) as sock:
        # The real kernel's answer is not read.
        yield sock


def test_the_answers_end_with_the_last(kernel: Kernel, sock: NetlinkSocket) -> None:
    kernel.says(message(NEW, 99, b"old."), message(NEW, 1, b"body"))
    kernel.says(message(NEW, 1, b"more"), message(3, 1, bytes(4)), message(NEW, 1, b"late"))
    assert list(sock.ask(GET, DUMP, bytes(4))) == [(NEW, b"body"), (NEW, b"more")]
    assert kernel.read == 2


def test_the_kernel_alone_is_believed(kernel: Kernel, sock: NetlinkSocket) -> None:
    kernel.says(message(NEW, 1, b"mine"), message(3, 1, bytes(4)), sender=4711)
    kernel.says(message(3, 1, bytes(4)))
    assert list(sock.ask(GET, DUMP, bytes(4))) == []


def test_a_refusal_is_raised_and_an_acknowledgement_ends(kernel: Kernel, sock: NetlinkSocket) -> None:
    kernel.says(refusal(errno.EPERM))
    with pytest.raises(PermissionError):
        list(sock.ask(GET, DUMP, bytes(4)))
    kernel.says(refusal(0, sequence=2))
    assert list(sock.ask(GET, 0, bytes(4))) == []


def test_an_answer_without_end_is_left(kernel: Kernel, sock: NetlinkSocket) -> None:
    assert list(sock.ask(GET, DUMP, bytes(4))) == []
    assert kernel.read == netlink.MAX_DATAGRAMS


def test_what_is_gone_needs_no_deletion(kernel: Kernel, sock: NetlinkSocket) -> None:
    kernel.says(refusal(0))
    assert sock.delete(DELETE, bytes(4))
    kernel.says(refusal(errno.ENOENT, sequence=2))
    assert not sock.delete(DELETE, bytes(4))
    kernel.says(refusal(errno.EBUSY, sequence=3))
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        sock.delete(DELETE, bytes(4))


def test_the_links_of_this_machine() -> None:
    """The real kernel, RTM_GETLINK: loopback is one of them."""
    with NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
        names = [attributes(body[16:]).get(3) for _, body in kernel.ask(18, DUMP, bytes(16))]
    assert b"lo\0" in names


def test_attributes_of_a_dump() -> None:
    data = bytes.fromhex("05001500 72000000 0800060001020304 0300 0700")
    assert attributes(data) == {21: b"\x72", 6: b"\x01\x02\x03\x04"}
    assert attributes(attribute(0x8007, b"abc") + attribute(1, b"")) == {7: b"abc", 1: b""}


@given(st.binary(max_size=64))
def test_garbage_ends_the_list(data: bytes) -> None:
    assert sum(map(len, attributes(data).values())) <= len(data)
    assert sum(len(body) for *_, body in messages(data)) <= len(data)
