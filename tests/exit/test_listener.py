"""Strangers at the exit: each bound is reached, and what fails learns nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cryprq_proxy.carriers.admission import frame_flight, meet_exit, read_flight
from cryprq_proxy.crypto.handshake import FIRST_SIZE, LENGTH, SECOND_SIZE
from cryprq_proxy.errors import CarrierError, HandshakeError
from cryprq_proxy.exit import listener as listener_module
from cryprq_proxy.exit.listener import SIGNATURES_WAITING, HandshakeThread
from tests.support.raw_client import RawClient
from tests.support.settle import settle, until
from tests.support.visits import ALICE, Visit, inline, open_exit, tcp_pair


async def test_no_more_handshakes_at_once_than_configured() -> None:
    async with open_exit(bounds={"handshakes_in_flight": 2}) as exit:
        (address,) = await exit.start()
        silent = [RawClient(address) for _ in range(2)]
        await until(lambda: exit.listener.in_flight == 2)
        third = RawClient(address)
        assert await third.read(1) == b""
        assert exit.listener.failed == {"too_many": 1}
        silent[0].sock.close()
        await until(lambda: exit.listener.in_flight == 1)
        fourth = RawClient(address)
        await until(lambda: exit.listener.in_flight == 2)
        for client in (silent[1], third, fourth):
            client.sock.close()


@pytest.mark.parametrize(
    ("one_customer", "another"),
    [
        (["192.0.2.1"] * 3, "192.0.2.2"),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"], "2001:db8:0:1::1"),
    ],
)
async def test_no_more_handshakes_a_minute_from_one_prefix_than_configured(
    one_customer: list[str], another: str
) -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2}) as exit:
        ours = []
        for host in [*one_customer, another]:
            left, right = tcp_pair()
            ours.append(left)
            exit.listener.accepted(None, right, host)
        assert exit.listener.in_flight == 3
        assert exit.listener.failed == {"too_many": 1}
        assert await asyncio.get_running_loop().sock_recv(ours[2], 1) == b"", "the third of the first prefix"
        for sock in ours:
            sock.close()
        await until(lambda: exit.listener.in_flight == 0)


@pytest.mark.parametrize("flights", [0, 1])
async def test_a_slow_handshake_is_ended(flights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HANDSHAKE_TIMEOUT", 0.2)
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        if flights:
            await meet_exit(visit.pipe, visit.handshake, inline)
        assert await visit.is_closed()
        assert exit.listener.failed == {"too_slow": 1}
        visit.cut()


@pytest.mark.parametrize("size", [0, FIRST_SIZE.start - 1, FIRST_SIZE.stop, 0xFFFF])
async def test_a_flight_of_impossible_length_is_not_read(size: int) -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await visit.pipe.write(LENGTH.pack(size))
        assert await visit.is_closed()
        assert exit.listener.failed == {"no_handshake": 1}
        visit.cut()


async def test_a_stranger_learns_nothing() -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await visit.pipe.write(frame_flight(bytes(FIRST_SIZE.start)))
        assert await visit.is_closed()
        visit.cut()


async def test_a_replayed_first_flight_is_not_answered() -> None:
    async with open_exit() as exit:
        first = Visit(exit, ALICE)
        flight = frame_flight(first.handshake.write_first())
        await first.pipe.write(flight)
        await read_flight(first.pipe, SECOND_SIZE)
        second = Visit(exit, ALICE)
        await second.pipe.write(flight)
        assert await second.is_closed()
        assert exit.listener.failed == {"no_handshake": 1}
        first.cut()
        second.cut()


async def test_the_slow_steps_have_a_bounded_queue() -> None:
    thread, go = HandshakeThread(), threading.Event()
    waiting = [asyncio.ensure_future(thread.run(go.wait)) for _ in range(SIGNATURES_WAITING)]
    await settle()
    try:
        with pytest.raises(HandshakeError, match="too many handshakes at once"):
            async with asyncio.timeout(5):
                await thread.run(go.wait)
    finally:
        go.set()
    assert await asyncio.gather(*waiting) == [True] * SIGNATURES_WAITING
    assert await thread.run(go.wait), "there is room again"
    thread.close()


async def test_handshakes_end_with_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HANDSHAKE_TIMEOUT", 1e6)
    async with open_exit() as exit:
        (address,) = await exit.start()
        client = RawClient(address)
        await until(lambda: exit.listener.in_flight == 1)
        exit.listener.stop_accepting()
        await settle()
        assert exit.listener.in_flight == 0
        assert await client.read(1) == b""
        client.sock.close()
        with pytest.raises(ConnectionRefusedError):
            RawClient(address)


async def test_a_connection_that_ends_early_is_counted() -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        visit.cut()
        await visit.work
        assert exit.listener.failed == {"no_handshake": 1}


async def test_a_client_with_a_wrong_signature_gets_no_verdict() -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await meet_exit(visit.pipe, visit.handshake, inline)
        third = bytearray(visit.handshake.write_third())
        third[-1] ^= 1
        await visit.pipe.write(frame_flight(bytes(third)))
        with pytest.raises(CarrierError):
            await visit.pipe.read_exactly(1)
        assert exit.listener.failed == {"no_handshake": 1}
        visit.cut()
