"""Relays that hear of nothing: which ones end, after how long, and which ones stay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from math import inf

import pytest

from cryprq_proxy.base.far_end import FarEnd, Holder, holder_of, look_at
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound import relays as module
from cryprq_proxy.outbound.relay import Relay
from cryprq_proxy.outbound.relays import (
    APPLICATIONS,
    ENDED_SECONDS,
    GONE_SECONDS,
    LOOK_SECONDS,
    LOOKS_AT_ALL,
    RELAYS_A_TURN,
    REQUESTS,
    TARGETS,
    Patience,
    Relays,
)
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.session.streams import Half
from tests.support.fake_streams import FakeStream
from tests.support.settle import settle, until
from tests.support.visits import tcp_pair


class Held:
    """One relay whose stream takes nothing; `far` is the other end of its socket. `look` is a look at this time."""

    def __init__(self, patience: Patience = APPLICATIONS, idle_timeout: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        self.relays: Relays[Relay] = Relays(loop, patience, idle_timeout=idle_timeout)
        self.far, sock = tcp_pair()
        self.stream = FakeStream(room=0)
        self.relay = Relay(loop, sock, self.stream, SlotPool(), self.relays.discard)
        self.relays.add(self.relay)
        self.relay.start()

    async def unwatched(self) -> None:
        """The far end has sent what nobody takes."""
        self.far.send(b"unread")
        await until(lambda: self.relay.unwatched)

    def look(self, now: float) -> list[StreamReason]:
        """With what the stream has been reset."""
        if len(self.relays):
            self.relays.look_at(self.relay, now)
        return self.stream.resets


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Held]]:
    made: list[Held] = []

    def make(**settings: object) -> Held:
        made.append(Held(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for held in made:
        if len(held.relays):
            held.relay.abort(StreamReason.CANCELLED)
        held.far.close()


type Make = Callable[..., Held]


@pytest.mark.parametrize("patience", [APPLICATIONS, TARGETS])
async def test_a_reset_that_nobody_hears_ends_the_relay(make: Make, patience: Patience) -> None:
    held = make(patience=patience)
    await held.unwatched()
    assert held.look(0) == []
    set_reset_on_close(held.far)
    held.far.close()
    await until(lambda: look_at(held.relay.sock) is FarEnd.OVER)
    assert held.look(LOOK_SECONDS) == [StreamReason.CONNECTION_RESET]
    assert len(held.relays) == 0


async def test_a_relay_that_reads_on_after_a_reset_ends_by_itself(make: Make) -> None:
    held = make()
    await held.unwatched()
    set_reset_on_close(held.far)
    held.far.close()
    await until(lambda: look_at(held.relay.sock) is FarEnd.OVER)
    assert held.look(0) == [], "what it has sent may still be wanted"
    held.stream.room = 100
    held.stream.turn()
    assert held.stream.sent == b"unread"
    await until(lambda: held.stream.resets == [StreamReason.CONNECTION_RESET])


@pytest.mark.parametrize("fin_arrives", [True, False])
async def test_an_application_that_died_is_seen_while_its_target_does_not_read(
    make: Make, fin_arrives: bool
) -> None:
    held = make()
    await held.unwatched()
    try:
        while not fin_arrives:
            held.far.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    assert held.look(0) == held.look(1_000) == []
    held.far.close()
    await until(lambda: holder_of(held.relay.sock) is Holder.NOBODY)
    assert held.look(1_000) == [StreamReason.CONNECTION_RESET]


async def test_one_that_closed_has_time_as_long_as_somebody_takes_its_data(make: Make) -> None:
    held = make()
    await held.unwatched()
    held.far.close()
    await until(lambda: holder_of(held.relay.sock) is Holder.NOBODY)
    assert held.look(0) == held.look(GONE_SECONDS - 1) == []
    held.stream.taken += 1
    assert held.look(GONE_SECONDS + 1) == held.look(2 * GONE_SECONDS) == []
    assert held.look(2 * GONE_SECONDS + 1) == [StreamReason.CONNECTION_RESET]


async def test_an_application_that_has_only_ended_its_half_stays(make: Make) -> None:
    held = make()
    await held.unwatched()
    held.far.shutdown(socket.SHUT_WR)
    await until(lambda: look_at(held.relay.sock) is FarEnd.ENDED)
    assert [held.look(now) for now in (0, 1e3, 1e6)] == [[], [], []]
    held.stream.room = 100
    held.stream.turn()
    held.stream.turn()
    assert (held.stream.sent, held.stream.send_half) == (b"unread", Half.CLOSED)
    assert [held.look(now) for now in (2e6, 3e6)] == [[], []], "it waits for an answer"


@pytest.mark.parametrize(("patience", "after"), [(APPLICATIONS, GONE_SECONDS), (TARGETS, inf)])
async def test_a_target_that_has_sent_all_may_go(
    make: Make, monkeypatch: pytest.MonkeyPatch, patience: Patience, after: float
) -> None:
    """The application reads what it has sent when it likes. One that is elsewhere is gone when its kernel says so."""
    ends = [FarEnd.ENDED, FarEnd.OVER, FarEnd.OVER, FarEnd.OVER, FarEnd.OVER]
    monkeypatch.setattr(module, "look_at", lambda _: ends.pop(0))
    monkeypatch.setattr(module, "holder_of", lambda _: Holder.UNKNOWN)
    held = make(patience=patience)
    await held.unwatched()
    looks = [held.look(now)[:] for now in (0, GONE_SECONDS - 1, GONE_SECONDS, 1e6)]
    assert [bool(resets) for resets in looks] == [False, False, after == GONE_SECONDS, after == GONE_SECONDS]


@pytest.mark.parametrize(
    ("ends", "holder", "after"),
    [
        (FarEnd.OVER, Holder.UNKNOWN, 0.0),
        (FarEnd.ENDED, Holder.NOBODY, 0.0),
        (FarEnd.ENDED, Holder.UNKNOWN, ENDED_SECONDS),
        (FarEnd.ENDED, Holder.PROGRAM, inf),
        (FarEnd.THERE, Holder.UNKNOWN, inf),
    ],
)
async def test_a_request_whose_application_has_gone_is_given_up_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, ends: FarEnd, holder: Holder, after: float
) -> None:
    """One on another machine may have ended its half only, as far as is known; one on this machine is known to be
    there."""
    monkeypatch.setattr(module, "look_at", lambda _: ends)
    monkeypatch.setattr(module, "holder_of", lambda _: holder)
    held = make(patience=REQUESTS)
    await held.unwatched()
    looks = [bool(held.look(now)) for now in (0, ENDED_SECONDS - 0.1, ENDED_SECONDS, 1e6)]
    assert looks == [after <= now for now in (0, ENDED_SECONDS - 0.1, ENDED_SECONDS, 1e6)]


async def test_an_answer_that_goes_on_keeps_the_request_of_a_half_closed_application(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "look_at", lambda _: FarEnd.ENDED)
    monkeypatch.setattr(module, "holder_of", lambda _: Holder.UNKNOWN)
    held = make(patience=REQUESTS)
    await held.unwatched()
    for second in range(10):
        assert held.look(second * 2.0) == []
        held.stream.taken += 1
    assert held.look(20.0) == held.look(20.0 + ENDED_SECONDS - 0.1) == []
    assert held.look(20.0 + ENDED_SECONDS) == [StreamReason.CONNECTION_RESET]


async def test_those_that_wait_for_an_answer_with_nothing_unread_cost_no_question(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holder_of(_: socket.socket) -> Holder:
        raise AssertionError("asked")

    monkeypatch.setattr(module, "holder_of", holder_of)
    held = make(patience=REQUESTS)
    monkeypatch.setattr(Relay, "unwatched", True)
    assert held.look(0) == held.look(1e6) == []


async def test_a_relay_that_is_watched_is_left_to_its_events(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "look_at", lambda _: FarEnd.OVER)
    held = make()
    assert not held.relay.unwatched
    assert held.look(0) == held.look(1e6) == []


@pytest.mark.parametrize("patience", [APPLICATIONS, TARGETS])
async def test_silence_ends_a_relay(make: Make, monkeypatch: pytest.MonkeyPatch, patience: Patience) -> None:
    monkeypatch.setattr(module, "look_at", lambda _: FarEnd.SILENT)
    assert make(patience=patience).look(0) == [StreamReason.TIMED_OUT]


async def test_the_idle_limit_counts_from_the_last_byte(make: Make) -> None:
    held = make(idle_timeout=100.0)
    assert held.look(0) == held.look(99) == []
    held.stream.taken += 1
    assert held.look(150) == held.look(249) == []
    assert held.look(250) == [StreamReason.TIMED_OUT]


async def test_another_idle_limit_holds_for_relays_that_there_are(make: Make) -> None:
    held = make()
    assert held.look(0) == held.look(200) == []
    held.relays.take_idle_timeout(100.0)
    assert held.look(201) == held.look(300) == []
    assert held.look(301) == [StreamReason.TIMED_OUT], "it counts from the first look with a limit"


async def test_without_an_idle_limit_a_quiet_connection_stays(make: Make) -> None:
    held = make()
    assert [held.look(now) for now in (0, 1e3, 1e6)] == [[], [], []]


CLOSED = socket.socket()
CLOSED.close()


class Quiet:
    """Something to look at."""

    def __init__(self, *, unwatched: bool) -> None:
        self.unwatched = unwatched
        self.sock = CLOSED


async def test_those_that_hear_of_nothing_are_looked_at_most_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []

    def look(relays: Relays[Relay], relay: Relay, now: float) -> None:
        looked.append(relay.unwatched)

    monkeypatch.setattr(Relays, "look_at", look)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), Patience(look=0.001, over=1.0))
    for unwatched in (True, False):
        relays.add(Quiet(unwatched=unwatched))  # type: ignore[arg-type]
    await until(lambda: False in looked)
    assert looked.index(False) in (LOOKS_AT_ALL - 1, LOOKS_AT_ALL)
    for relay in relays:
        relays.discard(relay)


async def test_the_kernel_asks_the_other_end_of_what_lives_for_a_look(make: Make) -> None:
    """Most do not live as long, and it takes four system calls."""
    held = make()
    sock = held.relay.sock
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), Patience(look=0.001, over=inf))
    relays.add(held.relay)
    await until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    relays.discard(held.relay)


async def test_looks_begin_with_a_relay_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    turn = 0

    def look(relays: Relays[Relay], relay: Relay, now: float) -> None:
        looked.append(turn)

    monkeypatch.setattr(Relays, "look_at", look)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), Patience(look=0.001, over=1.0))
    many = {Quiet(unwatched=True): None for _ in range(2 * RELAYS_A_TURN)}
    for relay in many:
        relays.add(relay)  # type: ignore[arg-type]
    assert len(list(relays)) == len(relays) == len(many)
    while len(looked) < len(many):
        before = len(looked)
        await asyncio.sleep(0)
        turn += 1
        assert len(looked) - before <= RELAYS_A_TURN
    await until(lambda: len(looked) >= 2 * len(many))  # and again
    for relay in many:
        relays.discard(relay)  # type: ignore[arg-type]
    await until(lambda: not relays._looks)
    await settle()
    last = len(looked)
    relays.add(next(iter(many)))  # type: ignore[arg-type]
    await until(lambda: len(looked) > last)


async def test_a_fault_at_one_relay_keeps_no_other_from_being_looked_at(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The look was not made again, for none of them."""
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), Patience(look=0.01, over=1.0))
    faulty, other = make(), make()
    looked: list[Relay] = []

    def look_at(relay: Relay, now: float) -> None:
        if relay is faulty.relay:
            raise ZeroDivisionError
        looked.append(relay)

    monkeypatch.setattr(relays, "look_at", look_at)
    for held in (faulty, other):
        await held.unwatched()
        relays.add(held.relay)
    await until(lambda: len(looked) >= 2)
    relays.discard(other.relay)
    assert len(relays) == 0
    assert len(caplog.records) == 1
