"""What a peer may hold at an exit: sessions, with a carrier and without, streams and sockets; and what is freed."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any, NoReturn

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.clock import clock
from cryprq_proxy.errors import CarrierError, CloseReason, PeerError, StreamReason
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.outbound.waiting_datagrams import DATAGRAM_OVERHEAD, NAME_OVERHEAD
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.settle import settle, until
from tests.support.visits import ALICE, BOB, NOWHERE, Visit, cut, held, open_exit, open_frame


async def test_no_more_sessions_of_a_peer_than_configured() -> None:
    async with open_exit(bounds={"sessions_per_peer": 2}) as exit:
        first, second = await Visit(exit, ALICE).admit(), await Visit(exit, ALICE).admit()
        with pytest.raises(PeerError) as caught:
            await Visit(exit, ALICE).admit()
        assert caught.value.reason is CloseReason.LIMIT
        bob = await Visit(exit, BOB).admit()
        again = await Visit(exit, ALICE).admit(second.known)
        assert again.resumed, "a session that goes on is no further one"
        await cut(exit, first)
        third = await Visit(exit, ALICE).admit()
        assert held(exit) == (2, 1)
        for visit in (bob, again, third):
            visit.cut()


async def test_the_sessions_of_a_peer_have_one_budget() -> None:
    async with open_exit() as exit:
        visits = [await Visit(exit, who).admit() for who in (ALICE, ALICE, BOB)]
        entries = list(exit.sessions)
        alices = [entry.session.turn for entry in entries if entry.peer == ALICE.peer_id]
        bobs = [entry.session.turn for entry in entries if entry.peer == BOB.peer_id]
        assert len(alices) == 2 and len(bobs) == 1
        assert alices[0] is alices[1] and bobs[0] is not alices[0]
        for visit in visits:
            visit.cut()


async def test_only_a_session_that_goes_on_is_spared_in_the_count() -> None:
    async with open_exit(bounds={"sessions_per_peer": 2}) as exit:
        first, second = await Visit(exit, ALICE).admit(), await Visit(exit, ALICE).admit()
        known = second.known
        known.session_id = bytes(len(known.session_id))
        with pytest.raises(PeerError) as caught:
            await Visit(exit, ALICE).admit(known)
        assert caught.value.reason is CloseReason.LIMIT
        assert held(exit) == (2, 0)
        for visit in (first, second):
            visit.cut()


async def test_of_sessions_without_a_carrier_the_oldest_end_beyond_the_configured_number() -> None:
    async with open_exit(bounds={"detached_sessions_per_peer": 2}) as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(3)]
        await cut(exit, visits[1], visits[0], visits[2])
        assert held(exit) == (0, 2)
        for old in (visits[0], visits[2]):
            assert (await Visit(exit, ALICE).admit(old.known)).resumed
        assert not (await Visit(exit, ALICE).admit(visits[1].known)).resumed, "it was cut first"


async def test_a_session_that_begins_takes_no_place_of_those_without_a_carrier() -> None:
    async with open_exit(bounds={"detached_sessions_per_peer": 2}) as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(2)]
        await cut(exit, *visits)
        third = await Visit(exit, ALICE).admit()
        assert held(exit) == (1, 2)
        third.cut()


async def test_where_no_session_is_kept_clients_come_in_all_the_same() -> None:
    async with open_exit(bounds={"detached_sessions_per_peer": 0}) as exit:
        first = await Visit(exit, ALICE).admit()
        assert held(exit) == (1, 0)
        second = await Visit(exit, ALICE).admit(first.known)
        assert second.resumed, "the old carrier was still there"
        first.cut()
        (entry,) = exit.sessions
        await until(lambda: list(entry.carriers) == [1])
        assert held(exit) == (1, 0)
        await cut(exit, second)
        assert held(exit) == (0, 0)


async def test_a_session_without_a_carrier_ends_after_its_time() -> None:
    async with open_exit(bounds={"resume_seconds": 0.05}) as exit:
        visit = await Visit(exit, ALICE).admit()
        await cut(exit, visit)
        await until(lambda: held(exit) == (0, 0))
        assert not (await Visit(exit, ALICE).admit(visit.known)).resumed


async def test_a_session_without_a_carrier_lives_while_its_lane_works() -> None:
    async with open_exit(bounds={"resume_seconds": 0.02}) as exit:
        visit = await Visit(exit, ALICE).admit()
        (entry,) = exit.sessions
        lane = entry.session.attach_lane(clock())
        lane.set_up(True, 0.05, "a test says so", clock())
        await cut(exit, visit)
        first = entry.expiry
        await until(lambda: entry.expiry is not first)
        assert held(exit) == (0, 1) and lane.carries
        assert entry.status(clock()).link == "down"  # whoever was there may be gone
        lane.alive(clock())
        assert entry.status(clock()).link == "up"
        lane.set_up(False, 0.0, "a test says so", clock())
        await until(lambda: held(exit) == (0, 0))


async def test_no_more_opens_of_a_peer_than_configured() -> None:
    async with open_exit(bounds={"opens_per_second": 2}) as exit:
        one, two = await Visit(exit, ALICE).admit(), await Visit(exit, ALICE).admit()
        await one.send(open_frame(1), open_frame(2))
        await until(lambda: exit.sessions.streams_total == 2)
        await two.send(open_frame(1))
        assert (await two.read(wire.REFUSED))[2] is StreamReason.LIMIT, "both sessions share the peer's bound"
        bob = await Visit(exit, BOB).admit()
        await bob.send(open_frame(1))
        assert (await bob.read(wire.REFUSED))[2] is not StreamReason.LIMIT
        for visit in (one, two, bob):
            visit.cut()


@pytest.mark.parametrize("protocol", [StreamProtocol.TCP, StreamProtocol.UDP])
async def test_a_stream_that_a_fault_ends_gives_its_descriptors_back(
    protocol: StreamProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cryprq_proxy.exit.sessions.UdpAssociation", fail)
    monkeypatch.setattr("cryprq_proxy.exit.targets.Targets.open", fail)
    async with open_exit() as exit:
        free = exit.sessions._descriptors.free
        visit = await Visit(exit, ALICE).admit()
        await visit.send(open_frame(1, protocol))
        reset: Any = (await visit.read(wire.RESET))[2]
        assert reset[0] is StreamReason.GENERAL
        assert exit.sessions._descriptors.free == free
        visit.cut()


async def test_a_fault_in_the_end_of_one_session_spares_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that were taken off the list stayed."""
    async with open_exit() as exit:
        one, two = await Visit(exit, ALICE).admit(), await Visit(exit, ALICE).admit()
        first, _ = exit.sessions

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(first.session, "close", fail)
        monkeypatch.setattr(first.carrier, "_finish", fail)
        exit.authorize({BOB.peer_id: ""})
        assert held(exit) == (0, 0)
        assert (await two.read(wire.CLOSE))[2] is CloseReason.NOT_AUTHORIZED
        with pytest.raises(CarrierError):
            await one.read(wire.CLOSE)
        two.cut()


