"""Records that follow the third flight at once: the exit opens none of them before its list and its verdict."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import linger
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers import pipe
from cryprq_proxy.carriers.admission import claim, frame_flight, meet_exit, read_verdict
from cryprq_proxy.crypto.handshake import LENGTH
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted
from cryprq_proxy.exit import lobby
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.session import wire
from cryprq_proxy.session.path import MAX_EARLY
from cryprq_proxy.session.records import OVERHEAD, RecordOpener
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.settle import settle, until
from tests.support.visits import ALICE, BOB, HeldPipe, Known, Visit, inline, open_exit

NOWHERE = Destination("127.0.0.1", 9)
MEGABYTES = bytes(16 << 20)


class Opened:
    """Counts the records that are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records = 0
        original = RecordOpener.open

        def counted(opener: RecordOpener, *arguments: Any) -> Any:
            self.records += 1
            return original(opener, *arguments)

        monkeypatch.setattr(RecordOpener, "open", counted)


async def introduced(visit: Visit) -> Visit:
    await meet_exit(visit.pipe, visit.handshake, inline)
    await visit.introduce()
    return visit


async def flood(visit: Visit) -> None:
    with suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(visit.sock, MEGABYTES)


async def test_what_follows_the_third_flight_is_served_behind_the_verdict() -> None:
    async with open_exit() as exit:
        visit = await introduced(Visit(exit, ALICE))
        await visit.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        await visit.verdict()
        assert (await visit.read(wire.OPENED))[1] == 1
        visit.cut()


async def test_nothing_is_opened_before_the_verdict_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_exit() as exit:
        visit = await introduced(Visit(exit, ALICE, pipe=HeldPipe))
        await visit.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        opened = Opened(monkeypatch)
        held = visit.theirs
        assert isinstance(held, HeldPipe)
        await held.reached.wait()
        await settle()
        assert not opened.records and not exit.sessions.streams_total
        held.release.set()
        await visit.verdict()
        await until(lambda: exit.sessions.streams_total)
        visit.cut()


