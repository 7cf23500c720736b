"""Strangers at the exit: each bound is reached, and what fails learns nothing."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cryprq_proxy.base.accept_loop import ACCEPTS
from cryprq_proxy.carriers.admission import frame_flight, introduce, meet_exit, read_flight, read_verdict
from cryprq_proxy.carriers.pipe import TcpPipe
from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.handshake import FIRST_SIZE, LENGTH, SECOND_SIZE
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.errors import CarrierError, PeerError
from cryprq_proxy.exit import fair_queue as queue_module
from cryprq_proxy.exit import listener as listener_module
from cryprq_proxy.exit import lobby as lobby_module
from cryprq_proxy.exit import reception as reception_module
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.handshake_thread import SIGNATURES_WAITING
from cryprq_proxy.exit.limits import TokenBuckets
from cryprq_proxy.exit.prefixes import prefixes_of
from cryprq_proxy.exit.reception import MAX_STRANGERS, RoomSizes, Visitor
from cryprq_proxy.session import wire
from tests.support.raw_client import RawClient
from tests.support.settle import settle, until
from tests.support.visits import (
    ALICE,
    EXIT,
    FAST,
    Visit,
    arrive,
    first_flight,
    hears_nothing,
    inline,
    open_exit,
    tcp_pair,
)


def patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(lobby_module, "PATIENCE", seconds)
    monkeypatch.setattr(lobby_module, "SHORT_PATIENCE", seconds)
    monkeypatch.setattr(queue_module, "PATIENCE", seconds)


@asynccontextmanager
async def held_thread(exit: Exit) -> AsyncIterator[Callable[[], None]]:
    """Occupies the exit's thread for slow steps until the end, or until the result is called."""
    event = threading.Event()
    for _ in range(SIGNATURES_WAITING):
        exit._thread.submit(event.wait)
    try:
        yield event.set
    finally:
        event.set()


# --- strangers ---


async def test_silent_connections_are_held_and_take_nothing_from_others() -> None:
    """The case that was: 64 silent ones, each with a slot of 10 s, and everybody else was closed."""
    async with open_exit(bounds={"handshakes_in_flight": 2}) as exit:
        silent = [arrive(exit, f"198.51.100.{number}") for number in range(200)]
        assert exit.listener.strangers == 200
        alice = await Visit(exit, ALICE).admit()
        assert not exit.listener.failed
        alice.cut()
        for sock in silent:
            sock.close()
        await until(lambda: not exit.listener.strangers)
        assert exit.listener.failed == {"no_handshake": 200}


async def test_no_more_strangers_than_the_room_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception_module, "MAX_STRANGERS", 10)
    async with open_exit() as exit:
        for number in range(50):
            arrive(exit, f"198.51.{number}.1")
            assert exit.listener.strangers <= 10
        assert exit.listener.failed == {"too_many": 40}


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
    """One waits unopened for a token that an earlier one may give back; when none can come back any more, a newcomer is
    closed."""
    async with open_exit(bounds={"handshakes_per_minute": 2}) as exit:
        waiting = [arrive(exit, host, first_flight()) for host in one_customer]
        other = arrive(exit, another, first_flight())
        for sock in (*waiting[:2], other):
            assert await asyncio.get_running_loop().sock_recv(sock, 1)
        await settle()
        assert (exit.listener.handshakes, exit.listener.strangers) == (3, 1)
        for sock in waiting[:2]:
            sock.close()
        await until(lambda: len(exit.listener.reception.answered) == 1)
        assert await hears_nothing(arrive(exit, one_customer[0], first_flight()))
        assert exit.listener.failed == {"no_handshake": 2, "too_many": 1}


async def test_garbage_costs_its_prefix_tokens() -> None:
    async with open_exit(bounds={"handshakes_per_minute": 3}) as exit:
        for _ in range(3):
            assert await hears_nothing(arrive(exit, "192.0.2.1", bytes(100)))
        assert await hears_nothing(arrive(exit, "192.0.2.1"))
        assert exit.listener.failed == {"no_handshake": 3, "too_many": 1}
        arrive(exit, "192.0.2.2")
        assert exit.listener.strangers == 1


