"""Answers to many at once: each has its turn, and those who ask together share one."""

from __future__ import annotations

import asyncio
import json

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.base.text import to_json
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process import answers
from cryprq_proxy.process.answers import OneATurn, SharedAnswer, json_by_turns
from cryprq_proxy.status import ExitStatus, PeerSessionStatus, PeerStatus
from tests.support.settle import settle
from tests.support.turn_count import counted_turns


async def test_one_goes_on_in_each_turn_and_in_order() -> None:
    queue, went = OneATurn(), list[tuple[int, int]]()
    with counted_turns() as turns:

        async def wait(number: int) -> None:
            await queue.turn()
            went.append((turns.now, number))

        first = [spawn(wait(number), "waits") for number in range(5)]
        await asyncio.sleep(0)
        await asyncio.gather(*first, *(spawn(wait(number), "waits") for number in range(5, 10)))
    assert [number for _, number in went] == list(range(10))
    assert len({turn for turn, _ in went}) == 10
    assert went[-1][0] - went[0][0] == 9, "a turn passed without anybody"


async def test_who_has_gone_takes_no_turn() -> None:
    queue = OneATurn()
    gone, waiting = spawn(queue.turn(), "gone"), spawn(queue.turn(), "waits")
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(10):
        await waiting
        await queue.turn()


async def test_who_asks_before_it_is_made_gets_the_same() -> None:
    made, go = list[int](), asyncio.Event()

    async def make() -> int:
        made.append(len(made))
        number = made[-1]
        await go.wait()
        return number

    shared = SharedAnswer(make)
    early = [spawn(shared.get(), "asks") for _ in range(3)]
    await settle()
    late = [spawn(shared.get(), "asks") for _ in range(3)]
    await settle()
    assert made == [0], "two are made at once"
    go.set()
    assert await asyncio.gather(*early, *late) == [0, 0, 0, 1, 1, 1]


async def test_a_failure_is_for_those_who_asked() -> None:
    failures = [CryprqError("not now")]

    async def make() -> str:
        if failures:
            raise failures.pop()
        return "well"

    shared = SharedAnswer(make)
    with pytest.raises(CryprqError, match="not now"):
        await shared.get()
    assert await shared.get() == "well"


async def test_a_long_list_is_encoded_a_turn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ExitStatus(
        version="\udcff",
        sessions=tuple(PeerSessionStatus(peer_id=str(number), retained=number) for number in range(1_001)),
        peers=(PeerStatus(peer_id="a", name="b", sessions=2),),
    )
    encoded: list[tuple[int, int]] = []
    with counted_turns() as turns:

        def encode(value: object) -> bytes:
            encoded.append((turns.now, len(value) if isinstance(value, tuple) else 0))
            return to_json(value)

        monkeypatch.setattr(answers, "to_json", encode)
        assert json.loads(await json_by_turns(status)) == json.loads(to_json(status))
    assert max(size for _, size in encoded) == answers.ENCODED_AT_ONCE
    at = [turn for turn, size in encoded if size]
    assert len(set(at)) == len(at) >= 4
