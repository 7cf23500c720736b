"""The hands of the leak test, as far as they need no root; on real interfaces in tests/lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError
from tun.leaktest import probe as leakprobe


def test_packets_sent(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:  100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n"
        "eth0:1:  100 1 0 0 0 0 0 0 200 7 0 0 0 0 0 0\n"
        "broken: 1 2\n"
    )
    assert leakprobe.packets_sent(file) == {"lo": 2, "eth0:1": 7}


async def test_a_test_needs_the_tunnel() -> None:
    with pytest.raises(ConfigError, match=r"no interface cryprq-none: start cryprq-proxy --tun first"):
        await leakprobe.run(tunnel="cryprq-none", exits=[])
