"""What a killed --tun has left on a Mac is found by its marks, for root and for users, until it is undone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryprq_proxy.base import leftovers, lock_sign, macos_marks
from tests.support.macos.machine import FakeMac
from tun.macos import pfctl, resolver
from tun.macos.programs import PATHS, Command, ProgramAnswer

OURS = ("198.18.255.53", "fd63:7279:7071::53")


class Asked:
    """A fake Mac whose programs `uid` runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uid = 0

    def said(self, argv: Sequence[str], stdin: str = "") -> str:
        return FakeMac(self.directory, self.uid).answer(argv, stdin).stdout.strip()

    def run(self, command: Command) -> ProgramAnswer:
        argv = [PATHS[command.argv[0]], *command.argv[1:]]
        code, out, err = FakeMac(self.directory).answer(argv, command.stdin)
        return ProgramAnswer(out, err, code)


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked(tmp_path / "mac")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(lock_sign, "DIRECTORY", tmp_path)
    monkeypatch.setattr(macos_marks, "said", asked.said)
    monkeypatch.setattr(os, "geteuid", lambda: asked.uid)
    return asked


async def test_a_killed_client_is_found_until_it_is_undone(mac: Asked) -> None:
    assert leftovers.left_by_any() == ""
    setting = await resolver.choose(lambda _: None, run=mac.run)
    await setting.set(OURS, 0, "utun4")
    left = f"an earlier --tun has left the resolver {macos_marks.RESOLVER_KEY}: {leftovers.REMEDY}"
    assert leftovers.left_by_client() == left
    pfctl.load(pfctl.ANCHORS["client"], "block drop out quick all\n", mac.run)
    assert leftovers.left_by_any() == leftovers.KILL_SWITCH_STANDS
    mac.uid = 501
    assert leftovers.left_by_any() == leftovers.KILL_SWITCH_STANDS, "as far as a user sees"
    mac.uid = 0
    with leftovers.claimed("client"):
        assert leftovers.left_by_any() == ""
    assert resolver.take_away_left(mac.run) == "resolver"
    pfctl.flush(pfctl.ANCHORS["client"], mac.run)
    assert leftovers.left_by_any() == ""


def test_a_killed_exit_is_found_until_it_is_undone(mac: Asked) -> None:
    pfctl.load(pfctl.ANCHORS["exit"], "nat on en0 inet from 198.18.0.0/16 to any -> (en0)\n", mac.run)
    anchor = "the anchor com.apple/010.cryprq-proxy-exit of the packet filter"
    left = f"an earlier --tun has left {anchor}: {leftovers.REMEDY}"
    assert leftovers.left_by_any() == left and leftovers.left_by_client() == ""
    pfctl.flush(pfctl.ANCHORS["exit"], mac.run)
    assert leftovers.left_by_any() == ""
