"""What becomes of a target that is tried."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cryprq_proxy.address import AddressError, Destination
from cryprq_proxy.client import try_target as module
from cryprq_proxy.client.try_target import try_by_rules, try_target
from cryprq_proxy.errors import StreamBlocked, StreamReason, StreamRefused

TARGET = Destination("www.example", 443)


class Opening:
    """Stands for what opens streams. `answer` is raised, or a stream is given."""

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer = answer
        self.asked: list[Destination] = []
        self.aborted = 0

    async def open(self, destination: Destination) -> Any:
        self.asked.append(destination)
        if self.answer is not None:
            raise self.answer
        return self

    def abort(self) -> None:
        self.aborted += 1


async def test_a_target_that_is_reached_is_left_at_once() -> None:
    opening = Opening()
    tried = await try_target(opening.open, TARGET)
    assert (tried.problem, tried.rule, opening.asked, opening.aborted) == ("", "", [TARGET], 1)


@pytest.mark.parametrize(
    ("answer", "problem", "rule"),
    [
        (StreamRefused(StreamReason.NAME_TIMED_OUT), "name timed out", ""),
        (StreamRefused(StreamReason.CONNECTION_REFUSED), "connection refused", ""),
        (StreamBlocked("rule 2"), "not allowed", "rule 2"),
    ],
)
async def test_a_target_that_is_not_reached(answer: Exception, problem: str, rule: str) -> None:
    tried = await try_target(Opening(answer).open, TARGET)
    assert (tried.problem, tried.rule) == (problem, rule)


async def test_a_target_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Destination) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "TRY_SECONDS", 0.01)
    assert (await try_target(never, TARGET)).problem == "timed out"


async def test_the_rules_of_the_client_count() -> None:
    opening = Opening()
    decision = SimpleNamespace(action="exit:office")
    dispatcher = cast(Any, SimpleNamespace(open=opening.open, decide=lambda _: decision))
    assert (await try_by_rules(dispatcher, "www.example:443")).by == "exit:office"
    for wrong in ("", "www.example", "a b:443", ":443", "x" * 2000):
        with pytest.raises(AddressError):
            await try_by_rules(dispatcher, wrong)
    assert opening.asked == [TARGET]
