"""Slots that askers share: who gets one at once, whose turn is next, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.outbound.resolving.fair_slots import FairSlots
from tests.support.settle import settle


def slots_of(number: int, *, waiting_each: int = 1000, waiting: int = 10_000) -> FairSlots:
    return FairSlots(number, waiting_each=waiting_each, waiting=waiting)


class Crowd:
    """Askers that take slots and keep them. `got` has the askers in the order in which they got a slot."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.got: list[str] = []

    async def _take(self, asker: str) -> None:
        await self.slots.take(asker)
        self.got.append(asker)

    async def ask(self, asker: str, times: int = 1) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self._take(asker)) for _ in range(times)]
        await settle()
        return tasks

    async def give_back(self, asker: str) -> None:
        self.slots.give_back(asker)
        await settle()


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(slots_of(64))


async def test_one_asker_does_not_get_all(crowd: Crowd) -> None:
    await crowd.ask("greedy", 400)
    assert crowd.got == ["greedy"] * 32
    assert crowd.slots.waiting == 368


async def test_others_get_a_slot_at_once_however_many_one_asks_for(crowd: Crowd) -> None:
    await crowd.ask("greedy", 400)
    for number in range(16):
        await crowd.ask(f"honest {number}")
    assert crowd.got[32:] == [f"honest {number}" for number in range(16)]


async def test_many_greedy_askers_leave_one_for_a_newcomer(crowd: Crowd) -> None:
    for number in range(6):
        await crowd.ask(f"greedy {number}", 400)
    assert crowd.slots.in_use == 63
    await crowd.ask("newcomer")
    assert crowd.got[-1] == "newcomer"


async def test_askers_take_turns() -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("first")
    await crowd.ask("greedy", 3)
    await crowd.ask("b", 2)
    await crowd.ask("c")
    for _ in range(6):
        await crowd.give_back(crowd.got[-1])
    assert crowd.got == ["first", "greedy", "b", "c", "greedy", "b", "greedy"]
    await crowd.give_back("greedy")
    assert (crowd.slots.in_use, crowd.slots.waiting) == (0, 0)


async def test_those_that_hold_much_wait_until_they_hold_less_than_is_free(crowd: Crowd) -> None:
    await crowd.ask("greedy", 33)
    await crowd.ask("honest", 4)
    await crowd.give_back("honest")
    assert crowd.slots.waiting == 1, "32 are in its hands and 29 are free"
    for _ in range(3):
        await crowd.give_back("greedy")
    assert crowd.slots.waiting == 0


async def test_waiting_is_bounded_for_each_and_for_all() -> None:
    slots = slots_of(1, waiting_each=2, waiting=3)
    crowd = Crowd(slots)
    await crowd.ask("a", 3)
    with pytest.raises(StreamRefused) as caught:
        await slots.take("a")
    assert caught.value.reason is StreamReason.LIMIT
    await crowd.ask("b")
    with pytest.raises(StreamRefused):
        await slots.take("c")
    slots.close()


async def test_who_gives_up_while_it_waits_leaves_the_queue() -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    [leaving] = await crowd.ask("b")
    await crowd.ask("c")
    leaving.cancel()
    await settle()
    assert crowd.slots.waiting == 1
    await crowd.give_back("a")
    assert crowd.got == ["a", "c"]


async def test_a_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    [leaving] = await crowd.ask("b")
    await crowd.ask("c")
    crowd.slots.give_back("a")
    leaving.cancel()
    await settle()
    assert crowd.got == ["a", "c"]
    assert crowd.slots.in_use == 1


@pytest.mark.parametrize("late", [False, True])
async def test_the_end_refuses_all(late: bool) -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    waiting = [] if late else await crowd.ask("b")
    crowd.slots.close()
    if late:
        waiting = await crowd.ask("b")
    with pytest.raises(StreamRefused) as caught:
        await waiting[0]
    assert caught.value.reason is StreamReason.SHUTTING_DOWN
    crowd.slots.give_back("a")
    assert (crowd.slots.in_use, crowd.slots.waiting) == (0, 0)


@pytest.mark.parametrize("end", [asyncio.Task.cancel, lambda _: None])
async def test_the_end_and_a_cancellation_in_one_moment(end: Callable[[asyncio.Task[None]], object]) -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    [waiting] = await crowd.ask("b")
    crowd.slots.close()
    end(waiting)
    with pytest.raises((StreamRefused, asyncio.CancelledError)):
        await waiting
    assert crowd.slots.in_use == 1


async def test_a_turn_is_not_given_to_one_that_is_being_cancelled() -> None:
    """Its task has not run since, so it still stands in the queue."""
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    leaving = [*await crowd.ask("b"), *await crowd.ask("c", 2)]
    await crowd.ask("d")
    for task in leaving:
        task.cancel()
    crowd.slots.give_back("a")
    await settle()
    assert crowd.got == ["a", "d"]
    assert (crowd.slots.in_use, crowd.slots.waiting) == (1, 0)


async def test_the_end_while_one_is_being_cancelled() -> None:
    crowd = Crowd(slots_of(1))
    await crowd.ask("a")
    [leaving] = await crowd.ask("b")
    leaving.cancel()
    crowd.slots.close()
    await settle()
    assert leaving.cancelled()
