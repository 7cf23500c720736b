"""A path that joins by the short pattern: what the exit takes a ticket for, and when it takes none."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import meet_exit
from cryprq_proxy.crypto.payloads import SIGNED_SECONDS, Pattern
from cryprq_proxy.crypto.signer import Signer
from cryprq_proxy.errors import CarrierError, CloseReason, HandshakeError, NotAdmitted
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.reception import VERSIONS_LOGGED
from cryprq_proxy.exit.ticket_book import AHEAD
from cryprq_proxy.session import wire
from tests.support.settle import until
from tests.support.visit_rotations import begun, rotated
from tests.support.visits import ALICE, BOB, HeldPipe, Known, Visit, inline, open_exit


async def answers(visit: Visit) -> bool:
    """Whether the exit hears the visit's path."""
    try:
        await visit.send(wire.encode_number(wire.PING, 7))
        return (await visit.read(wire.PONG))[2] == 7
    except CarrierError:
        return False


async def silent(visit: Visit, known: Known, path: int = 1) -> None:
    """The exit closes the connection without a verdict."""
    with pytest.raises(CarrierError) as caught:
        await visit.join(known, path)
    assert not isinstance(caught.value, NotAdmitted)
    await visit.work


async def refused(visit: Visit, known: Known) -> CloseReason:
    with pytest.raises(NotAdmitted) as caught:
        await visit.join(known)
    return caught.value.reason


async def test_nobody_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def count(name: str) -> None:
        original = getattr(Signer, name)

        def counted(*arguments: Any) -> Any:
            used.append(name)
            return original(*arguments)

        monkeypatch.setattr(Signer, name, counted)

    count("sign")
    count("verify")
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        assert sorted(used) == ["sign", "sign", "verify", "verify"], "two sides"
        used.clear()
        second = await Visit(exit, ALICE).join(first.known)
        assert await answers(first) and await answers(second)
        assert not used
        assert len(exit.sessions) == 1
        for visit in (first, second):
            visit.cut()


async def test_the_tokens_of_its_prefix_are_given_back() -> None:
    """As for a signed handshake of a listed peer: clients behind one address do not shut each other out."""
    async with open_exit(bounds={"handshakes_per_minute": 20}) as exit:
        for peer in (ALICE, BOB):
            first = await Visit(exit, peer).admit()
            for path in range(1, 15):
                visit = await Visit(exit, peer).join(first.known, path)
                visit.cut()
            first.cut()


async def test_a_ticket_is_used_once() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        second = await Visit(exit, ALICE).join(first.known, 2)
        for path in (2, 1):
            await silent(Visit(exit, ALICE), first.known, path)
        third = await Visit(exit, ALICE).join(first.known, 3)
        assert [await answers(visit) for visit in (first, second, third)] == [True] * 3
        for visit in (first, second, third):
            visit.cut()


async def test_a_ticket_that_was_read_on_its_way_takes_nothing_from_its_owner() -> None:
    """The copy comes first, from somebody who has not the secret behind it."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        thief = Visit(exit, BOB)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "cryprq_proxy.crypto.client_handshake._Shown.show",
                lambda shown: (shown._ticket, bytes(32)),
            )
            await silent(thief, first.known)
        second = await Visit(exit, ALICE).join(first.known)
        assert await answers(second)
        for visit in (first, second):
            visit.cut()


async def test_paths_far_ahead_need_a_signature() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        await silent(Visit(exit, ALICE), first.known, AHEAD + 1)
        second = await Visit(exit, ALICE).admit(first.known, AHEAD + 1)
        third = await Visit(exit, ALICE).join(await rotated(second, begun(first)), 2 * AHEAD + 1)
        assert second.resumed and third.resumed
        for visit in (first, second, third):
            visit.cut()


async def test_another_secret_joins_nothing() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        await silent(Visit(exit, ALICE), Known(first.known.session_id, bytes(32)))
        assert exit.listener.failed == {"no_handshake": 1}
        first.cut()


async def test_a_session_that_has_ended_is_joined_by_nobody() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        await first.send(wire.encode_close(CloseReason.NORMAL))
        await until(lambda: not len(exit.sessions))
        assert not len(exit.sessions.tickets)
        await silent(Visit(exit, ALICE), first.known)
        first.cut()


async def test_after_a_day_without_a_signature_the_exit_takes_no_ticket() -> None:
    async with open_exit() as exit:
        visits = [await Visit(exit, ALICE).admit()]
        known = visits[0].known
        entry = exit.sessions.by_id(known.session_id)
        assert entry is not None
        entry.signed_at -= SIGNED_SECONDS - 60.0
        visits.append(await Visit(exit, ALICE).join(known, 1))
        entry.signed_at -= 120.0
        await silent(Visit(exit, ALICE), known, 2)
        visits.append(await Visit(exit, ALICE).admit(known, 3))
        assert visits[-1].resumed
        known = await rotated(visits[-1], begun(visits[0]))
        entry.signed_at -= SIGNED_SECONDS - 60.0
        visits.append(await Visit(exit, ALICE).join(known, 4))
        for visit in visits:
            visit.cut()


# --- what happens meanwhile ---


async def joining(exit: Exit, known: Known) -> tuple[Visit, HeldPipe]:
    """A path whose verdict is about to be written."""
    visit = Visit(exit, ALICE, pipe=HeldPipe)
    assert isinstance(visit.theirs, HeldPipe)
    spawn(visit.join(known), "late").add_done_callback(lambda task: task.exception())
    await visit.theirs.reached.wait()
    return visit, visit.theirs


async def test_a_peer_that_is_taken_off_the_list_while_its_path_joins() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        late, pipe = await joining(exit, first.known)
        exit.authorize({BOB.peer_id: ""})
        pipe.release.set()
        await late.work
        assert pipe.closed and not len(exit.sessions)
        assert (await first.read(wire.CLOSE))[2] is CloseReason.NOT_AUTHORIZED


async def test_a_peer_that_is_taken_off_the_list_before_its_ticket_comes() -> None:
    """Its session ends with its place on the list, so the exit knows no ticket of it."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        exit.authorize({BOB.peer_id: ""})
        await silent(Visit(exit, ALICE), first.known)


