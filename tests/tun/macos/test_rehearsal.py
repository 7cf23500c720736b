"""What --dry-run says on macOS is what a start does: the same commands with the same input, in the same order, run by
the programs of the fake Mac. A dry run changes nothing of it."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.rules.engine import EVERYTHING
from tests.support.macos.mac_tunnel import EXITS, stand_in, start
from tests.support.macos.machine import FakeMac
from tests.support.settings import exit_network_settings, tunnel_settings
from tun import dry_run
from tun.macos.programs import PATHS, Command, ProgramAnswer, Run
from tun.macos.system import MacOS
from tun.tunnel import TunnelPlan

UtunPair: Any = pytest.importorskip("tests.support.macos.utun_pair").UtunPair


class RunnableMac(FakeMac):
    def programs(self, command: Command) -> ProgramAnswer:
        """A Run."""
        code, out, err = self.answer([PATHS[command.argv[0]], *command.argv[1:]], command.stdin)
        return ProgramAnswer(out, err, code)


@pytest.fixture
def mac(tmp_path: Path) -> RunnableMac:
    return RunnableMac(tmp_path / "mac")


class Log:
    """A Run that writes down what changes something."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.made: list[tuple[str, str]] = []

    def __call__(self, command: Command) -> ProgramAnswer:
        if command.changes:
            self.made.append((shlex.join([PATHS[command.argv[0]], *command.argv[1:]]), command.stdin))
        return self._run(command)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def said(found: dry_run.DryRun) -> list[tuple[str, str]]:
    return [(change.what, change.text) for change in found.changes if change.what.startswith("/")]


OPTIONS: list[Callable[[], dict[str, Any]]] = [
    dict,
    lambda: {"lan": False, "exclude_uids": ((501, 501),)},
    lambda: {"kill_switch": False, "leave_resolver": True},
    lambda: {"keep_inbound": True},
]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("options", OPTIONS)
async def test_the_client(mac: RunnableMac, tmp_path: Path, options: Callable[[], dict[str, Any]]) -> None:
    settings = tunnel_settings(state=tmp_path / "state", **options())
    before = mac.snapshot()
    looked = Log(mac.programs)
    found = await dry_run.of_client(TunnelPlan.of(MacOS(looked), settings, EXITS, EVERYTHING))
    assert not looked.made
    assert mac.snapshot() == before
    assert not (tmp_path / "state").exists()
    assert all(change.undo for change in found.changes)
    log, pair = Log(mac.programs), UtunPair(mac)
    with contextlib.closing(pair.kernel):
        started = await start(MacOS(log, pair), settings)
        try:
            assert said(found) == log.made
            assert ("/sbin/pfctl -E", "") in log.made
        finally:
            pair.kernel.close()
            await started.close(None, None, None)


async def test_the_exit(mac: RunnableMac, tmp_path: Path) -> None:
    settings = exit_network_settings(state=tmp_path / "state")
    before = mac.snapshot()
    looked = Log(mac.programs)
    found = await dry_run.of_exit(MacOS(looked), settings)
    assert not looked.made
    assert mac.snapshot() == before
    assert all(change.undo for change in found.changes)
    log, pair = Log(mac.programs), UtunPair(mac)
    system = MacOS(log, pair)
    device = system.open_device(settings)
    side = await system.exit_side(
        exit_network_settings(state=tmp_path / "state", device=device.name),
        device,
        lambda entry: None,
        recorded=(),
    )
    await side.close()
    device.close()
    pair.kernel.close()
    assert said(found) == log.made


async def test_without_root_pf_is_taken_as_macos_delivers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tunnel_settings(state=tmp_path / "state")
    as_root = await dry_run.of_client(
        TunnelPlan.of(MacOS(RunnableMac(tmp_path / "mac").programs), settings, EXITS, EVERYTHING)
    )
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    mac = RunnableMac(tmp_path / "mac", uid=501)
    found = await dry_run.of_client(TunnelPlan.of(MacOS(mac.programs), settings, EXITS, EVERYTHING))
    assert said(found) == said(as_root)
    assert any("without root pfctl tells nothing" in remark for remark in found.remarks)
    assert not any("pfctl" in remark for remark in as_root.remarks)
