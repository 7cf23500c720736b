"""The reconciler: when it looks and puts back, what it counts, logs and names as trouble."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from typing import Self

import pytest

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.status import RepairStatus
from tests.support.settle import settle, until
from tun import reconciler
from tun.reconciler import FIGHT, LOOK_SECONDS, PEACE_SECONDS, QUIET, SLOW, Fact, Reconciler, Schedule


def schedule(*, vital: bool = False, polled: bool = False) -> Schedule:
    return Schedule("device", vital=vital, polled=polled, now=0.0)


def fight(kept: Schedule, now: float = 0.0) -> float:
    """Repairs, one a second, until it is a fight; the time of the last."""
    for _ in range(FIGHT):
        now += 1
        kept.begin()
        kept.repaired(now, "no address")
    return now


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "tun.reconciler"):
        yield caplog


def test_what_sends_events_is_looked_at_once_and_then_on_events() -> None:
    kept = schedule()
    assert kept.due == 0.0
    kept.begin()
    kept.stands(1.0)
    assert kept.due == math.inf
    kept.event(7.0)
    assert kept.due == 7.0
    kept.event(8.0)
    assert kept.due == 7.0


def test_an_event_does_not_hasten_what_failed() -> None:
    """The event may be of the try itself: of the kill switch, which is put back where no look is possible."""
    kept = schedule(vital=True)
    kept.begin()
    kept.event(0.5)
    kept.failed(1.0, "", "nft cannot list it")
    assert kept.due == 1.0 + LOOK_SECONDS
    kept.event(1.2)
    assert kept.due == 1.0 + LOOK_SECONDS
    kept.begin()
    kept.stands(2.0)
    kept.event(2.5)
    assert kept.due == 2.5


def test_what_sends_none_is_looked_at_each_second() -> None:
    kept = schedule(polled=True)
    kept.begin()
    kept.stands(1.0)
    assert kept.due == 1.0 + LOOK_SECONDS


def test_an_event_during_a_look_leads_to_another_look() -> None:
    kept = schedule()
    kept.begin()
    kept.event(0.5)
    kept.stands(1.0)
    assert kept.due == 0.5


def test_a_repair_is_counted_logged_once_and_looked_at_again(log: pytest.LogCaptureFixture) -> None:
    kept = schedule()
    kept.begin()
    kept.repaired(1.0, "no address")
    assert kept.due == 1.0 + LOOK_SECONDS
    assert kept.status() == RepairStatus(name="device", repairs=1, found="no address")
    kept.repaired(2.0, "no address")
    assert log.messages == ["device: another program changed it: no address; it is put back"]
    kept.repaired(2.0 + QUIET, "no address")
    kept.repaired(2.0 + QUIET, "it is down")
    assert len(log.messages) == 3
    kept.stands(3.0 + QUIET)
    assert kept.status() == RepairStatus(name="device", repairs=4)


def test_a_fight_slows_down_and_is_named_once(log: pytest.LogCaptureFixture) -> None:
    kept = schedule()
    now = fight(kept)
    assert kept.due == now + SLOW
    kept.event(now + 1)
    assert kept.due == now + SLOW
    assert kept.trouble == "another program changes it again and again, last: no address"
    assert log.messages[1:] == [
        "device: another program changes it again and again, last: no address; it is put back every 10 s only. "
        "Tell that program to leave it alone"
    ]
    kept.begin()
    kept.repaired(now + SLOW, "no address")
    assert len(log.messages) == 2


def test_a_fight_does_not_slow_down_what_is_vital(log: pytest.LogCaptureFixture) -> None:
    kept = schedule(vital=True)
    now = fight(kept)
    assert kept.trouble
    assert kept.due == now + LOOK_SECONDS
    kept.event(now)
    assert kept.due == now
    assert "it is put back each time" in log.messages[-1]


def test_a_fight_that_is_over_is_looked_for_and_told(log: pytest.LogCaptureFixture) -> None:
    kept = schedule()
    now = fight(kept)
    kept.begin()
    kept.stands(now + SLOW)
    assert kept.trouble
    assert kept.due == now + SLOW + LOOK_SECONDS
    kept.begin()
    kept.stands(now + PEACE_SECONDS)
    assert (kept.trouble, kept.due) == ("", math.inf)
    assert log.messages[-1] == "device: stands again as it was set"


def test_what_cannot_be_put_back_is_trouble_and_tried_again(log: pytest.LogCaptureFixture) -> None:
    kept = schedule()
    for now in (1.0, 2.0, 2.0 + QUIET):
        kept.begin()
        kept.failed(now, "rule 5210", "rule 5210 stands before ours")
        assert kept.due == now + LOOK_SECONDS
    assert kept.status() == RepairStatus(
        name="device", found="rule 5210", trouble="rule 5210 stands before ours"
    )
    kept.failed(20.0, "rule 5230", "rule 5230 stands before ours")
    kept.stands(21.0)
    assert kept.status() == RepairStatus(name="device")
    assert log.messages == [
        "device: rule 5210 stands before ours",
        "device: rule 5230 stands before ours",
        "device: stands again as it was set",
    ]


class Told:
    """Changes of the kernel, told by `happens`."""

    def __init__(self) -> None:
        self.closed = False
        self._event = asyncio.Event()

    def happens(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class Thing(Fact):
    name = "thing"

    def __init__(self) -> None:
        self.found = ""
        self.looks = 0
        self.error: Exception | None = None
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.begun = 0
        self.put = 0

    async def look(self) -> str:
        self.looks += 1
        return self.found

    async def put_back(self) -> None:
        self.begun += 1
        await self.may_finish.wait()
        if self.error is not None:
            raise self.error
        self.found = ""
        self.put += 1


class Stage:
    def __init__(self, *things: Thing) -> None:
        self.told = Told()
        self.things = things
        for thing in things:
            thing.changes = self._changes  # type: ignore[assignment]
        self.reconciler = Reconciler(things)

    def _changes(self) -> Told:
        return self.told

    async def looked_at(self) -> None:
        await until(lambda: all(thing.looks for thing in self.things))
        await settle()


async def test_an_event_leads_to_a_look_and_a_repair() -> None:
    stage = Stage(thing := Thing())
    await stage.looked_at()
    assert (thing.looks, thing.put) == (1, 0)
    thing.found = "gone"
    stage.told.happens()
    await until(lambda: thing.put == 1)
    await until(lambda: stage.reconciler.status() == (RepairStatus(name="thing", repairs=1, found="gone"),))
    await stage.reconciler.stop()
    assert stage.told.closed


async def test_one_that_hangs_delays_no_other() -> None:
    hanging, other = Thing(), Thing()
    stage = Stage(hanging, other)
    await stage.looked_at()
    hanging.may_finish.clear()
    hanging.found = other.found = "gone"
    stage.told.happens()
    await until(lambda: hanging.begun and other.put)
    hanging.may_finish.set()
    await stage.reconciler.stop()


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (CryprqError("it is used"), "it is used"),
        (OSError(1, ""), "operation not permitted"),
        (LookupError("no such thing"), "this is a bug: LookupError: no such thing"),
    ],
)
async def test_errors_are_trouble(error: Exception, trouble: str) -> None:
    thing = Thing()
    thing.found, thing.error = "gone", error
    stage = Stage(thing)
    await until(lambda: stage.reconciler.status()[0].trouble)
    assert stage.reconciler.status() == (RepairStatus(name="thing", found="gone", trouble=trouble),)
    await stage.reconciler.stop()


async def test_a_fault_of_ours_does_not_end_the_watch() -> None:
    thing = Thing()
    thing.found, thing.error = "gone", LookupError("no such thing")
    stage = Stage(thing)
    await until(lambda: stage.reconciler.status()[0].trouble)
    thing.error = None
    stage.reconciler.wake()
    await until(lambda: thing.put == 1)
    await stage.reconciler.stop()


async def test_without_events_each_second_is_looked_at(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "LOOK_SECONDS", 0.0)
    stage = Stage(thing := Thing())
    monkeypatch.setattr(Told, "__enter__", refused)
    await until(lambda: thing.looks > 2)
    thing.found = "gone"
    await until(lambda: thing.put == 1)
    assert log.messages[0] == (
        "the kernel tells no changes (operation not permitted), so each second is looked at: thing"
    )
    await stage.reconciler.stop()


def refused(told: Told) -> Told:
    raise PermissionError(1, "")


async def test_stop_finishes_a_repair_and_begins_no_other() -> None:
    stage = Stage(thing := Thing())
    await stage.looked_at()
    thing.may_finish.clear()
    thing.found = "gone"
    stage.told.happens()
    await until(lambda: thing.begun)
    stopping = asyncio.ensure_future(stage.reconciler.stop())
    await settle()
    assert not stopping.done()
    thing.may_finish.set()
    await stopping
    assert thing.put == 1
    looks = thing.looks
    stage.told.happens()
    await settle()
    assert thing.looks == looks
