"""configs/modules-load.d and configs/sysctl.d: the kernel knows what they set, and it is enough."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cryprq_proxy.carriers.congestion import BBR
from cryprq_proxy.carriers.lane.udp_socket import SOCKET_BUFFER
from tests.support.kernel_files import lines, sysctls

LONG_PATH = 500e6 / 8 * 0.3
"""Bytes under way at 500 Mbit/s with a round trip of 300 ms."""


def test_the_module_is_that_of_bbr() -> None:
    assert lines("modules-load.d") == [f"tcp_{BBR}"]


def test_programs_may_ask_for_bbr_and_for_what_linux_comes_with() -> None:
    assert sysctls()["net.ipv4.tcp_allowed_congestion_control"] == ["reno", "cubic", BBR]
    assert "net.ipv4.tcp_congestion_control" not in sysctls(), "other programs keep their default"


@pytest.mark.parametrize("key", ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"])
def test_one_connection_fills_a_long_path(key: str) -> None:
    least, first, largest = map(int, sysctls()[key])
    assert least <= first <= largest
    assert largest >= LONG_PATH


@pytest.mark.parametrize("key", ["net.core.rmem_max", "net.core.wmem_max"])
def test_the_lane_gets_what_it_asks_for(key: str) -> None:
    assert sysctls()[key] == [str(SOCKET_BUFFER)]


@pytest.mark.skipif(sys.platform != "linux", reason="these are settings of Linux")
@pytest.mark.parametrize("key", sysctls())
def test_the_kernel_has_this_setting(key: str) -> None:
    path = Path("/proc/sys", *key.split("."))
    if not path.exists():
        pytest.skip("in a network namespace of its own the kernel shows only some of them")
    if not key.endswith("congestion_control"):
        assert len(path.read_text().split()) == len(sysctls()[key])
