"""What is open for a time is closed by a process of its own, whoever lives."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.base.clock import CLOCK, clock
from tests.support.macos.machine import FakeMac
from tests.support.pages import ROOT
from tests.support.programs import until
from tun.macos import programs
from tun.macos.closing import Closing, Stage, close_in_time, main
from tun.macos.pfctl import ANCHORS, PfError
from tun.macos.programs import PATHS, Command, ProgramAnswer, ProgramError

ANCHOR = ANCHORS["client"]
OPEN = 'pass out quick all no state label "open-1"\n'
NARROW = 'pass out quick proto udp from any to any port 53 no state label "open-1"\n'
SHUT = "block return out quick all\n"


class Anchor:
    """pfctl with one anchor."""

    def __init__(self, rules: str) -> None:
        self.rules = rules
        self.loaded: list[str] = []
        self.failures = 0
        self.complaints = 0
        """Looks that fail with the code 0."""

    def __call__(self, command: Command) -> ProgramAnswer:
        if self.failures:
            self.failures -= 1
            raise ProgramError("pfctl does not end")
        if command.argv == ("pfctl", "-a", ANCHOR, "-s", "rules"):
            if self.complaints:
                self.complaints -= 1
                return ProgramAnswer("", "pfctl: DIOCGETRULE: Resource busy\n")
            return ProgramAnswer(self.rules)
        if command.argv == ("pfctl", "-a", ANCHOR, "-s", "nat"):
            return ProgramAnswer("")
        assert command.argv == ("pfctl", "-a", ANCHOR, "-f", "-")
        self.rules = command.stdin
        self.loaded.append(command.stdin)
        return ProgramAnswer("")


def given(*texts: str) -> dict[str, Any]:
    return {"anchor": ANCHOR, "mark": "open-1", "clock": CLOCK, "stages": [[0.0, text] for text in texts]}


def test_each_end_has_its_text() -> None:
    anchor = Anchor(OPEN)
    close_in_time(given(NARROW, SHUT), anchor)
    assert anchor.loaded == [NARROW, SHUT]


@pytest.mark.parametrize(
    "rules", ["", SHUT, OPEN.replace("open-1", "open-2"), OPEN.replace("open-1", "open-11")]
)
def test_what_was_closed_or_changed_meanwhile_stays(rules: str) -> None:
    anchor = Anchor(rules)
    close_in_time(given(SHUT), anchor)
    assert not anchor.loaded


def test_a_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    anchor = Anchor(OPEN)
    anchor.failures, anchor.complaints = 1, 1
    close_in_time(given(SHUT), anchor)
    assert anchor.loaded == [SHUT] and waits == [1, 2]


def test_a_sleep_of_the_machine_lengthens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is frozen with the machine, and knows nothing of the hour that has passed when it wakes."""
    now, awake = 100.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, awake
        now += seconds if awake else seconds + 3600
        awake += seconds

    monkeypatch.setattr(time, "clock_gettime", lambda number: now if number == CLOCK else 0.0)
    monkeypatch.setattr(time, "sleep", sleep)
    anchor = Anchor(OPEN)
    close_in_time(given() | {"stages": [[160.0, SHUT]]}, anchor)
    assert anchor.loaded == [SHUT] and 0 < awake <= 2


def test_nothing_closes_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        assert anchor.rules == OPEN

    monkeypatch.setattr(time, "clock_gettime", lambda number: now if number == CLOCK else 1e9)
    monkeypatch.setattr(time, "sleep", sleep)
    anchor = Anchor(OPEN)
    close_in_time(given() | {"stages": [[160.0, SHUT]]}, anchor)
    assert anchor.loaded == [SHUT] and now == 160


def test_nothing_is_waited_for_before_all_is_known() -> None:
    said = io.StringIO()
    main(io.StringIO(json.dumps(given() | {"pfctl": "/nowhere"})), said)
    assert said.getvalue() == "ready\n"


@pytest.mark.process
def test_a_process_closes_by_the_program_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = FakeMac(tmp_path / "mac")
    root = mac.install()
    monkeypatch.setattr(programs, "PATHS", {name: f"{root}{path}" for name, path in PATHS.items()})
    mac.answer(["/sbin/pfctl", "-a", ANCHOR, "-f", "-"], OPEN)
    closing = Closing.start(ANCHOR, "open-1", [Stage(clock(), SHUT)])
    closing._process.wait(60)
    assert mac.read().pf.anchors[ANCHOR].rules == "block return out quick all\n"
    closing.stop()


@pytest.mark.process
def test_one_that_is_stopped_closes_nothing(tmp_path: Path) -> None:
    closing = Closing.start(ANCHOR, "open-1", [Stage(clock() + 3600, SHUT)])
    assert closing._process.poll() is None
    closing.stop()
    assert closing._process.poll() is not None


@pytest.mark.process
def test_a_process_that_does_not_start_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tun.macos.closing.sys.executable", "/bin/false")
    with pytest.raises(PfError, match="nothing was opened"):
        Closing.start(ANCHOR, "open-1", [Stage(0, SHUT)])


_KILLED = """
import os, signal, sys
from tun.macos.closing import Closing, Stage
from tun.macos import programs
programs.PATHS = {"pfctl": sys.argv[1]}
Closing.start(sys.argv[2], "open-1", [Stage(0.0, sys.stdin.read())])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_it_closes_although_who_has_opened_was_killed(tmp_path: Path) -> None:
    mac = FakeMac(tmp_path / "mac")
    pfctl = f"{mac.install()}{PATHS['pfctl']}"
    mac.answer(["/sbin/pfctl", "-a", ANCHOR, "-f", "-"], OPEN)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, pfctl, ANCHOR],
        input=SHUT,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    until(lambda: mac.read().pf.anchors[ANCHOR].rules == SHUT, "the anchor is closed")
