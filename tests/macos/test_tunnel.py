"""A tunnel between two utun devices on one Mac, as root, with the leak test and kill -9.

How one kernel can be both ends stands in tests/support/mac_stage.py.

The default route, the resolver and everything but the documentation's prefixes stay as they are, so that the machine
can be reached meanwhile. IPv6 is tried where this machine has a default route of it.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Self

import pytest

from tests.support.far_side import FarSide
from tests.support.mac_stage import ANCHOR, IPV4, IPV6, Family, MacStage, changed, rules, snapshot
from tun.leaktest import probe
from tun.leaktest.canaries import CanaryTargets
from tun.leaktest.report import CanaryVerdict, LeakReport, render
from tun.leaktest.system import Capture
from tun.leaktest.watch import Watch
from tun.macos import networks, pfctl
from tun.macos.capture import MACOS_LEAK_TEST, BpfCapture
from tun.macos.device import Utun, open_control
from tun.macos.programs import run
from tun.macos.wanted_routes import WantedRoute, add
from tun.settings import POOLS4, POOLS6

MTU = 1500
TUNNELLED = {CanaryVerdict.TUNNELLED, CanaryVerdict.HERE}


class Far:
    """The third utun: the internet behind the exit. A context manager."""

    def __init__(self, families: list[Family]) -> None:
        fd, self.name = open_control("utun")
        self._utun = Utun(fd, self.name, MTU)
        self._families = families
        self.side = FarSide(fd)

    def __enter__(self) -> Self:
        asyncio.run(self._utun.configure([ip_interface(family.far) for family in self._families]))
        for family in self._families:
            add(WantedRoute(ip_network(family.renamed), self.name))
        self.side.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.side.__exit__()
        self._utun.close()


class Tunnel:
    """Everything, running."""

    def __init__(self, stage: MacStage, families: list[Family], far: Far) -> None:
        self.stage = stage
        self.families = families
        self.far = far
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        included = [family.included for family in families]
        self.exit_file = stage.write(
            "exit",
            {
                "listen": [f"127.0.0.1:{port}"],
                "allow": [stage.identity("client")],
                "egress": {"allow": included},
                "tun": {"pool4": str(POOLS4[0]), "pool6": str(POOLS6[0])},
            },
        )
        self.client_file = stage.write(
            "client",
            {
                "peer": f"cryprq://{stage.identity('exit')}@127.0.0.1:{port}",
                "admin": "off",
                "tun": {"include": included, "resolver": "leave"},
            },
        )
        self.exit = stage.start("exit", self.exit_file)
        self.client = stage.start("client", self.client_file)
        self.names = {
            "exit": str(stage.status("exit")["network"]["device"]["name"]),
            "client": str(stage.status("client")["tun"]["device"]["name"]),
        }
        self.help()

    def help(self) -> None:
        """The rules that one kernel needs to be both ends."""
        text = rules(
            self.families,
            client=self.names["client"],
            exit=self.names["exit"],
            far=self.far.name,
            pools={"inet": str(POOLS4[0]), "inet6": str(POOLS6[0])},
            own={"inet": str(POOLS4[0][1]), "inet6": str(POOLS6[0][1])},
        )
        pfctl.load(ANCHOR, text)

    def leak_test(self, *, tunnel: str, unseen: frozenset[str]) -> LeakReport:
        """With new canaries to the targets; interfaces of `unseen` are not captured."""

        def capture(watch: Watch) -> Capture:
            return BpfCapture(
                watch,
                interfaces=lambda: [each for each in socket.if_nameindex() if each[1] not in unseen],
            )

        targets = [target for family in self.families for target in family.targets]
        return asyncio.run(
            probe.run(
                tunnel=tunnel,
                exits=[],
                targets=CanaryTargets(dns=(), hosts=targets),
                system=MACOS_LEAK_TEST._replace(capture=capture),
            )
        )


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    before = snapshot()
    directory = Path(tempfile.mkdtemp(prefix="cq", dir="/tmp"))
    state = networks.look(run)
    families = [IPV4, *([IPV6] if state.default(6, "") is not None else [])]
    stage = MacStage(directory)
    try:
        with Far(families) as far:
            try:
                yield Tunnel(stage, families, far)
            finally:
                stage.close()
                pfctl.flush(ANCHOR)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert changed(before, snapshot()) == ""


def test_packets_go_through_both_ends_and_nowhere_else(tunnel: Tunnel) -> None:
    ours = frozenset({tunnel.names["exit"], tunnel.far.name})
    report = tunnel.leak_test(tunnel=tunnel.names["client"], unseen=ours)
    assert not report.leaks and not report.missed, render(report)
    assert {row.verdict for row in report.rows} <= TUNNELLED, render(report)
    for name in ("ping", "QUIC", "STUN"):
        assert all("answered" in row.seen for row in report.rows if row.name == name), render(report)
    tokens = sum(b"cqleak" in packet for packet in tunnel.far.side.seen)
    assert tokens >= 3 * sum(len(family.targets) for family in tunnel.families)


def test_the_capture_sees_what_leaves(tunnel: Tunnel) -> None:
    """The control: what the exit sends on is a leak to a capture that also sees the far utun."""
    report = tunnel.leak_test(tunnel=tunnel.names["client"], unseen=frozenset())
    leaked = {row.name for row in report.leaks}
    assert {"ping", "QUIC", "STUN"} <= leaked, render(report)
    assert all(f"{tunnel.far.name} x" in row.seen for row in report.leaks), render(report)


def test_a_killed_client_lets_nothing_out_and_a_new_one_takes_over(tunnel: Tunnel) -> None:
    tunnel.client.kill()
    seen = len(tunnel.far.side.seen)
    report = tunnel.leak_test(tunnel=probe.NO_TUNNEL, unseen=frozenset())
    assert {row.verdict for row in report.rows} == {CanaryVerdict.BLOCKED}, render(report)
    assert not any(b"cqleak" in packet for packet in tunnel.far.side.seen[seen:])
    tunnel.client = tunnel.stage.start("client", tunnel.client_file)
    tunnel.names["client"] = str(tunnel.stage.status("client")["tun"]["device"]["name"])
    tunnel.help()
    test_packets_go_through_both_ends_and_nowhere_else(tunnel)


def test_cleanup_after_both_were_killed(tunnel: Tunnel) -> None:
    """The fixture compares the machine with what it was before."""
    tunnel.client.kill()
    tunnel.exit.kill()
    done = tunnel.stage.call("cleanup", "--state-dir", str(tunnel.stage.directory / "state"))
    assert done.returncode == 0, done.stderr
    for anchor in pfctl.ANCHORS.values():
        assert not pfctl.loaded(anchor)
    again = tunnel.stage.call("cleanup", "--state-dir", str(tunnel.stage.directory / "state"))
    assert again.returncode == 0, again.stderr


def test_the_leak_test_of_the_command_line(tunnel: Tunnel) -> None:
    """It finds the far utun, which is on this machine, and says so by its exit code."""
    done = tunnel.stage.call("leaktest", "--config", str(tunnel.client_file), "--target", IPV4.targets[0])
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{tunnel.far.name} x" in done.stdout
