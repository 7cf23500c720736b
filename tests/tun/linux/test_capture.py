"""The capture of the leak test on Linux, as far as it needs no root; on real interfaces in tests/lab."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import cast

import pytest

from cryprq_proxy.base.faults import Faults
from tun.leaktest.watch import Watch
from tun.linux import capture as linux


def test_packets_sent(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:  100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n"
        "eth0:1:  100 1 0 0 0 0 0 0 200 7 0 0 0 0 0 0\n"
        "broken: 1 2\n"
    )
    assert linux.packets_sent(file) == {"eth0:1": 7}


class FaultyWatch:
    def frame(self, interface: str, packet: bytes) -> None:
        raise ZeroDivisionError


class Packets:
    """An AF_PACKET socket that has captured two packets, while the kernel dropped three."""

    def __init__(self) -> None:
        self._packets = [b"one", b"two"]

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int, int, int, bytes]]:
        if not self._packets:
            raise BlockingIOError
        return self._packets.pop(), ("eth0", 0, linux._PACKET_OUTGOING, 1, b"")

    def getsockopt(self, *_: int) -> bytes:
        return struct.pack("II", 5, 3)


def test_packets_that_a_fault_leaves_unseen_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would know that a leak among them was missed."""
    capture = object.__new__(linux.SocketCapture)
    capture._watch = cast(Watch, FaultyWatch())
    capture._sock = cast(socket.socket, Packets())
    capture._faults = Faults("leaves packets unseen")
    assert capture.finish() == 5
    assert len(caplog.records) == 1
