"""Relays that hear of nothing: which ones end, after how long, and which ones stay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from math import inf

import pytest

from cryprq_proxy.base.far_end import FarEnd, is_abandoned, look_at
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound import relays as module
from cryprq_proxy.outbound.relay import Relay
from cryprq_proxy.outbound.relays import GONE_SECONDS, LOOK_SECONDS, LOOKS_AT_ALL, RELAYS_A_TURN, Relays
from cryprq_proxy.session.sendlog import SlotPool
from cryprq_proxy.session.streams import Half
from tests.support.fake_streams import FakeStream
from tests.support.settle import settle, until
from tests.support.visits import tcp_pair


class Held:
    """One relay whose stream takes nothing; `far` is the other end of its socket. `look` is a look at this time."""

    def __init__(self, *, applications: bool = True, idle_timeout: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        self.relays: Relays[Relay] = Relays(loop, applications=applications, idle_timeout=idle_timeout)
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


@pytest.mark.parametrize("applications", [True, False])
async def test_a_reset_that_nobody_hears_ends_the_relay(make: Make, applications: bool) -> None:
    held = make(applications=applications)
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
    await until(lambda: is_abandoned(held.relay.sock))
    assert held.look(1_000) == [StreamReason.CONNECTION_RESET]


async def test_one_that_closed_has_time_as_long_as_somebody_takes_its_data(make: Make) -> None:
    held = make()
    await held.unwatched()
    held.far.close()
    await until(lambda: is_abandoned(held.relay.sock))
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


@pytest.mark.parametrize(("applications", "after"), [(True, GONE_SECONDS), (False, inf)])
async def test_a_target_that_has_sent_all_may_go(
    make: Make, monkeypatch: pytest.MonkeyPatch, applications: bool, after: float
) -> None:
    """The application reads what it has sent when it likes. One that is elsewhere is gone when its kernel says so."""
    ends = [FarEnd.ENDED, FarEnd.OVER, FarEnd.OVER, FarEnd.OVER, FarEnd.OVER]
    monkeypatch.setattr(module, "look_at", lambda _: ends.pop(0))
    monkeypatch.setattr(module, "is_abandoned", lambda _: False)
    held = make(applications=applications)
    await held.unwatched()
    looks = [held.look(now)[:] for now in (0, GONE_SECONDS - 1, GONE_SECONDS, 1e6)]
    assert [bool(resets) for resets in looks] == [False, False, after == GONE_SECONDS, after == GONE_SECONDS]


async def test_a_relay_that_is_watched_is_left_to_its_events(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "look_at", lambda _: FarEnd.OVER)
    held = make()
    assert not held.relay.unwatched
    assert held.look(0) == held.look(1e6) == []


@pytest.mark.parametrize("applications", [True, False])
async def test_silence_ends_a_relay(make: Make, monkeypatch: pytest.MonkeyPatch, applications: bool) -> None:
    monkeypatch.setattr(module, "look_at", lambda _: FarEnd.SILENT)
    assert make(applications=applications).look(0) == [StreamReason.TIMED_OUT]


async def test_the_idle_limit_counts_from_the_last_byte(make: Make) -> None:
    held = make(idle_timeout=100.0)
    assert held.look(0) == held.look(99) == []
    held.stream.taken += 1
    assert held.look(150) == held.look(249) == []
    assert held.look(250) == [StreamReason.TIMED_OUT]


async def test_without_an_idle_limit_a_quiet_connection_stays(make: Make) -> None:
    held = make()
    assert [held.look(now) for now in (0, 1e3, 1e6)] == [[], [], []]


class Quiet:
    """Something to look at."""

    def __init__(self, *, unwatched: bool) -> None:
        self.unwatched = unwatched


async def test_those_that_hear_of_nothing_are_looked_at_most_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    looked: list[bool] = []

    def look(relays: Relays[Relay], relay: Relay, now: float) -> None:
        looked.append(relay.unwatched)

    monkeypatch.setattr(Relays, "look_at", look)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), applications=True)
    for unwatched in (True, False):
        relays.add(Quiet(unwatched=unwatched))  # type: ignore[arg-type]
    await until(lambda: False in looked)
    assert looked.index(False) in (LOOKS_AT_ALL - 1, LOOKS_AT_ALL)
    for relay in relays:
        relays.discard(relay)


async def test_looks_begin_with_a_relay_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    looked: list[int] = []
    turn = 0

    def look(relays: Relays[Relay], relay: Relay, now: float) -> None:
        looked.append(turn)

    monkeypatch.setattr(Relays, "look_at", look)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), applications=True)
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
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    relays: Relays[Relay] = Relays(asyncio.get_running_loop(), applications=True)
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
