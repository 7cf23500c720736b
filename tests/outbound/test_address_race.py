"""The race of the addresses of one name, on a scripted connector."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.address_race import (
    ATTEMPT_DELAY,
    ATTEMPT_PATIENCE,
    MAX_ADDRESSES,
    MAX_RUNNING,
    AddressRace,
    interleave,
)
from cryprq_proxy.session.turns import ATTEMPT_WORK, JUDGE_WORK, TURN_WORK, TurnBudget
from tests.support.connectors import NEVER, Connector, Outcome, plenty, turn
from tests.support.fake_exits import Timers
from tests.support.settle import until


def always(ip: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("given", "tried"),
    [
        ([], []),
        (["1.1.1.1", "1.1.1.2"], ["1.1.1.1", "1.1.1.2"]),
        (["1.1.1.1", "1.1.1.2", "2::1"], ["2::1", "1.1.1.1", "1.1.1.2"]),
        (["2::2", "2::1", "2::3", "1.1.1.2", "1.1.1.1"], ["2::2", "1.1.1.2", "2::1", "1.1.1.1", "2::3"]),
        (["1.1.1.1", "2::1", "1.1.1.1", "2::1"], ["2::1", "1.1.1.1"]),
    ],
)
def test_families_take_turns(given: list[str], tried: list[str]) -> None:
    assert interleave(given) == tried


async def test_the_next_address_starts_after_the_delay_and_the_winner_ends_the_others() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2"], 443, always, done, NEVER, 0.0, connector, plenty())
    assert connector.tried == ["1.1.1.1"]
    while len(connector.attempts) < 2:
        await asyncio.sleep(0)
    first, second = connector.attempts
    assert not first.cancelled
    sock = second.succeed()
    sock.close()
    assert first.cancelled
    assert done.calls == [(sock, None)]


async def test_the_first_may_still_win_after_the_second_has_started() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2", "1.1.1.3"], 443, always, done, NEVER, 0.0, connector, plenty())
    while len(connector.attempts) < 2:
        await asyncio.sleep(0)
    connector.attempts[0].succeed().close()
    assert connector.attempts[1].cancelled
    await turn()
    assert connector.tried == ["1.1.1.1", "1.1.1.2"]
    assert len(done.calls) == 1


async def test_a_failure_starts_the_next_at_once() -> None:
    connector = Connector({"1.1.1.1": StreamReason.CONNECTION_REFUSED})
    done = Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2", "1.1.1.3"], 443, always, done, NEVER, NEVER, connector, plenty())
    assert connector.tried == ["1.1.1.1", "1.1.1.2"]
    connector.attempts[1].done(None, StreamReason.HOST_UNREACHABLE)
    assert connector.tried == ["1.1.1.1", "1.1.1.2", "1.1.1.3"]
    connector.attempts[2].done(None, StreamReason.TIMED_OUT)
    assert done.calls == [(None, StreamReason.CONNECTION_REFUSED)]


@pytest.mark.parametrize(
    ("reasons", "reported"),
    [
        (
            [StreamReason.NETWORK_UNREACHABLE, StreamReason.CONNECTION_REFUSED],
            StreamReason.CONNECTION_REFUSED,
        ),
        ([StreamReason.CONNECTION_REFUSED, StreamReason.TIMED_OUT], StreamReason.CONNECTION_REFUSED),
        ([StreamReason.HOST_UNREACHABLE, StreamReason.TIMED_OUT], StreamReason.TIMED_OUT),
        ([StreamReason.NETWORK_UNREACHABLE, StreamReason.HOST_UNREACHABLE], StreamReason.HOST_UNREACHABLE),
        ([StreamReason.GENERAL, StreamReason.NETWORK_UNREACHABLE], StreamReason.NETWORK_UNREACHABLE),
        ([StreamReason.NOT_ALLOWED, StreamReason.GENERAL], StreamReason.GENERAL),
        ([StreamReason.NOT_ALLOWED], StreamReason.NOT_ALLOWED),
        ([], StreamReason.GENERAL),
    ],
)
async def test_the_most_telling_reason_is_reported(
    reasons: list[StreamReason], reported: StreamReason
) -> None:
    script = {f"1.1.1.{n}": reason for n, reason in enumerate(reasons)}
    done = Outcome()
    AddressRace(
        asyncio.get_running_loop(), script, 443, always, done, NEVER, NEVER, Connector(script), plenty()
    )
    assert done.calls == [(None, reported)]


async def test_each_address_is_approved_right_before_its_attempt() -> None:
    events: list[str] = []
    script = {f"1.1.1.{n}": StreamReason.CONNECTION_REFUSED for n in (1, 2, 3)}
    connector = Connector(script)

    def allowed(ip: str) -> bool:
        events.append(f"{len(connector.attempts)} tried, {ip}?")
        return ip != "1.1.1.2"

    done = Outcome()
    AddressRace(asyncio.get_running_loop(), script, 443, allowed, done, NEVER, NEVER, connector, plenty())
    assert events == ["0 tried, 1.1.1.1?", "1 tried, 1.1.1.2?", "1 tried, 1.1.1.3?"]
    assert connector.tried == ["1.1.1.1", "1.1.1.3"]
    assert done.calls == [(None, StreamReason.CONNECTION_REFUSED)]


async def test_a_failure_while_the_last_forbidden_is_left_waits_for_who_runs() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    addresses = ["1.1.1.1", "1.1.1.2"]
    AddressRace(loop, addresses, 443, lambda ip: ip != "1.1.1.2", done, NEVER, 0.0, connector, plenty())
    await turn()
    await turn()
    assert not done.calls
    connector.attempts[0].succeed().close()
    assert connector.tried == ["1.1.1.1"]
    assert len(done.calls) == 1


async def test_no_attempt_starts_after_the_deadline() -> None:
    connector, done = Connector(), Outcome()
    AddressRace(asyncio.get_running_loop(), ["1.1.1.1"], 443, always, done, 0.0, NEVER, connector, plenty())
    assert connector.tried == []
    assert done.calls == [(None, StreamReason.TIMED_OUT)]


async def test_an_attempt_gets_no_more_than_the_time_left() -> None:
    connector = Connector()
    race = AddressRace(
        asyncio.get_running_loop(), ["1.1.1.1"], 443, always, Outcome(), 5.0, 1.0, connector, plenty()
    )
    assert connector.attempts[0].port == 443
    assert 0 < connector.attempts[0].timeout <= 5.0
    race.cancel()
    assert connector.attempts[0].cancelled


async def test_a_cancelled_race_starts_nothing_more() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    race = AddressRace(loop, ["1.1.1.1", "1.1.1.2"], 443, always, done, NEVER, 0.0, connector, plenty())
    race.cancel()
    race.cancel()
    await turn()
    assert connector.tried == ["1.1.1.1"]
    assert connector.attempts[0].cancelled
    assert not done.calls


async def test_a_name_with_very_many_addresses_gets_a_bounded_number_of_attempts() -> None:
    script = {f"1.1.{n >> 8}.{n & 255}": StreamReason.CONNECTION_REFUSED for n in range(4000)}
    connector, done = Connector(script), Outcome()
    AddressRace(asyncio.get_running_loop(), script, 443, always, done, NEVER, NEVER, connector, plenty())
    assert len(connector.attempts) == MAX_ADDRESSES
    assert len(done.calls) == 1


@pytest.mark.parametrize("first", ["1.1.1.1", "1.1.1.2"])
async def test_a_fault_in_a_race_ends_it(first: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who waited for it waited for ever."""
    outcome: list[StreamReason | None] = []

    def allowed(ip: str) -> bool:
        if ip == first:
            raise ZeroDivisionError
        return True

    connector = Connector()
    AddressRace(
        asyncio.get_running_loop(),
        ["1.1.1.1", "1.1.1.2"],
        1,
        allowed,
        lambda sock, reason: outcome.append(reason),
        10.0,
        0.0,
        connector,
        plenty(),
    )
    await until(lambda: outcome)
    assert outcome == [StreamReason.GENERAL]
    assert all(attempt.cancelled for attempt in connector.attempts)
    assert len(caplog.records) == 1


