"""The exits that are connected and not in use: each is asked, at the same time, and within a bound."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.config.client import load_client
from cryprq_proxy.doctor import beyond
from cryprq_proxy.doctor.checks import CheckState, CheckVerdict, Context
from cryprq_proxy.doctor.other_exits import MOST_ASKED, other_exits
from cryprq_proxy.errors import CryprqError, StreamReason, words_of
from cryprq_proxy.status import ClientStatus, KnownExit

BOTH = {"addressed": True, "route": True}
WELL = {"version": "9.9", "ipv4": BOTH, "ipv6": BOTH, "resolver": {"seconds": 0.02}}
FOUND = (
    "it reaches the Internet by IPv4 and IPv6, it finds names, one in 20.0 ms, "
    "this machine and the exit have the same time"
)
LIMIT = 10.0
"""Seconds for what is at once unless the test fails."""


class World:
    """A running client with the exit "home" in use, and others that `reports` has, or errors."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports: dict[str, dict[str, Any] | CryprqError] = {}
        self.down: list[str] = []
        self.asked: list[str] = []
        self.together: threading.Barrier | None = None
        self.answers_as: str | None = None
        self.off = 0.0
        monkeypatch.setattr(beyond, "query", self.query)
        self.file = directory / "client.toml"
        self.file.write_text('peer = "cryprq://' + "a" * 52 + '@127.0.0.1:1"\n')

    def query(self, _: Path, command: str, *, timeout: float, argument: str = "") -> dict[str, Any]:
        assert command == "report"
        self.asked.append(argument)
        if self.together is not None:
            self.together.wait(LIMIT)
        report = self.reports[argument]
        if isinstance(report, CryprqError):
            raise report
        return {"exit": self.answers_as or argument, "clock_off": self.off, "report": report}

    async def found(self) -> CheckVerdict:
        up = [KnownExit(name=name, link="up", healthy=True) for name in self.reports]
        down = [KnownExit(name=name, link="down") for name in self.down]
        home = KnownExit(name="home", active=True, link="up", healthy=True)
        status = ClientStatus(link="up", exits=(home, *up, *down))
        return await other_exits(Context(client=load_client(self.file), running=status))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


async def test_each_that_is_connected_is_asked(world: World) -> None:
    world.reports = {"far": WELL, "near": WELL}
    world.down = ["gone"]
    assert await world.found() == (
        CheckState.OK,
        f"far: {FOUND}; near: {FOUND}; gone: has no link, so it is not asked",
        "",
    )
    assert sorted(world.asked) == ["far", "near"]


async def test_what_is_wrong_at_one_of_them_is_a_warning(world: World) -> None:
    silent = WELL | {"resolver": {"problem": words_of(StreamReason.NAME_TIMED_OUT)}}
    world.reports = {"near": WELL, "far": silent, "old": CryprqError("the exit old cannot tell about itself")}
    verdict = await world.found()
    assert verdict.state is CheckState.WARN
    assert verdict.text == (
        f"near: {FOUND}; far: no DNS server of it answers, so no page loads by its name; "
        "old: the exit old cannot tell about itself"
    )
    assert verdict.remedy.startswith("at the exit far: try `getent hosts example.com`")
    assert "; look at the exit old: " in verdict.remedy and "near" not in verdict.remedy


async def test_a_stranded_exit_with_another_time(world: World) -> None:
    world.reports = {"far": WELL | {"ipv4": {}, "ipv6": {}}}
    world.off = 7200.0
    verdict = await world.found()
    assert verdict.state is CheckState.WARN
    assert "far: it has no default route" in verdict.text and "2 h 0 min ahead" in verdict.text


async def test_all_at_the_same_time_and_no_more_than_a_few(world: World) -> None:
    """Each answer waits until all are asked."""
    names = [f"exit-{number}" for number in range(MOST_ASKED + 2)]
    world.reports = dict.fromkeys(names, WELL)
    world.together = threading.Barrier(MOST_ASKED)
    async with asyncio.timeout(2 * LIMIT):
        verdict = await world.found()
    assert verdict.state is CheckState.OK
    assert sorted(world.asked) == names[:MOST_ASKED]
    assert f"exit-6: not asked, {MOST_ASKED} others are enough" in verdict.text


async def test_an_older_client_that_asks_the_one_in_use(world: World) -> None:
    world.reports = {"far": WELL}
    world.answers_as = "home"
    verdict = await world.found()
    assert verdict.state is CheckState.WARN
    assert "far: the running client has another version; restart it" in verdict.text


async def test_nobody_to_ask(world: World) -> None:
    assert await world.found() == (CheckState.SKIP, "there are no others", "")
    alone = Context(client=load_client(world.file))
    assert await other_exits(alone) == (CheckState.SKIP, "there are no others", "")
    world.file.write_text(f'peer = ["cryprq://{"a" * 52}@127.0.0.1:1", "cryprq://{"b" * 51}a@127.0.0.2:1"]\n')
    several = Context(client=load_client(world.file))
    assert "only a running client" in (await other_exits(several)).text
    assert not world.asked