async def test_what_bounds_the_opens_of_a_peer_goes_with_its_last_session() -> None:
    """Each peer that ever came would otherwise cost the exit some memory for good."""
    async with open_exit() as exit:
        alice, more, bob = [await Visit(exit, who).admit() for who in (ALICE, ALICE, BOB)]
        for visit in (alice, more, bob):
            await visit.send(open_frame(1))
        await until(lambda: exit.sessions.streams_total == 3)
        first, second, other = exit.sessions
        exit.sessions.end(first, CloseReason.NORMAL)
        assert exit.sessions._shares.keys() == {ALICE.peer_id, BOB.peer_id}, "the other session needs it"
        exit.sessions.end(second, CloseReason.NORMAL)
        assert exit.sessions._shares.keys() == {BOB.peer_id}
        sockets = exit.sessions._shares[BOB.peer_id].sockets
        exit.sessions.end(other, CloseReason.NORMAL)
        assert not exit.sessions._shares
        assert not sockets.is_open, "its descriptor too"


@pytest.mark.parametrize("protocol", [StreamProtocol.TCP, StreamProtocol.UDP])
async def test_what_targets_say_waits_for_the_next_turn_of_their_peer(protocol: StreamProtocol) -> None:
    """One peer's thousands of targets had one turn of the loop together, however long that took."""
    kind = socket.SOCK_STREAM if protocol is StreamProtocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as target:
        target.bind(("127.0.0.1", 0))
        here = Destination(*target.getsockname())
        async with open_exit() as exit:
            visit = await Visit(exit, ALICE).admit()
            turn = exit.sessions._shares[ALICE.peer_id].turn
            if protocol is StreamProtocol.TCP:
                target.listen()
                await visit.send(wire.encode_open(1, protocol, here))
                await visit.read(wire.OPENED)
                far = target.accept()[0]
            else:
                await visit.send(wire.encode_open(1, protocol, here), wire.encode_datagram(1, here, b"?"))
                await visit.read(wire.OPENED)
                far = target.dup()
                far.connect(target.recvfrom(1)[1])
            turn._soon, soon = lambda _: None, turn._soon
            turn.left = 0
            with far:
                far.send(b"x")
                await settle()
                (entry,) = exit.sessions
                assert (entry.session.scheduler.queued, entry.session.bytes_sent) == (0, 0), "nothing is read"
                turn._soon = soon
                turn.renew()
                await visit.read(wire.DATA if protocol is StreamProtocol.TCP else wire.DATAGRAM)
            visit.cut()


