"""Races between endpoints of the exit, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from cryprq_proxy.carriers.dial.race import AllFailed, Outcome, race
from cryprq_proxy.errors import CarrierError, CarrierFault, CloseReason, ConfigError, LocalError, PeerError


class Track:
    """Contestants that end when the test says so. `log` has who started and who was stopped."""

    def __init__(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.results: list[asyncio.Future[str]] = [loop.create_future() for _ in range(count)]
        self.delays: list[asyncio.Future[None]] = []
        self.asked: list[float] = []
        self.log: list[str] = []
        self.discarded: list[str] = []

    def start(
        self, delay: float = 0.5, abreast: int = 1, again: float | None = None
    ) -> asyncio.Task[Outcome[str]]:
        starts = [partial(self._run, number) for number in range(len(self.results))]
        running = race(starts, delay, self.discarded.append, self._pause, abreast=abreast, again=again)
        return asyncio.ensure_future(running)

    async def _run(self, number: int) -> str:
        self.log.append(f"start {number}")
        try:
            return await self.results[number]
        except asyncio.CancelledError:
            self.log.append(f"stop {number}")
            raise

    async def _pause(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.delays.append(asyncio.get_running_loop().create_future())
        await self.delays[-1]

    def pass_delay(self) -> None:
        self.delays[-1].set_result(None)

    def fail(self, number: int, text: str = "broke") -> None:
        """This attempt fails; one that is made again waits anew."""
        failed = self.results[number]
        self.results[number] = asyncio.get_running_loop().create_future()
        failed.set_exception(CarrierError(CloseReason.TIMED_OUT, f"{number} {text}"))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def texts(errors: tuple[PeerError | None, ...]) -> list[str | None]:
    return [None if error is None else str(error) for error in errors]


async def test_the_first_one_wins_and_no_other_starts() -> None:
    track = Track(3)
    running = track.start()
    await settle()
    track.results[0].set_result("a")
    assert await running == (0, "a", (None, None, None))
    assert track.log == ["start 0"]
    assert track.asked == [0.5]


async def test_the_next_one_starts_after_the_delay_and_may_win() -> None:
    track = Track(3)
    running = track.start()
    await settle()
    assert track.log == ["start 0"]
    track.pass_delay()
    await settle()
    assert track.log == ["start 0", "start 1"]
    track.results[1].set_result("b")
    assert await running == (1, "b", (None, None, None))
    assert track.log == ["start 0", "start 1", "stop 0"]


async def test_some_start_at_once_and_the_others_after_them() -> None:
    track = Track(3)
    running = track.start(abreast=2)
    await settle()
    assert track.log == ["start 0", "start 1"]
    track.pass_delay()
    await settle()
    assert track.log[2:] == ["start 2"]
    track.results[1].set_result("b")
    assert (await running).value == "b"
    few = Track(1)
    running = few.start(abreast=2)
    await settle()
    few.results[0].set_result("a")
    assert (await running).value == "a"


async def test_a_late_first_one_still_wins() -> None:
    track = Track(2)
    running = track.start()
    await settle()
    track.pass_delay()
    await settle()
    track.results[0].set_result("a")
    assert (await running).value == "a"
    assert track.log[-1] == "stop 1"


async def test_a_failure_starts_the_next_one_at_once() -> None:
    track = Track(3)
    running = track.start()
    await settle()
    track.fail(0)
    await settle()
    assert track.log == ["start 0", "start 1"]
    track.fail(1)
    await settle()
    track.results[2].set_result("c")
    outcome = await running
    assert (outcome.winner, outcome.value) == (2, "c")
    assert texts(outcome.errors) == ["0 broke", "1 broke", None]


async def test_all_fail() -> None:
    track = Track(2)
    running = track.start()
    for number in range(2):
        await settle()
        track.fail(number)
    with pytest.raises(AllFailed) as caught:
        await running
    assert texts(caught.value.errors) == ["0 broke", "1 broke"]


async def test_one_that_failed_is_made_again_while_another_one_has_not() -> None:
    """The second one hears nothing; the first one is refused twice, and then there."""
    track = Track(2)
    running = track.start(abreast=2, again=1.0)
    for _ in range(2):
        await settle()
        track.fail(0)
        await settle()
        track.pass_delay()
    await settle()
    assert track.asked == [1.0, 1.0]
    assert track.log == ["start 0", "start 1", "start 0", "start 0"]
    track.results[0].set_result("a")
    assert await running == (0, "a", (None, None))
    assert track.log[4:] == ["stop 1"]


@pytest.mark.parametrize("under_way", [True, False])
async def test_when_the_last_one_has_failed_none_is_made_again(under_way: bool) -> None:
    track = Track(2)
    running = track.start(abreast=2, again=1.0)
    await settle()
    track.fail(0)
    await settle()
    if under_way:
        track.pass_delay()
        await settle()
        track.fail(0, "broke again")
        await settle()
        track.pass_delay()
        await settle()
    track.fail(1)
    with pytest.raises(AllFailed) as caught:
        await running
    assert texts(caught.value.errors) == ["0 broke again" if under_way else "0 broke", "1 broke"]
    assert track.log[2:] == (["start 0", "start 0", "stop 0"] if under_way else [])


async def test_one_that_failed_waits_and_the_next_one_does_not() -> None:
    track = Track(2)
    running = track.start(again=1.0)
    await settle()
    track.fail(0)
    await settle()
    assert track.log == ["start 0", "start 1"]
    track.results[1].set_result("b")
    outcome = await running
    assert (outcome.value, texts(outcome.errors)) == ("b", ["0 broke", None])
    assert track.log == ["start 0", "start 1"]


async def test_of_two_at_once_the_better_one_wins_and_the_other_is_given_back() -> None:
    track = Track(2)
    running = track.start()
    await settle()
    track.pass_delay()
    await settle()
    track.results[1].set_result("b")
    track.results[0].set_result("a")
    assert (await running).value == "a"
    assert track.discarded == ["b"]


async def test_cancelled() -> None:
    track = Track(2)
    running = track.start()
    await settle()
    track.pass_delay()
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert track.log[2:] == ["stop 0", "stop 1"]


async def test_a_setting_that_does_not_work_ends_the_race() -> None:
    track = Track(2)
    running = track.start()
    await settle()
    track.pass_delay()
    await settle()
    track.results[1].set_exception(ConfigError("no such certificate"))
    with pytest.raises(ConfigError):
        await running
    assert track.log[-1] == "stop 0"


@pytest.mark.parametrize("fault", [LocalError("a bug"), ZeroDivisionError()], ids=["of ours", "of Python"])
async def test_a_fault_of_this_program_ends_one_attempt_only(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    track = Track(2)
    running = track.start()
    await settle()
    track.results[0].set_exception(fault)
    await settle()
    track.results[1].set_result("second")
    outcome = await running
    assert outcome.value == "second" and isinstance(outcome.errors[0], CarrierFault)
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None and record.exc_info[1] is fault
