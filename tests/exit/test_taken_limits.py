"""Limits that an exit takes over while it runs: what comes obeys them, and what is there stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.session import wire
from tests.support.settings import exit_settings
from tests.support.settle import settle, until
from tests.support.visits import (
    ALICE,
    BOB,
    Visit,
    arrive,
    cut,
    first_flight,
    hears_nothing,
    held,
    open_exit,
    open_frame,
)


def take(exit: Exit, *, streams: int = 16_384, **bounds: Any) -> None:
    settings = exit_settings()
    exit.take_limits(
        replace(settings.limits, streams=streams, retained=1 << 20),
        msgspec.structs.replace(settings.bounds, **{"handshakes_per_minute": 1_000_000, **bounds}),
    )


async def test_fewer_sessions_of_a_peer_end_none() -> None:
    async with open_exit() as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(3)]
        take(exit, sessions_per_peer=2)
        with pytest.raises(PeerError) as caught:
            await Visit(exit, ALICE).admit()
        assert caught.value.reason is CloseReason.LIMIT
        assert held(exit) == (3, 0)
        await cut(exit, *visits[:2])
        visits.append(await Visit(exit, ALICE).admit())
        retained = [entry.session.limits.retained for entry in exit.sessions]
        assert retained[-1] == 1 << 20, "a new session has the new limits"
        assert set(retained[:-1]) == {exit_settings().limits.retained}
        for visit in visits[2:]:
            visit.cut()


async def test_sessions_that_wait_are_bounded_anew_with_the_next_one() -> None:
    async with open_exit(bounds={"detached_sessions_per_peer": 3}) as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(4)]
        await cut(exit, *visits[:3])
        take(exit, detached_sessions_per_peer=1, resume_seconds=0.05)
        await settle()
        assert held(exit) == (1, 3)
        visits[3].cut()
        await until(lambda: held(exit) == (0, 1))
        await until(lambda: held(exit) == (0, 0))


async def test_another_number_of_opens_holds_for_peers_that_are_there() -> None:
    async with open_exit() as exit:
        alice = await Visit(exit, ALICE).admit()
        take(exit, opens_per_second=1)
        bob = await Visit(exit, BOB).admit()
        for visit in (alice, bob):
            await visit.send(open_frame(1))
            assert (await visit.read(wire.REFUSED))[2] is not StreamReason.LIMIT
            await visit.send(open_frame(2))
            assert (await visit.read(wire.REFUSED))[2] is StreamReason.LIMIT
            visit.cut()


async def test_fewer_streams_at_once_are_for_sessions_that_are_there() -> None:
    async with open_exit() as exit:
        visit = await Visit(exit, ALICE).admit()
        (entry,) = exit.sessions
        take(exit, streams=1)
        assert not entry.session.table.numbers.too_many(1)
        assert entry.session.table.numbers.too_many(2)
        visit.cut()


async def test_what_all_sessions_may_have_together_is_other_bytes() -> None:
    async with open_exit() as exit:
        visit = await Visit(exit, ALICE).admit()
        (entry,) = exit.sessions
        kept, windows = exit.sessions._budget, exit.sessions._window_budget
        take(exit, retained_total=1 << 21, window_total=1 << 22)
        assert entry.session.windows._budget is windows
        assert (kept.total, windows.total) == (1 << 21, 1 << 22)
        visit.cut()


async def test_handshakes_are_counted_by_the_new_limits() -> None:
    async with open_exit() as exit:
        early = arrive(exit, "192.0.2.1", first_flight())
        assert await asyncio.get_running_loop().sock_recv(early, 1)
        take(exit, handshakes_in_flight=1, handshakes_per_minute=2)
        reception = exit.listener.reception
        for number in range(5):
            arrive(exit, f"198.51.{number}.1", first_flight())
        await until(lambda: not exit.listener.strangers and not reception.waiting)
        assert len(reception.answered) == 1
        assert exit.listener.failed == {"too_many": 5}
        for _ in range(3):
            assert await hears_nothing(arrive(exit, "203.0.113.1", bytes(100)))
        assert exit.listener.failed == {"no_handshake": 2, "too_many": 6}, "the third has no token"


async def test_times_of_targets_are_the_new_ones() -> None:
    async with open_exit() as exit:
        take(exit, connect_timeout=0.5, idle_timeout=7.0)
        assert (exit._targets.timeout, exit._targets.relays._idle) == (0.5, 7.0)