async def test_a_stranger_that_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, 0.01)
    async with open_exit() as exit:
        for data in (b"", first_flight()[:1], first_flight()[:-1]):
            assert await hears_nothing(arrive(exit, "192.0.2.1", data))
        assert exit.listener.failed == {"too_slow": 3}
        assert exit.listener.strangers == 0


async def test_a_visitor_that_lost_its_place_during_its_upgrade_gets_no_handshake() -> None:
    """Behind a reverse proxy its address is not known until then."""
    async with open_exit() as exit:
        ours, theirs = tcp_pair()
        pipe = TcpPipe(theirs)
        ours.sendall(first_flight())
        await exit.listener.welcome(Visitor("127.0.0.1", (), pipe.close), pipe, "192.0.2.1")
        assert exit.listener.handshakes == 0
        assert await hears_nothing(ours)
        ours.close()


async def test_a_bounded_number_is_dismissed_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception_module, "SWEPT", 10)
    monkeypatch.setattr(reception_module, "SWEEP_SECONDS", 1e6)
    async with open_exit() as exit:
        for _ in range(35):
            arrive(exit, "192.0.2.1")
        patience(monkeypatch, 0.0)
        exit.listener.reception._sweep()
        seen = [exit.listener.strangers]
        while exit.listener.strangers:
            await asyncio.sleep(0)
            if exit.listener.strangers != seen[-1]:
                seen.append(exit.listener.strangers)
        assert seen == [25, 15, 5, 0]


async def test_what_is_accepted_in_one_turn_is_read_in_the_next() -> None:
    """The case that was: 64 were accepted and 32 read, so that flights which nobody had read filled the lobby."""
    async with open_exit() as exit:
        (address,) = await exit.start()
        crowd = [RawClient(address) for _ in range(4 * ACCEPTS)]
        for client in crowd:
            client.send(b"\xff\xff")
        most = 0
        while exit.listener.failed["no_handshake"] < len(crowd):
            await asyncio.sleep(0)
            most = max(most, exit.listener.strangers)
        assert most <= ACCEPTS
        for client in crowd:
            client.sock.close()


async def test_a_first_flight_may_come_in_pieces() -> None:
    async with open_exit() as exit:
        flight = first_flight()
        sock = arrive(exit, "192.0.2.1")
        for start in range(0, len(flight), 300):
            sock.send(flight[start : start + 300])
            await settle()
        assert await asyncio.get_running_loop().sock_recv(sock, 1)


@pytest.mark.parametrize("size", [0, FIRST_SIZE.start - 1, FIRST_SIZE.stop, 0xFFFF])
async def test_a_flight_of_impossible_length_is_not_read(size: int) -> None:
    async with open_exit() as exit:
        assert await hears_nothing(arrive(exit, "192.0.2.1", LENGTH.pack(size)))
        visit = Visit(exit, ALICE)
        await visit.pipe.write(LENGTH.pack(size))
        assert await visit.is_closed()
        assert exit.listener.failed == {"no_handshake": 2}
        visit.cut()


async def test_a_stranger_learns_nothing() -> None:
    async with open_exit() as exit:
        assert await hears_nothing(arrive(exit, "192.0.2.1", frame_flight(bytes(FIRST_SIZE.start))))
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


async def test_a_connection_that_ends_early_is_counted() -> None:
    async with open_exit() as exit:
        arrive(exit, "192.0.2.1").close()
        await until(lambda: not exit.listener.strangers)
        visit = Visit(exit, ALICE)
        visit.cut()
        await visit.work
        assert exit.listener.failed == {"no_handshake": 2}


