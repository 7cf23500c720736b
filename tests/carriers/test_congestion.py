"""Which congestion control a carrier asks for; tests/lab/test_congestion_lab.py asks real kernels on real paths."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Any

import pytest

from cryprq_proxy.carriers.congestion import SHORT_PATH, choose, is_long
from tests.support.visits import tcp_pair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket choose, and tells")

UNKNOWN = 0xFFFFFFFF


class Kernel:
    """A connected socket of a host that has chosen CUBIC. `refusal`: the errno of asking for another one."""

    def __init__(self, least: int | None, refusal: int = 0) -> None:
        self._info = bytes(148) if least is None else struct.pack("=148xI", least) + bytes(100)
        self._refusal = refusal
        self.control = b"cubic"
        self.asked: list[bytes] = []

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        assert level == socket.IPPROTO_TCP
        if name == socket.TCP_INFO:
            return self._info[:size]
        assert name == socket.TCP_CONGESTION
        return self.control.ljust(size, b"\0")[:size]

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        self.asked.append(value)
        if self._refusal:
            raise OSError(self._refusal, "what the kernel says")
        self.control = value


def chosen(kernel: Any) -> str:
    return choose(kernel).control


@pytest.mark.parametrize(
    ("least", "control"),
    [(50_000, "bbr"), (2_000, "bbr"), (1_999, "cubic"), (4, "cubic"), (UNKNOWN, "cubic"), (None, "cubic")],
)
def test_bbr_is_for_paths_that_are_known_to_be_long(least: int | None, control: str) -> None:
    kernel = Kernel(least)
    assert chosen(kernel) == control
    assert kernel.asked == ([b"bbr"] if control == "bbr" else [])


@pytest.mark.parametrize(("least", "told"), [(50_000, 0.05), (4, 4e-6), (UNKNOWN, None), (None, None)])
def test_it_tells_what_it_went_by(least: int | None, told: float | None) -> None:
    kernel: Any = Kernel(least)
    assert choose(kernel).round_trip == told


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOENT])
def test_what_the_host_does_not_allow_or_have_is_not_used(
    refusal: int, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel(50_000, refusal)
    assert chosen(kernel) == "cubic"
    assert kernel.asked == [b"bbr"]
    assert not caplog.records


def test_the_border() -> None:
    assert is_long(SHORT_PATH)
    assert not is_long(SHORT_PATH - 1e-6)
    assert not is_long(None)


def test_a_connection_on_this_machine_keeps_what_it_has() -> None:
    one, other = tcp_pair()
    with one, other:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        assert choose(one).control == "reno"


def test_what_is_no_tcp_has_none() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert choose(one).control == ""
