"""Answers of the kernel that do not come."""

from __future__ import annotations

import asyncio
from typing import Self

import pytest

from cryprq_proxy.base import rtnetlink as module
from cryprq_proxy.base.rtnetlink import rtnetlink


class Silent:
    """An AsyncIPRoute whose questions are never answered."""

    closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        Silent.closed = True

    async def get_links(self) -> None:
        await asyncio.Event().wait()


async def test_a_lost_answer_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AsyncIPRoute", Silent)
    Silent.closed = False
    with pytest.raises(TimeoutError, match=r"^the kernel did not answer within 0.01 s$"):
        async with rtnetlink(0.01) as kernel:
            await kernel.get_links()
    assert Silent.closed


async def test_a_time_limit_of_the_caller_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AsyncIPRoute", Silent)
    with pytest.raises(TimeoutError, match=r"^nft took too long$"):
        async with rtnetlink(60.0):
            raise TimeoutError("nft took too long")
