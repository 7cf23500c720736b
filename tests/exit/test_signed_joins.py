"""Somebody has stolen the secrets of an epoch, and the client comes back by a signed handshake."""

from __future__ import annotations

import pytest

from cryprq_proxy.errors import CarrierError, CloseReason, HandshakeError
from cryprq_proxy.session import wire
from tests.support.settle import until
from tests.support.visit_rotations import answer, ask, begun, rotate, rotated
from tests.support.visits import ALICE, BOB, Known, Visit, open_exit


async def is_deaf(visit: Visit) -> bool:
    """Whether the exit closes the visit's path, without an answer to a rotation."""
    try:
        await visit.read(wire.REKEY_ANSWER)
    except CarrierError:
        return True
    return False


async def test_a_thief_has_no_part_in_the_epoch_that_follows_a_signed_join() -> None:
    """He has a path of his own, and races the client with his REKEY."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        known, session = first.known, begun(first)
        thief = await Visit(exit, BOB).join(known)
        back = await Visit(exit, ALICE).admit(known, 2)
        assert back.resumed
        await ask(thief, session)
        assert await is_deaf(thief) and await is_deaf(first)
        with pytest.raises(CarrierError):
            await Visit(exit, BOB).join(known, 3)
        newest = await rotated(back, session)
        with pytest.raises(CarrierError):
            await Visit(exit, BOB).join(known, 4)
        beside = await Visit(exit, ALICE).join(newest, 5)
        for visit in (back, beside):
            await visit.send(wire.encode_number(wire.PING, 7))
            await visit.read(wire.PONG)
        assert len(exit.sessions) == 1
        back.cut()
        beside.cut()


async def test_a_thief_that_has_come_between_the_two_loses_the_session() -> None:
    """The epoch is his, and the client knows the one before. The exit kept his session beside the new one."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        known, session = first.known, begun(first)
        thief = await Visit(exit, BOB).join(known)
        first.cut()
        await rotate(thief, session)
        back = await Visit(exit, ALICE).admit(known, 2)
        assert not back.resumed
        with pytest.raises(CarrierError):
            await thief.read(wire.REKEY)
        await until(lambda: len(exit.sessions) == 1)
        back.cut()


@pytest.mark.parametrize("acknowledged", [False, True])
async def test_a_thief_that_is_in_the_middle_of_a_rotation_ends_the_session_and_no_more(
    acknowledged: bool,
) -> None:
    """The client gets an answer that does not open, or none if the thief has acknowledged it. The exit gets two
    questions."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        known, session = first.known, begun(first)
        thief = await Visit(exit, BOB).join(known)
        first.cut()
        stolen = (await ask(thief, session)).read(await answer(thief))
        if acknowledged:
            await thief.send(wire.encode_records(wire.ACK, 1, 2), wire.encode_number(wire.PING, 7))
            await thief.read(wire.PONG)
        back = await Visit(exit, ALICE).admit(known, 2)
        assert back.resumed
        assert await is_deaf(thief)
        with pytest.raises(CarrierError):
            await Visit(exit, BOB).join(Known(session.session_id, stolen.resume), 3)
        mine = await ask(back, session)
        if not acknowledged:
            with pytest.raises(HandshakeError):
                mine.read(await answer(back))
        assert (await back.read(wire.CLOSE))[2] is CloseReason.REKEY
        await until(lambda: not len(exit.sessions))
        back.cut()


async def test_nobody_but_the_peer_itself_ends_a_session_by_a_wrong_proof() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        stranger = await Visit(exit, BOB).admit(Known(first.known.session_id, bytes(32)), 1)
        assert not stranger.resumed and len(exit.sessions) == 2
        first.cut()
        stranger.cut()


@pytest.mark.parametrize("number", [1, 2])
async def test_a_claim_that_was_held_up_does_not_end_the_session(number: int) -> None:
    """Its secret was replaced by the rotation behind another claim, which came first. Whoever sits in the middle can
    have both come about, and knows nothing."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        known, session = first.known, begun(first)
        back = await Visit(exit, ALICE).admit(known, 2)
        await rotated(back, session)
        with pytest.raises(CarrierError):
            await Visit(exit, ALICE).admit(known, number)
        await back.send(wire.encode_number(wire.PING, 7))
        await back.read(wire.PONG)
        assert len(exit.sessions) == 1
        back.cut()