@pytest.mark.parametrize("reason", [CloseReason.NOT_AUTHORIZED, CloseReason.SHUTTING_DOWN, CloseReason.LIMIT])
async def test_a_refusal_arrives_although_megabytes_lie_unread(
    reason: CloseReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close with unread bytes is a reset, and a reset would take the verdict with it. No record is opened."""
    monkeypatch.setattr(Exit, "_refusal", lambda *_: reason)
    async with open_exit(BOB) as exit:
        visit = await introduced(Visit(exit, ALICE))
        flooding = spawn(flood(visit), "flood")
        opened = Opened(monkeypatch)
        with pytest.raises(NotAdmitted) as caught:
            await visit.verdict()
        assert caught.value.reason is reason
        assert opened.records == 2, "the verdict, by this test: with its header, and whole"
        assert not len(exit.sessions)
        flooding.cancel()
        visit.cut()
        await visit.work


async def test_who_is_refused_keeps_its_place_until_it_has_ended() -> None:
    """So no more sockets of refused peers are open than there are places for handshakes."""
    async with open_exit(BOB) as exit:
        visit = await introduced(Visit(exit, ALICE))
        flooding = spawn(flood(visit), "flood")
        with pytest.raises(NotAdmitted):
            await visit.verdict()
        answered = exit.listener.reception.answered
        await settle()
        assert len(answered) == 1
        flooding.cancel()
        visit.cut()
        await until(lambda: not len(answered))
        await visit.work


async def test_no_more_is_read_of_a_refused_peer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[float] = []

    class Watched(linger.Farewell):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            most.append(self._most)

    monkeypatch.setattr(pipe, "Farewell", Watched)
    async with open_exit(BOB) as exit:
        visit = await introduced(Visit(exit, ALICE))
        with pytest.raises(NotAdmitted):
            await visit.verdict()
        visit.cut()
        await visit.work
    assert most == [pipe.MAX_DROPPED]


async def test_who_floods_on_after_a_refusal_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "SECONDS", 0.05)
    async with open_exit(BOB) as exit:
        visit = await introduced(Visit(exit, ALICE))
        await flood(visit)
        await visit.work
        assert not len(exit.listener.reception.answered)


async def test_who_never_ends_the_third_flight_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await meet_exit(visit.pipe, visit.handshake, inline)
        monkeypatch.setattr(lobby, "PATIENCE", 0.0)
        third = frame_flight(visit.handshake.write_third())
        await visit.pipe.write(third[: LENGTH.size + 100])
        await visit.work
        assert exit.listener.failed == {"too_slow": 1}


async def test_a_third_flight_of_impossible_length_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    async with open_exit() as exit:
        visit = Visit(exit, ALICE)
        await meet_exit(visit.pipe, visit.handshake, inline)
        await visit.pipe.write(LENGTH.pack(65_535))
        await flood(visit)
        await visit.work
        assert exit.listener.failed == {"no_handshake": 1}
        assert not opened.records


# --- what may be early ---

TCP_OPEN = wire.encode_open(1, StreamProtocol.TCP, NOWHERE)
PING = wire.encode_number(wire.PING, 7)
NO_EARLY = {
    "PING": (PING,),
    "PONG": (wire.encode_number(wire.PONG, 7),),
    "SWITCH": (wire.encode_epoch(wire.SWITCH, 1),),
    "DATAGRAM": (TCP_OPEN, wire.encode_datagram(1, NOWHERE, b"?")),
    "PACKET": (wire.encode_packet(0, 0, 0, b"?"),),
    "ACK of another path": (wire.encode_records(wire.ACK, 8, 1),),
    "ACK that is not the first frame": (TCP_OPEN, wire.encode_records(wire.ACK, 0, 1)),
    "PING behind what may be early": (TCP_OPEN, PING),
}


async def closed_with(visit: Visit) -> CloseReason:
    _, _, reason = await visit.read(wire.CLOSE)
    assert isinstance(reason, CloseReason)
    return reason


@pytest.mark.parametrize("frames", NO_EARLY.values(), ids=NO_EARLY)
async def test_a_record_that_may_not_be_early_ends_the_session(frames: tuple[bytes, ...]) -> None:
    async with open_exit() as exit:
        visit = await introduced(Visit(exit, ALICE))
        await visit.send(*frames)
        await read_verdict(visit.pipe, visit.admission.keys.opener, wire.ACCEPT)
        assert await closed_with(visit) is CloseReason.PROTOCOL
        await until(lambda: not len(exit.sessions))
        visit.cut()


async def test_a_path_that_joins_may_not_either() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        visit = Visit(exit, ALICE)
        await visit.show_ticket(first.known)
        await visit.send(PING)
        await read_verdict(visit.pipe, visit.admission.keys.opener, wire.ACCEPT)
        assert await closed_with(visit) is CloseReason.PROTOCOL
        await until(lambda: not len(exit.sessions))
        first.cut()
        visit.cut()


async def test_behind_a_signed_claim_nothing_may_be_early() -> None:
    """Not even what a new session may begin with: it may be another one."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        for known in (first.known, Known(bytes(16), bytes(32))):
            visit = Visit(exit, ALICE)
            await meet_exit(visit.pipe, visit.handshake, inline)
            visit.admission = await claim(visit.pipe, visit.handshake, cast(Session, known), 3, inline)
            await visit.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
            assert await closed_with(visit) is CloseReason.PROTOCOL
            visit.cut()
        first.cut()


@pytest.mark.parametrize("over", [False, True])
async def test_no_early_record_begins_behind_the_bound(over: bool) -> None:
    """Up to there one may begin, whatever its length; what follows the verdict is bounded no more."""
    window = wire.encode_window(0, 1)
    record = len(window) + OVERHEAD
    async with open_exit() as exit:
        visit = await introduced(Visit(exit, ALICE))
        for _ in range(-(-MAX_EARLY // record) - 1):
            await visit.send(window)
        await visit.send(TCP_OPEN, wire.encode_data_header(wire.DATA, 1, 0) + bytes(60_000))
        if over:
            await visit.send(window)
        await read_verdict(visit.pipe, visit.admission.keys.opener, wire.ACCEPT)
        await visit.acknowledge()
        await visit.send(PING)
        if over:
            assert await closed_with(visit) is CloseReason.PROTOCOL
        else:
            assert (await visit.read(wire.PONG))[2] == 7
            assert len(exit.sessions) == 1
        visit.cut()


async def test_what_is_early_may_end_the_session() -> None:
    async with open_exit() as exit:
        visit = await introduced(Visit(exit, ALICE))
        await visit.send(TCP_OPEN, wire.encode_close(CloseReason.NORMAL))
        await read_verdict(visit.pipe, visit.admission.keys.opener, wire.ACCEPT)
        with pytest.raises(CarrierError):
            await visit.read(wire.CLOSE)
        assert exit.sessions.streams_total and not len(exit.sessions)
        visit.cut()