async def test_a_session_that_would_be_one_too_many() -> None:
    """It is refused with the reason, and its ticket is good for later."""
    async with open_exit(bounds={"sessions_per_peer": 1}) as exit:
        first = await Visit(exit, ALICE).admit()
        first.cut()
        await until(lambda: not any(entry.carriers for entry in exit.sessions))
        second = await Visit(exit, ALICE).admit()
        assert await refused(Visit(exit, ALICE), first.known) is CloseReason.LIMIT
        second.cut()
        await until(lambda: not any(entry.carriers for entry in exit.sessions))
        third = await Visit(exit, ALICE).join(first.known)
        assert await answers(third)
        third.cut()


async def test_an_exit_that_stops_lets_a_path_in_and_asks_it_to_leave() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        late, pipe = await joining(exit, first.known)
        exit.retire()
        stopping = spawn(exit.stop(3_600.0), "stop")
        pipe.release.set()
        await late.work
        await first.read(wire.GOAWAY)
        first.cut()
        await late.send(wire.encode_records(wire.ABANDON, 0, 1))
        await late.read(wire.GOAWAY)
        assert not stopping.done()
        await late.send(wire.encode_close(CloseReason.NORMAL))
        late.cut()
        await stopping


async def test_an_exit_that_has_stopped_while_a_path_joined() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        late, pipe = await joining(exit, first.known)
        first.cut()
        exit.sessions.end_all()
        pipe.release.set()
        await late.work
        assert pipe.closed and not len(exit.sessions)


# --- other versions ---


SENTENCE = "the client speaks version 1 of the protocol and this exit version 2; update the client"


class OldOffer:
    """What a client of version 1 offers."""

    versions, ciphers, features, pattern = (1,), (2,), 0, Pattern.SIGNED

    @staticmethod
    def encode() -> bytes:
        return b"\x01\x01" + b"\x01\x02" + bytes(4)


async def come_as_version_1(exit: Exit) -> None:
    visit = Visit(exit, ALICE)
    visit.handshake._offer = OldOffer  # type: ignore[assignment]
    with pytest.raises(HandshakeError, match="the exit speaks version 2"):
        await meet_exit(visit.pipe, visit.handshake, inline)
    assert await visit.is_closed()
    await visit.work


async def test_a_client_of_version_1_hears_which_side_to_update(caplog: pytest.LogCaptureFixture) -> None:
    """It gets a second flight that names this version, and the connection ends. The exit's log says the same."""
    async with open_exit() as exit:
        await come_as_version_1(exit)
        assert exit.listener.failed == {"no_handshake": 1}
    assert caplog.text.count(SENTENCE) == 1


async def test_clients_of_version_1_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async with open_exit() as exit:
        for _ in range(VERSIONS_LOGGED + 3):
            await come_as_version_1(exit)
    assert caplog.text.count(SENTENCE) == VERSIONS_LOGGED
