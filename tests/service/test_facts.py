"""What our own page tells: from the status, and from the exit's report, which is asked for once for all."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from cryprq_proxy.client.exits import Exits
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.service import facts as own_facts
from cryprq_proxy.service.facts import OwnFacts
from cryprq_proxy.status import AskedExit, ClientStatus, ExitAddress, ExitReport, KnownExit, OutwardReport

REPORT = ExitReport(ipv4=OutwardReport(route=True, address="203.0.113.7"))


class FakeExits:
    def __init__(self) -> None:
        self.link, self.active = "up", "home"
        self.asked = 0
        self.trouble = ""
        self.answers = asyncio.Event()

    def status(self) -> ClientStatus:
        return ClientStatus(
            link=self.link,
            last_error="no answer",
            exit=ExitAddress(address="203.0.113.7:4433"),
            exits=(KnownExit(name="spare"), KnownExit(name=self.active, active=True)),
        )

    async def report(self) -> AskedExit:
        self.asked += 1
        await self.answers.wait()
        if self.trouble:
            raise CryprqError(self.trouble)
        return AskedExit(exit="home", report=REPORT)


@pytest.fixture
async def exits() -> FakeExits:
    return FakeExits()


def told_by(exits: FakeExits) -> OwnFacts:
    return OwnFacts(cast(Exits, exits))


async def test_many_who_ask_at_once_cost_one_question(
    exits: FakeExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(own_facts, "clock", lambda: now)
    facts = told_by(exits)
    asking = [asyncio.ensure_future(facts()) for _ in range(50)]
    await asyncio.sleep(0)
    asking.pop().cancel()  # who goes takes nothing from the others
    exits.answers.set()
    told = await asyncio.gather(*asking)
    assert exits.asked == 1 and set(map(repr, told)) == {repr(told[0])}
    assert (told[0].exit, told[0].address, told[0].report) == ("home", "203.0.113.7:4433", REPORT)
    await facts()
    assert exits.asked == 1
    now += own_facts.KEPT_SECONDS + 0.1
    await facts()
    assert exits.asked == 2


async def test_why_the_exit_was_not_asked(exits: FakeExits) -> None:
    exits.answers.set()
    exits.trouble = "the exit home runs an older version"
    told = await told_by(exits)()
    assert (told.report, told.unasked) == (None, exits.trouble)
    exits.link = "down"
    told = await told_by(exits)()
    assert (told.up, told.problem, told.unasked) == (False, "no answer", "there is no link to the exit")
    assert exits.asked == 1


async def test_what_another_exit_has_told_is_not_said_of_this_one(exits: FakeExits) -> None:
    exits.answers.set()
    exits.active = "spare"
    told = await told_by(exits)()
    assert told.report is None and "has just changed, from home" in told.unasked


async def test_why_names_fail_on_this_machine(exits: FakeExits) -> None:
    exits.answers.set()

    async def problem() -> str:
        return "exit: connection refused"

    facts = OwnFacts(cast(Exits, exits), names=problem)
    assert (await facts()).names_problem == "exit: connection refused"
    assert (await told_by(exits)()).names_problem == ""


async def test_a_pause_is_told_as_it_is_at_each_time(exits: FakeExits) -> None:
    left = [30, 0]
    exits.answers.set()
    facts = OwnFacts(cast(Exits, exits), lambda: left.pop(0))
    assert ((await facts()).paused, (await facts()).paused) == (30, 0)
    assert (await told_by(exits)()).paused == 0