async def test_datagrams_of_all_sessions_of_a_peer_wait_for_names_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(*_: object) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(SystemResolver, "resolve", silent)
    waiting = wire.encode_datagram(1, Destination("slow.example", 9), b"?")
    waiting_one = NAME_OVERHEAD + DATAGRAM_OVERHEAD + 1
    async with open_exit() as exit:
        for _ in range(2):
            visit = await Visit(exit, ALICE).admit()
            await visit.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE), waiting)
            await visit.read(wire.OPENED)
        await until(lambda: exit.sessions._shares[ALICE.peer_id].held.together == waiting_one * 2)


async def test_what_has_ended_is_freed_without_a_collection_of_garbage() -> None:
    """Each ended stream waited for one, and a collection stops the exit for as long as it has many others."""
    found: list[object] = []

    async def come_and_go(exit: Exit, server: socket.socket) -> None:
        visit = await Visit(exit, ALICE).admit()
        here, tcp, udp = Destination(*server.getsockname()), StreamProtocol.TCP, StreamProtocol.UDP
        for stream in range(1, 5):
            await visit.send(wire.encode_open(stream, tcp, here))
            await visit.read(wire.OPENED)
            server.accept()[0].close()
        await visit.send(wire.encode_open(5, udp, here), wire.encode_open(6, tcp, NOWHERE))
        await visit.read(wire.REFUSED)
        await visit.send(
            wire.encode_reset(1, StreamReason.CANCELLED, 0),
            wire.encode_fin(2, 0),
        )
        await until(lambda: all(not entry.session.streams.keys() & {1, 2, 6} for entry in exit.sessions))
        visit.cut()
        await until(lambda: not list(exit.sessions))
        await settle()

    with socket.create_server(("127.0.0.1", 0)) as server:
        async with open_exit(bounds={"detached_sessions_per_peer": 0}) as exit:
            await come_and_go(exit, server)
            gc.collect()
            gc.disable()
            try:
                await come_and_go(exit, server)
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                found.extend(gc.garbage)
            finally:
                gc.set_debug(0)
                gc.enable()
                gc.garbage.clear()
    ours = [thing for thing in found if type(thing).__module__.startswith("cryprq_proxy")]
    assert not ours


async def test_the_resolver_is_for_clients_that_have_packets() -> None:
    async with open_exit() as exit:
        alice = await Visit(exit, ALICE).admit()
        await alice.send(open_frame(1, StreamProtocol.RESOLVER))
        assert (await alice.read(wire.REFUSED))[2] is StreamReason.NOT_ALLOWED
        alice.cut()