async def test_a_connection_that_cannot_be_watched_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor for the selector, or without memory in the kernel: which is counted and logged."""

    def watch(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    async with open_exit() as exit:
        monkeypatch.setattr(exit.listener._silent, "watch", watch)
        assert await hears_nothing(arrive(exit, "192.0.2.1"))
        assert exit.listener.strangers == 0
        assert exit.listener.failed == {"no_room": 1}


@pytest.mark.parametrize("name", ["_open", "prepare"])
async def test_a_fault_of_ours_ends_one_connection_only(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was called again in each turn of the loop, with a traceback in the log each time."""

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    async with open_exit() as exit:
        with monkeypatch.context() as patch:
            patch.setattr(exit.listener if name == "_open" else listener_module, name, fault)
            assert await hears_nothing(arrive(exit, "192.0.2.1", first_flight()))
            await settle()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert exit.listener.strangers == 0
        assert await asyncio.get_running_loop().sock_recv(arrive(exit, "192.0.2.1", first_flight()), 1)


async def test_an_upgrade_that_is_cancelled_closes_its_connection() -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await settle()
        visit.work.cancel()
        assert await visit.is_closed()


# --- handshakes ---


async def test_no_more_handshakes_at_once_than_configured() -> None:
    async with open_exit(bounds={"handshakes_in_flight": 2}) as exit:
        for number in range(20):
            arrive(exit, f"198.51.{number}.1", first_flight())
        await until(lambda: not exit.listener.strangers and not exit.listener.reception.waiting)
        assert len(exit.listener.reception.answered) == 2
        assert exit.listener.failed == {"too_many": 18}


async def test_the_slow_steps_have_a_bounded_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread has enough to do, handshakes wait for their turn; beyond the bound the newest are closed."""
    monkeypatch.setattr(reception_module, "MAX_WAITING", 5)
    async with open_exit() as exit, held_thread(exit) as go:
        reception = exit.listener.reception
        socks = [arrive(exit, "192.0.2.1", first_flight()) for _ in range(8)]
        await until(lambda: not exit.listener.strangers)
        assert (len(reception.waiting), len(reception.answered)) == (5, 0)
        assert exit.listener.failed == {"too_many": 3}
        go()
        answers = await asyncio.gather(*(asyncio.get_running_loop().sock_recv(sock, 1) for sock in socks))
        assert sum(answer != b"" for answer in answers) == 5


async def test_who_waits_for_the_thread_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, 0.01)
    async with open_exit() as exit, held_thread(exit) as go:
        assert await hears_nothing(arrive(exit, "192.0.2.1", first_flight()))
        assert exit.listener.failed == {"too_slow": 1}
        visit = Visit(exit, ALICE)
        await visit.pipe.write(first_flight())
        assert await visit.is_closed()
        await visit.work
        go()
        visit.cut()


async def test_nothing_is_signed_for_a_client_that_has_gone() -> None:
    async with open_exit() as exit, held_thread(exit) as go:
        arrive(exit, "192.0.2.1", first_flight()).close()
        await until(lambda: exit.listener.handshakes == 1)
        go()
        await until(lambda: exit.listener.handshakes == 0)
        assert exit.listener.failed == {"no_handshake": 1}
        assert exit._thread.waiting == 0


async def test_a_slow_third_flight_ends_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await meet_exit(visit.pipe, visit.handshake, inline)
        patience(monkeypatch, 0.01)
        assert await visit.is_closed()
        await visit.work
        assert exit.listener.failed == {"too_slow": 1}
        visit.cut()


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


# --- tokens ---


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only item is the time of the reception, which stands still otherwise; tests sweep themselves."""
    now = [1000.0]
    monkeypatch.setattr(reception_module, "clock", lambda: now[0])
    monkeypatch.setattr(reception_module, "SWEEP_SECONDS", 1e6)
    return now


