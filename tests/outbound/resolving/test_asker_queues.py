"""Queues of calls, one for each asker, and the turns of these."""

from __future__ import annotations

import asyncio

from cryprq_proxy.outbound.resolving.asker_queues import AskerQueues


def calls(number: int) -> list[asyncio.Future[None]]:
    return [asyncio.get_running_loop().create_future() for _ in range(number)]


async def test_askers_have_turns_and_calls_of_one_go_in_their_order() -> None:
    queues: AskerQueues[None] = AskerQueues()
    first, second, third, other = calls(4)
    for asker, call in (("a", first), ("a", second), ("a", third), ("b", other)):
        queues.add(asker, call)
    taken = []
    while queues:
        asker = next(iter(queues))
        taken.append(queues.pop(asker))
        queues.pass_turn(asker)
    assert taken == [first, other, second, third]


async def test_what_is_discarded_is_counted_once() -> None:
    queues: AskerQueues[None] = AskerQueues()
    one, two = calls(2)
    queues.add("a", one)
    queues.add("a", two)
    for _ in range(2):
        queues.discard("a", one)
        queues.discard("b", two)
    assert (len(queues), queues.calls_of("a"), queues.calls_of("b")) == (1, 1, 0)
    assert queues.pop("a") is two
    assert not queues and list(queues) == []