class Room:
    """A SocketRoom of a size; `taken` of it is in use, `most` was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = self.most = 0

    def more(self) -> bool:
        if self.taken == self.size:
            return False
        self.taken += 1
        self.most = max(self.most, self.taken)
        return True

    def less(self) -> None:
        assert self.taken > 0
        self.taken -= 1


class Race:
    """A race of many addresses of which none answers, on the test's clock."""

    def __init__(self, room: Room, addresses: int = 12) -> None:
        self.timers = Timers()
        self.room = room
        self.connector = Connector()
        self.outcome: list[object] = []
        self.race = AddressRace(
            cast(asyncio.AbstractEventLoop, self.timers),
            [f"192.0.2.{number}" for number in range(1, addresses + 1)],
            1,
            always,
            lambda sock, reason: self.outcome.append(sock or reason),
            10.0,
            ATTEMPT_DELAY,
            self.connector,
            plenty(),
            room,
        )

    @property
    def open(self) -> list[int]:
        """The numbers of the addresses whose attempts run."""
        return [number for number, one in enumerate(self.connector.attempts, 1) if not one.cancelled]


def test_the_sockets_of_a_race_are_bounded_and_counted() -> None:
    """There were as many as addresses, 32, and they counted as one. The ninth takes the place of the first, whose SYN
    was sent twice by then."""
    race = Race(Room(100))
    assert (race.open, race.room.taken) == ([1], 0)
    race.timers.advance(7.5 * ATTEMPT_DELAY)
    assert (race.open, race.room.taken) == (list(range(1, MAX_RUNNING + 1)), MAX_RUNNING - 1)
    race.timers.advance(4 * ATTEMPT_DELAY)
    assert (race.open, race.room.taken) == (list(range(5, 13)), MAX_RUNNING - 1)
    race.connector.attempts[-1].done(None, StreamReason.TIMED_OUT)
    assert race.room.taken == MAX_RUNNING - 2
    race.connector.attempts[4].succeed().close()
    assert race.room.taken == 0 and len(race.outcome) == 1
    assert race.open == [5, 12], "those that ended by themselves"


