from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from cryprq_proxy.base import tasks
from cryprq_proxy.errors import LocalError


async def test_a_task_lives_though_nobody_holds_it() -> None:
    gate = asyncio.Event()
    done = asyncio.Event()

    async def wait() -> None:
        await gate.wait()
        done.set()

    tasks.spawn(wait(), "waiter")
    await asyncio.sleep(0)
    gc.collect()
    gate.set()
    await done.wait()


async def test_a_failure_is_logged_under_the_name_and_still_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LocalError("no such thing")

    task = tasks.spawn(fail(), "the failing one")
    with pytest.raises(LocalError):
        await task
    [record] = caplog.records
    assert "the failing one" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LocalError)


async def test_results_and_cancellation_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> int:
        return 42

    caplog.set_level(logging.DEBUG, "cryprq_proxy")
    assert await tasks.spawn(answer(), "answer") == 42
    task = tasks.spawn(asyncio.Event().wait(), "for ever")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [record for record in caplog.records if record.name.startswith("cryprq_proxy")]
