"""Joins by the short pattern at a whole exit: which tickets open a path, how often, and for how long."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto.payloads import SIGNED_SECONDS
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted
from cryprq_proxy.exit.ticket_book import AHEAD
from cryprq_proxy.session import wire
from tests.support import visit_rotations
from tests.support.visit_rotations import rotated
from tests.support.visits import ALICE, BOB, Known, Visit, open_exit


async def begun(exit: object) -> Visit:
    return await Visit(exit, ALICE).admit()  # type: ignore[arg-type]


async def answers(visit: Visit) -> bool:
    """Whether the exit hears the visit's path."""
    await visit.send(wire.encode_number(wire.PING, 7))
    return (await visit.read(wire.PONG))[2] == 7


async def meets_silence(visit: Visit, known: Known, path: int) -> bool:
    """Whether the exit closes without a verdict."""
    await visit.show_ticket(known, path)
    closed = await visit.is_closed()
    await visit.work
    return closed


async def test_a_ticket_brings_another_path() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        second = await Visit(exit, ALICE).join(first.known, 1)
        (entry,) = exit.sessions
        assert list(entry.carriers) == [0, 1]
        assert await answers(first) and await answers(second)
        for visit in (first, second):
            visit.cut()


async def test_each_ticket_is_used_once_and_none_before_it() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        known = first.known
        third = await Visit(exit, ALICE).join(known, 3)
        for path in (3, 2, 1):
            assert await meets_silence(Visit(exit, ALICE), known, path)
        assert await meets_silence(Visit(exit, ALICE), known, 3 + AHEAD + 1), "too far ahead"
        last = await Visit(exit, ALICE).join(known, 3 + AHEAD)
        (entry,) = exit.sessions
        assert list(entry.carriers) == [0, 3, 3 + AHEAD]
        for visit in (first, third, last):
            visit.cut()


async def test_a_signed_claim_uses_up_the_tickets_below_it() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        second = await Visit(exit, ALICE).admit(first.known, 20)
        assert await meets_silence(Visit(exit, ALICE), first.known, 20)
        third = await Visit(exit, ALICE).join(await rotated(second, visit_rotations.begun(first)), 21)
        for visit in (first, second, third):
            visit.cut()


async def test_a_ticket_of_another_secret_opens_nothing() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        unknown = Known(first.known.session_id, bytes(32))
        assert await meets_silence(Visit(exit, ALICE), unknown, 1)
        second = await Visit(exit, ALICE).join(first.known, 1)
        for visit in (first, second):
            visit.cut()


async def test_a_day_after_the_last_signature_another_one_is_wanted() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        (entry,) = exit.sessions
        entry.signed_at -= SIGNED_SECONDS - 60
        second = await Visit(exit, ALICE).join(first.known, 1)
        entry.signed_at -= 120
        assert await meets_silence(Visit(exit, ALICE), first.known, 2)
        third = await Visit(exit, ALICE).admit(first.known, 3)
        assert third.resumed
        fourth = await Visit(exit, ALICE).join(await rotated(third, visit_rotations.begun(first)), 4)
        assert list(entry.carriers) == [3, 4]
        for visit in (first, second, third, fourth):
            visit.cut()


async def test_a_peer_that_is_no_longer_listed_is_refused() -> None:
    """Its session is still there, as in the moment before the list is looked at."""
    async with open_exit() as exit:
        first = await begun(exit)
        exit.book.listed = {BOB.peer_id: ""}
        with pytest.raises(NotAdmitted) as caught:
            await Visit(exit, ALICE).join(first.known, 1)
        assert caught.value.reason is CloseReason.NOT_AUTHORIZED
        (entry,) = exit.sessions
        assert list(entry.carriers) == [0]
        first.cut()


async def test_tickets_end_with_their_session() -> None:
    async with open_exit() as exit:
        visits = [await begun(exit) for _ in range(3)]
        assert len(exit.sessions.tickets) == 3 * AHEAD
        exit.authorize({})
        assert len(exit.sessions.tickets) == 0
        for visit in visits:
            visit.cut()


async def test_tickets_follow_the_keys() -> None:
    """While a rotation is not confirmed those of both epochs count, and then only the new ones."""
    async with open_exit() as exit:
        first = await begun(exit)
        (entry,) = exit.sessions
        rotation = entry.session.rotation
        rotation.known._resume = {1: bytes([1]) * 32, 0: first.known.secret}
        entry.session.renewed()
        second = await Visit(exit, ALICE).join(first.known, 1)
        rotation.known._resume = {1: bytes([1]) * 32}
        entry.session.renewed()
        assert await meets_silence(Visit(exit, ALICE), first.known, 2)
        third = await Visit(exit, ALICE).join(Known(first.known.session_id, bytes([1]) * 32), 2)
        for visit in (first, second, third):
            visit.cut()


async def test_a_connection_that_breaks_uses_up_nothing_before_its_ticket() -> None:
    async with open_exit() as exit:
        first = await begun(exit)
        broken = Visit(exit, ALICE)
        broken.cut()
        await broken.work
        second = await Visit(exit, ALICE).join(first.known, 1)
        with pytest.raises(CarrierError):
            await broken.pipe.read_exactly(1)
        for visit in (first, second):
            visit.cut()
