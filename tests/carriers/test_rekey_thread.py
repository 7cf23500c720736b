"""A rotation's computation on another thread that goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cryprq_proxy.carriers.rekey_thread import executor_offload
from cryprq_proxy.crypto.primitives import Provider
from cryprq_proxy.errors import CarrierError, CloseReason, HandshakeError, PeerError


async def outcome(job: Callable[[], Any]) -> PeerError:
    """What the session's owner is told of a job that fails."""
    failed: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()
    with ThreadPoolExecutor(1) as executor:
        provider = cast(Provider, SimpleNamespace(fast=False))
        executor_offload(provider, executor, failed.set_result)(job, lambda result: result())
        return await failed


async def test_a_wrong_answer_of_the_peer_is_told() -> None:
    def job() -> None:
        raise HandshakeError("wrong")

    assert str(await outcome(job)) == "wrong"


async def test_a_fault_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    """It would wait for its keys on one path after another."""

    def job() -> None:
        raise ZeroDivisionError

    error = await outcome(job)
    assert error.reason is CloseReason.REKEY and not isinstance(error, CarrierError)
    [record] = caplog.records
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
