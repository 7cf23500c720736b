"""What lies beyond the link: verdicts on what an exit tells about itself, and on a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.config.client import load_client
from cryprq_proxy.doctor import beyond
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.errors import CryprqError, StreamReason, words_of
from cryprq_proxy.service.system_names import TriedNames
from cryprq_proxy.status import (
    AskedExit,
    ClientStatus,
    ExitReport,
    OutwardReport,
    ResolverReport,
    TriedTarget,
    TunStatus,
)

BOTH = OutwardReport(addressed=True, route=True)
STRANDED = OutwardReport(addressed=True)
NONE = OutwardReport()


def context(off: float = 0.0, target: str = "", **report: Any) -> Context:
    told = ExitReport(**{"ipv4": BOTH, "ipv6": BOTH} | report)
    return Context(
        asked=AskedExit(exit="home", seconds=0.05, clock_off=off, report=told),
        target=Destination(target, 443) if target else None,
    )


# --- the names of this machine ---


@pytest.mark.parametrize(
    ("tried", "state", "text"),
    [
        (TriedNames(), CheckState.OK, "this machine finds names through the tunnel"),
        (TriedNames("no such name"), CheckState.WARN, "no such name"),
        (
            TriedNames("exit: connection refused", True),
            CheckState.FAIL,
            "--tun runs, and no program of this machine finds a name: exit: connection refused",
        ),
    ],
)
async def test_names_where_tun_runs(
    tried: TriedNames, state: CheckState, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the exit says of its own resolver."""

    async def try_names(dns: object) -> TriedNames:
        return tried

    monkeypatch.setattr(beyond, "try_names", try_names)
    asked = context()
    assert (await beyond.system_names(asked)).state is CheckState.SKIP
    asked.running = ClientStatus(link="up", tun=TunStatus())
    verdict = await beyond.system_names(asked)
    assert (verdict.state, verdict.text) == (state, text)
    assert bool(verdict.remedy) == (state is not CheckState.OK)


# --- clocks ---


@pytest.mark.parametrize(
    ("off", "ours", "theirs", "state", "text", "remedy"),
    [
        (0.0, None, None, "ok", "this machine and the exit have the same time", ""),
        (-29.0, False, False, "ok", "have the same time", ""),
        (259_200.0, None, None, "fail", "the exit's clock is 3 d 0 h ahead of this one, so one of them", "date -u"),
        (-259_200.0, True, True, "fail", "the exit's clock is 3 d 0 h behind this one, so one", "date -u"),
        (259_200.0, True, False, "fail", "the exit's clock is 3 d 0 h ahead of this one, which is", "at the exit"),
        (-7200.0, True, None, "fail", "the exit's clock is 2 h 0 min behind this one, which is", "at the exit"),
        (259_200.0, False, True, "fail", "this clock is 3 d 0 h behind the exit's, which is", "set this one"),
        (-259_200.0, None, True, "fail", "this clock is 3 d 0 h ahead of the exit's, which is", "set this one"),
        (40.0, True, False, "warn", "the exit's clock is 40 s ahead", "at the exit"),
    ],
)  # fmt: skip
async def test_clocks(
    off: float,
    ours: bool | None,
    theirs: bool | None,
    state: str,
    text: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beyond, "clock_is_kept", lambda: ours)
    verdict = await beyond.clocks(context(off, clock_kept=theirs))
    assert str(verdict.state) == state
    assert text in verdict.text and remedy in verdict.remedy


# --- routes and names ---


@pytest.mark.parametrize(
    ("four", "six", "state", "text"),
    [
        (BOTH, BOTH, "ok", "the exit reaches the Internet by IPv4 and IPv6"),
        (BOTH, NONE, "ok", "by IPv4, and has no IPv6"),
        (NONE, BOTH, "ok", "by IPv6, and has no IPv4"),
        (BOTH, STRANDED, "warn", "has an IPv6 address and no default route for IPv6"),
        (STRANDED, BOTH, "fail", "has an IPv4 address and no default route for IPv4"),
        (STRANDED, NONE, "fail", "the exit has no default route, neither for IPv4 nor for IPv6"),
        (NONE, NONE, "fail", "the exit has no default route, neither for IPv4 nor for IPv6"),
    ],
)
async def test_routes(four: OutwardReport, six: OutwardReport, state: str, text: str) -> None:
    verdict = await beyond.routes(context(ipv4=four, ipv6=six))
    assert str(verdict.state) == state and text in verdict.text
    assert state == "ok" or verdict.remedy.startswith("at the exit: ip ")


