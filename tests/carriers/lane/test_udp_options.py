"""Options of a UDP socket on systems that have them otherwise than Linux."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from cryprq_proxy.carriers.lane.udp_options import smaller_until_taken


class Bounded(socket.socket):
    """Refuses a buffer of more than `most` bytes, as macOS does (kern.ipc.maxsockbuf)."""

    most = 1 << 20
    asked: list[int]

    def getsockopt(self, *_: object) -> int:  # type: ignore[override]
        return 9_216

    def setsockopt(self, _: int, __: int, size: int) -> None:  # type: ignore[override]
        self.asked.append(size)
        if size > self.most:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


@pytest.mark.parametrize(
    ("most", "asked"),
    [
        (8 << 20, [7 << 20]),
        (1 << 20, [7 << 20, 7 << 19, 7 << 18, 7 << 17]),
        (0, [(7 << 20) >> n for n in range(10)]),
    ],
)
def test_the_largest_buffer_that_is_taken(most: int, asked: list[int]) -> None:
    """It ends where a half would be less than what the socket has."""
    with Bounded(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.most, sock.asked = most, []
        smaller_until_taken(sock, socket.SO_RCVBUF, 7 << 20)
        assert sock.asked == asked