def test_without_room_the_next_one_waits_for_the_first() -> None:
    race = Race(Room(1))
    race.timers.advance(ATTEMPT_PATIENCE - 0.01)
    assert (race.open, race.room.taken) == ([1, 2], 1)
    race.timers.advance(0.02)
    assert (race.open, race.room.taken) == ([2, 3], 1)
    race.connector.attempts[1].done(None, StreamReason.CONNECTION_REFUSED)
    assert race.connector.tried[-1] == "192.0.2.4" and race.room.taken == 1
    race.race.cancel()
    assert race.room.taken == 0


def test_a_race_that_fails_gives_everything_back() -> None:
    race = Race(Room(100), addresses=3)
    race.timers.advance(1.0)
    for attempt in race.connector.attempts:
        attempt.done(None, StreamReason.TIMED_OUT)
    assert race.outcome == [StreamReason.TIMED_OUT] and race.room.taken == 0 and race.room.most == 2


class Soon:
    """The next turns of a loop, one at a time, and the budget of a peer in them."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.budget = TurnBudget(self.callbacks.append)

    def next_turn(self) -> None:
        due, self.callbacks[:] = self.callbacks[:], []
        for callback in due:
            callback()


def race_of_refusals(
    soon: Soon, connector: Connector, outcome: list[object], allowed: Callable[[str], bool] = always
) -> AddressRace:
    return AddressRace(
        cast(asyncio.AbstractEventLoop, Timers()),
        connector.script,
        1,
        allowed,
        lambda sock, reason: outcome.append(reason),
        10.0,
        ATTEMPT_DELAY,
        connector,
        soon.budget,
    )


def refusing() -> Connector:
    return Connector(
        {f"192.0.2.{number}": StreamReason.CONNECTION_REFUSED for number in range(MAX_ADDRESSES)}
    )


def test_addresses_that_fail_at_once_are_tried_in_the_turns_of_their_peer() -> None:
    """Sixteen names of 32 addresses each took 50 ms in one turn of the exit's loop."""
    soon, outcome = Soon(), list[object]()
    connectors = [refusing() for _ in range(16)]
    for connector in connectors:
        race_of_refusals(soon, connector, outcome)
    in_a_turn = -(-TURN_WORK // (ATTEMPT_WORK + JUDGE_WORK))
    tried, turns = sum(len(connector.tried) for connector in connectors), 0
    assert tried <= in_a_turn
    while len(outcome) < len(connectors):
        soon.next_turn()
        before, tried = tried, sum(len(connector.tried) for connector in connectors)
        assert 0 < tried - before <= in_a_turn
        turns += 1
    assert tried == len(connectors) * MAX_ADDRESSES
    assert outcome == [StreamReason.CONNECTION_REFUSED] * len(connectors)


def test_addresses_that_the_policy_forbids_are_work_too() -> None:
    soon, outcome, asked = Soon(), list[object](), list[str]()

    def forbidden(ip: str) -> bool:
        asked.append(ip)
        return False

    for _ in range(16):
        race_of_refusals(soon, refusing(), outcome, forbidden)
    assert len(asked) <= TURN_WORK // JUDGE_WORK
    while len(outcome) < 16:
        soon.next_turn()
    assert outcome == [StreamReason.NOT_ALLOWED] * 16


def test_a_race_that_is_cancelled_while_it_waits_for_a_turn_tries_nothing() -> None:
    soon, outcome, connector = Soon(), list[object](), refusing()
    soon.budget.spend(TURN_WORK)
    race = race_of_refusals(soon, connector, outcome)
    race.cancel()
    soon.next_turn()
    assert not connector.tried and not outcome and soon.budget.left < TURN_WORK


def test_an_attempt_that_ends_meanwhile_does_not_start_the_next_before_its_turn() -> None:
    soon, outcome, connector = Soon(), list[object](), Connector()
    connector.script = {"192.0.2.1": StreamReason.TIMED_OUT, "192.0.2.2": StreamReason.TIMED_OUT}
    race = race_of_refusals(soon, connector, outcome)
    assert race and connector.tried == ["192.0.2.1", "192.0.2.2"]
    silent = Connector()
    AddressRace(
        cast(asyncio.AbstractEventLoop, Timers()),
        ["192.0.2.1", "192.0.2.2"],
        1,
        always,
        lambda sock, reason: outcome.append(reason),
        10.0,
        ATTEMPT_DELAY,
        silent,
        soon.budget,
    )
    soon.budget.spend(TURN_WORK)
    silent.attempts[0].done(None, StreamReason.TIMED_OUT)
    assert silent.tried == ["192.0.2.1"]
    soon.next_turn()
    assert silent.tried == ["192.0.2.1", "192.0.2.2"]