@pytest.mark.parametrize(
    ("reason", "state", "text"),
    [
        (None, "ok", "the exit finds names, one in 20.0 ms"),
        (StreamReason.NAME_TIMED_OUT, "fail", "no DNS server of the exit answers, so no page loads"),
        (StreamReason.NAME_FAILED, "fail", "the DNS servers of the exit answer with a failure"),
        (StreamReason.NAME_NOT_FOUND, "warn", "answers, and knows no name of the Internet"),
        (StreamReason.EXHAUSTED, "fail", "no descriptor or memory left"),
        (StreamReason.SHUTTING_DOWN, "fail", "the exit cannot look names up: shutting down"),
    ],
)
async def test_names(reason: StreamReason | None, state: str, text: str) -> None:
    problem = "" if reason is None else words_of(reason)
    verdict = await beyond.names(context(resolver=ResolverReport(problem=problem, seconds=0.02)))
    assert str(verdict.state) == state and text in verdict.text
    assert state == "ok" or verdict.remedy.startswith("at the exit: ")


async def test_what_was_not_told_is_skipped() -> None:
    for check in (beyond.clocks, beyond.routes, beyond.names):
        assert (await check(Context())).state is CheckState.SKIP


# --- asking ---


class Running:
    """Stands for a running client's control socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.answer: dict[str, Any] | CryprqError = {}
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(beyond, "query", self.query)
        file = directory / "client.toml"
        file.write_text('peer = "cryprq://' + "a" * 52 + '@127.0.0.1:1"\n')
        self.context = Context(client=load_client(file))

    def query(self, _: Path, command: str, *, timeout: float, argument: str = "") -> dict[str, Any]:
        self.asked.append((command, argument))
        if isinstance(self.answer, CryprqError):
            raise self.answer
        return self.answer


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Running:
    return Running(monkeypatch, tmp_path)


async def test_a_running_client_is_asked(running: Running) -> None:
    running.answer = {"exit": "home", "seconds": 0.05, "clock_off": 1.0, "report": {"version": "9.9"}}
    verdict = await beyond.asked(running.context)
    assert verdict.text == "home, of version 9.9, tells about itself in 50.0 ms"
    assert running.context.asked is not None and running.asked == [("report", "")]


@pytest.mark.parametrize(
    "answer", [CryprqError("the exit home cannot tell about itself: it is old"), {"exit": 7}]
)
async def test_an_exit_that_cannot_be_asked_is_no_fault(
    running: Running, answer: dict[str, Any] | CryprqError
) -> None:
    running.answer = answer
    verdict = await beyond.asked(running.context)
    assert verdict.state is CheckState.WARN and "doctor example.com" in verdict.remedy
    assert running.context.asked is None


async def test_without_a_name_nothing_is_connected(running: Running) -> None:
    assert (await beyond.target(running.context)).state is CheckState.SKIP
    assert not running.asked


@pytest.mark.parametrize(
    ("tried", "state", "text"),
    [
        (TriedTarget(by="tunnel", seconds=0.045), "ok", "www.example:443 is reached through the exit, in 45.0 ms"),
        (TriedTarget(by="direct", seconds=0.045), "ok", "is reached past the tunnel, as a rule says, in 45.0 ms"),
        (TriedTarget(by="block", problem="not allowed", rule="ads"), "fail", "www.example:443 is blocked by ads"),
        (TriedTarget(by="direct", problem="timed out"), "fail", "is not reached from here: timed out"),
        (TriedTarget(by="exit:b", problem="limit"), "fail", "www.example:443: it is not reached: limit"),
    ],
)  # fmt: skip
async def test_targets(running: Running, tried: TriedTarget, state: str, text: str) -> None:
    running.context.target = Destination("www.example", 443)
    running.answer = {name: getattr(tried, name) for name in tried.__struct_fields__}
    verdict = await beyond.target(running.context)
    assert str(verdict.state) == state and text in verdict.text
    assert running.asked == [("try", "www.example:443")]


@pytest.mark.parametrize("reason", list(beyond._TARGET_PROBLEMS))
async def test_each_reason_has_its_own_words_and_remedy(running: Running, reason: StreamReason) -> None:
    running.context.target = Destination("www.example", 443)
    running.answer = {"by": "tunnel", "problem": words_of(reason)}
    verdict = await beyond.target(running.context)
    text, remedy = beyond._TARGET_PROBLEMS[reason]
    assert verdict.text == f"www.example:443: {text.format(who='the exit')}"
    assert verdict.remedy == remedy.format(where="at the exit: ", name="www.example", who="the exit")