class OldestLoses(random.Random):
    """Draws the guest that has been there longest."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0


async def test_no_prefix_opens_flights_beyond_its_rate(
    monkeypatch: pytest.MonkeyPatch, time: list[float]
) -> None:
    """The case that was: while one stalled, any number of flights of its address were opened, and remembered."""
    patience(monkeypatch, 1e6)
    async with open_exit(bounds={"handshakes_per_minute": 6, "handshakes_in_flight": 2}) as exit:
        reception, flights = exit.listener.reception, exit.listener._flights
        for opened in (6, 7, 8):
            for _ in range(20):
                arrive(exit, "192.0.2.1", first_flight())
                await settle()
            assert (flights.taken, reception.refuses(prefixes_of("192.0.2.1"))) == (opened, False)
            time[0] += 10.0  # when one token more is there, but nobody has finished
            reception._sweep()
        # Who loses a place is drawn by lot; the newcomer does not.
        monkeypatch.setattr(reception.answered, "_chance", OldestLoses())
        assert await asyncio.get_running_loop().sock_recv(arrive(exit, "192.0.2.2", first_flight()), 1)


async def test_who_is_dismissed_while_it_waits_for_the_thread_has_cost_a_token(
    monkeypatch: pytest.MonkeyPatch, time: list[float]
) -> None:
    monkeypatch.setattr(reception_module, "MAX_WAITING", 2)
    async with open_exit(bounds={"handshakes_per_minute": 5}) as exit, held_thread(exit):
        for _ in range(20):
            arrive(exit, "192.0.2.1", first_flight())
        await until(lambda: exit.listener.failed["too_many"] == 3)
        await settle()
        assert exit.listener._flights.taken == 5
        assert (exit.listener.handshakes, exit.listener.strangers) == (2, 15)


async def test_garbage_costs_one_token_and_not_two(time: list[float]) -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2}) as exit:
        garbage = frame_flight(bytes(FIRST_SIZE.start))
        assert await hears_nothing(arrive(exit, "192.0.2.1", garbage))
        assert await asyncio.get_running_loop().sock_recv(arrive(exit, "192.0.2.1", first_flight()), 1)
        assert exit.listener.failed == {"no_handshake": 1}


async def test_flights_that_wait_for_a_token_go_with_their_connections(
    monkeypatch: pytest.MonkeyPatch, time: list[float]
) -> None:
    """And cost none, so that a crowd which comes in late leaves to others what time brings."""
    async with open_exit(bounds={"handshakes_per_minute": 1}) as exit:
        reception = exit.listener.reception
        for _ in range(5):
            arrive(exit, "192.0.2.1", first_flight())
        await until(lambda: exit.listener.handshakes == 1)
        await settle()
        assert exit.listener.strangers == 4 and reception._unopened.prefixes()
        patience(monkeypatch, 0.0)
        reception._sweep()
        assert exit.listener.strangers == 0 and not reception._unopened.prefixes()
        assert exit.listener._flights.taken == 1
        time[0] += 60.0
        arrive(exit, "192.0.2.1", first_flight())
        await until(lambda: exit.listener._flights.taken == 2)


async def test_a_bounded_number_is_opened_in_one_turn(
    monkeypatch: pytest.MonkeyPatch, time: list[float]
) -> None:
    """When time brings tokens to many prefixes at once."""
    monkeypatch.setattr(reception_module, "SWEPT", 10)
    async with open_exit(bounds={"handshakes_per_minute": 1}) as exit, held_thread(exit):
        for number in range(25):
            for _ in range(2):
                arrive(exit, f"198.51.{number}.1", first_flight())
        flights = exit.listener._flights
        await until(lambda: flights.taken == 25)
        await settle()
        assert exit.listener.strangers == 25
        time[0] += 60.0
        patience(monkeypatch, 1e6)
        exit.listener.reception._sweep()
        seen = [flights.taken]
        while exit.listener.strangers:
            await asyncio.sleep(0)
            if flights.taken != seen[-1]:
                seen.append(flights.taken)
        assert seen == [35, 45, 50]


async def come_in(exit: Exit, identity: Identity) -> None:
    """A whole handshake over the TCP entrance."""
    handshake, pipe = ClientHandshake(identity, EXIT.peer_id, FAST), TcpPipe(arrive(exit, "192.0.2.1"))
    await meet_exit(pipe, handshake, inline)
    admission = await introduce(pipe, handshake, inline)
    await read_verdict(pipe, admission.keys.opener, wire.ACCEPT)


async def visit(exit: Exit, identity: Identity) -> None:
    """The same as over a WebSocket."""
    await Visit(exit, identity).admit()


@pytest.mark.parametrize("enter", [come_in, visit])
async def test_a_crowd_behind_one_address_comes_in_with_few_tokens(
    enter: Callable[[Exit, Identity], Awaitable[None]], time: list[float]
) -> None:
    """After a restart. Time brings no token here, so each one comes from somebody who proves to be listed."""
    crowd = [Identity.generate(FAST) for _ in range(60)]
    async with open_exit(*crowd, bounds={"handshakes_per_minute": 2}) as exit:
        await asyncio.gather(*(enter(exit, identity) for identity in crowd))
        assert exit.listener._flights.taken == len(crowd)
        assert not exit.listener.failed


async def test_a_listed_peer_gets_its_token_back() -> None:
    """A crowd behind one address: each that proves to be listed lets the next one begin."""
    async with open_exit(bounds={"handshakes_per_minute": 2, "sessions_per_peer": 100}) as exit:
        exit.listener.reception._peers = TokenBuckets(0.0, 100.0)
        visits = [Visit(exit, ALICE) for _ in range(20)]
        await asyncio.gather(*(visit.admit() for visit in visits))
        assert not exit.listener.failed
        for visit in visits:
            visit.cut()


async def test_a_peer_gets_back_no_more_than_its_own_tokens() -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2, "sessions_per_peer": 100}) as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(4)]
        late = Visit(exit, ALICE)
        with pytest.raises(CarrierError):
            await late.admit()
        assert exit.listener.failed == {"too_many": 1}
        elsewhere = await Visit(exit, ALICE, host="198.51.100.1").admit()
        for visit in (*visits, late, elsewhere):
            visit.cut()


async def test_an_unlisted_peer_gets_no_token_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_exit(bounds={"handshakes_per_minute": 2}) as exit:
        stranger = Identity.generate(FAST)
        for _ in range(2):
            with pytest.raises(PeerError, match="not authorized"):
                await Visit(exit, stranger).admit()
        patience(monkeypatch, 2.0)
        with pytest.raises(CarrierError):
            await Visit(exit, ALICE).admit()


# --- the end, and the sizes ---


async def test_handshakes_end_with_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, 1e6)
    async with open_exit() as exit:
        (address,) = await exit.start()
        client, begun = RawClient(address), RawClient(address)
        begun.send(first_flight())
        assert await begun.read(LENGTH.size)
        await until(lambda: exit.listener.strangers == 1)
        exit.listener.stop_accepting()
        await exit.listener.close()
        assert exit.listener.strangers == exit.listener.handshakes == 0
        assert await client.read(1) == b""
        await begun.read(100_000)
        assert not any(task.get_name() == "handshake" for task in asyncio.all_tasks())
        for each in (client, begun):
            each.sock.close()
        with pytest.raises(ConnectionRefusedError):
            RawClient(address)


async def test_who_waits_ends_with_the_listener() -> None:
    async with open_exit() as exit, held_thread(exit) as go:
        sock = arrive(exit, "192.0.2.1", first_flight())
        await until(lambda: exit.listener.handshakes == 1)
        await exit.listener.close()
        assert await hears_nothing(sock)
        assert exit.listener.handshakes == 0
        go()


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 4096, 20_000, 1 << 20])
def test_strangers_take_half_of_the_descriptors_at_most(descriptors: int) -> None:
    sizes = RoomSizes.of(descriptors, 1024)
    total = sizes.strangers + sizes.upgrading + sizes.waiting + sizes.answered
    assert total <= descriptors // 2
    assert sizes.strangers <= MAX_STRANGERS
    assert RoomSizes.of(1 << 20, 1024) == RoomSizes(4096, 512, 1024, 1024)
