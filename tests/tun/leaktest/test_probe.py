"""The hands of the leak test, with an operating system that captures nothing; real ones are in tests/lab."""

from __future__ import annotations

import socket
from typing import Self

import pytest

from cryprq_proxy.errors import ConfigError
from tun.leaktest import probe as leakprobe
from tun.leaktest.canaries import CanaryTargets
from tun.leaktest.report import CanaryVerdict
from tun.leaktest.system import LeakTestSystem
from tun.leaktest.watch import Watch


class NoCapture:
    """Sees nothing, and has lost two packets."""

    def __init__(self, watch: Watch) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self) -> int:
        return 2


async def test_a_test_needs_the_tunnel() -> None:
    with pytest.raises(ConfigError, match=r"no interface cryprq-none: start cryprq-proxy --tun first"):
        await leakprobe.run(
            tunnel="cryprq-none", exits=[], system=LeakTestSystem(NoCapture, dict, lambda *_: None)
        )


async def test_the_system_binds_counts_and_captures() -> None:
    bound: list[str] = []
    counters = iter([{"eth0": 5}, {"eth0": 7, "eth1": 1}])

    def bind_to(sock: socket.socket, interface: str) -> None:
        bound.append(interface)
        raise OSError("not here")

    system = LeakTestSystem(NoCapture, lambda: next(counters), bind_to)
    report = await leakprobe.run(
        tunnel=leakprobe.NO_TUNNEL,
        exits=[],
        targets=CanaryTargets(dns=(), hosts=("127.0.0.1",), devices=("eth9",)),
        seconds=0.2,
        rounds=1,
        system=system,
    )
    # A raw socket, for the ping, needs root before it is bound.
    assert 3 <= len(bound) <= 4 and set(bound) == {"eth9"}
    assert (report.missed, report.counters) == (2, {"eth0": 2, "eth1": 1})
    refused = [row for row in report.rows if row.target.endswith("on eth9")]
    assert {row.verdict for row in refused} == {CanaryVerdict.BLOCKED}
