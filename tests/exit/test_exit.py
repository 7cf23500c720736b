"""The verdict on a peer, which session goes on, and the status. What a peer may hold: test_sessions.py."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.lane.packet_link import PacketLink
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.crypto.payloads import Feature
from cryprq_proxy.errors import CarrierError, CloseReason, CryprqError, PeerError, StreamReason
from cryprq_proxy.exit import exit as exit_module
from cryprq_proxy.exit.exit import REFUSAL_SECONDS, REFUSALS_LOGGED
from cryprq_proxy.exit.peer_session import IN_FLIGHT_SECONDS, MOST_PATHS, PeerSession
from cryprq_proxy.exit.providers import Invites, NoPacketNetwork, Redeemed
from cryprq_proxy.session import wire
from cryprq_proxy.session.status import Totals
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.background import PATIENCE
from tests.support.settle import settle, until
from tests.support.visits import ALICE, BOB, HeldPipe, Visit, cut, held, open_exit, open_frame

# --- who comes in ---


async def test_a_listed_peer_comes_in_and_others_do_not() -> None:
    async with open_exit(BOB) as exit:
        with pytest.raises(PeerError) as caught:
            await Visit(exit, ALICE).admit()
        assert caught.value.reason is CloseReason.NOT_AUTHORIZED
        assert held(exit) == (0, 0)
        bob = await Visit(exit, BOB).admit()
        assert held(exit, BOB) == (1, 0)
        bob.cut()


async def test_the_sessions_of_a_revoked_peer_end_with_the_reason() -> None:
    async with open_exit() as exit:
        alice, bob = await Visit(exit, ALICE).admit(), await Visit(exit, BOB).admit()
        detached = await Visit(exit, ALICE).admit()
        await cut(exit, detached)
        exit.authorize({BOB.peer_id: ""})
        assert (await alice.read(wire.CLOSE))[2] is CloseReason.NOT_AUTHORIZED
        assert held(exit) == (0, 0)
        assert held(exit, BOB) == (1, 0)
        with pytest.raises(PeerError):
            await Visit(exit, ALICE).admit(detached.known)
        bob.cut()


async def test_an_exit_that_stops_lets_no_peer_in() -> None:
    async with open_exit() as exit:
        alice = await Visit(exit, ALICE).admit()
        stopping = spawn(exit.stop(0.0), "stop")
        assert (await alice.read(wire.CLOSE))[2] is CloseReason.SHUTTING_DOWN
        with pytest.raises(PeerError) as caught:
            await Visit(exit, BOB).admit()
        assert caught.value.reason is CloseReason.SHUTTING_DOWN
        alice.cut()
        await stopping


async def test_an_exit_that_retires_asks_all_its_peers_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when the last of them has left, without any waiting, and lets nobody in meanwhile."""
    now = 1000.0
    for module in ("sessions", "peer_session"):
        monkeypatch.setattr(f"cryprq_proxy.exit.{module}.clock", lambda: now)
    async with open_exit() as exit:
        alice, bob = await Visit(exit, ALICE).admit(), await Visit(exit, BOB).admit()
        (address,) = await exit.start()
        exit.retire()
        now += IN_FLIGHT_SECONDS
        for visit in (alice, bob):
            await visit.read(wire.GOAWAY)
            await visit.send(open_frame(1))
            assert (await visit.read(wire.REFUSED))[2] is StreamReason.SHUTTING_DOWN
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
        stopping = spawn(exit.stop(3_600.0), "stop")
        await alice.send(wire.encode_close(CloseReason.NORMAL))
        await until(lambda: held(exit) == (0, 0))
        alice.cut()
        await settle()
        assert not stopping.done()
        bob.cut()
        await stopping
        assert held(exit, BOB) == (0, 0), "nobody can resume it"


async def test_a_stream_that_crosses_the_request_to_leave_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent behind its OPEN could go to no other exit. The time begins with each carrier that is asked, since
    what was in flight on a lost one comes by the next."""
    now = 1000.0
    for module in ("sessions", "peer_session"):
        monkeypatch.setattr(f"cryprq_proxy.exit.{module}.clock", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        request = wire.encode_open(1, StreamProtocol.TCP, Destination(*server.getsockname()))
        data = wire.encode_data_header(wire.DATA, 1, 0) + b"once"
        async with open_exit() as exit:
            alice, bob = await Visit(exit, ALICE).admit(), await Visit(exit, BOB).admit()
            bob.cut()
            await until(lambda: held(exit, BOB) == (0, 1))
            exit.retire()
            for visit in (alice, Visit(exit, BOB)):
                if visit is not alice:
                    now += 2 * IN_FLIGHT_SECONDS
                    assert (await visit.admit(bob.known)).resumed
                now += IN_FLIGHT_SECONDS / 2
                await visit.send(request)
                await visit.send(data)
                await visit.read(wire.OPENED)
                with server.accept()[0] as target:
                    target.settimeout(PATIENCE)
                    assert await asyncio.to_thread(target.recv, 4) == b"once"
                visit.cut()


async def test_an_exit_advertises_its_address_with_each_carrier() -> None:
    here = Destination("192.0.2.7", 4433)
    async with open_exit(settings={"advertise": here}) as exit:
        first = await Visit(exit, ALICE).admit()
        assert (await first.read(wire.ADVERTISE))[2] == here
        again = await Visit(exit, ALICE).admit(first.known)
        assert again.resumed
        assert (await again.read(wire.ADVERTISE))[2] == here
        for visit in (first, again):
            visit.cut()


async def test_a_session_that_is_resumed_while_the_exit_stops_is_asked_to_leave_too() -> None:
    """Its handshake had begun before."""
    async with open_exit() as exit:
        first, other = await Visit(exit, ALICE).admit(), await Visit(exit, BOB).admit()
        again = Visit(exit, ALICE)
        exit.retire()
        stopping = spawn(exit.stop(3_600.0), "stop")
        await first.read(wire.GOAWAY)
        await again.admit(first.known)
        assert again.resumed
        await again.read(wire.GOAWAY)
        other.cut()
        await until(lambda: held(exit, BOB) == (0, 1))
        await settle()
        assert not stopping.done()
        await again.send(wire.encode_close(CloseReason.NORMAL))
        for visit in (first, again):
            visit.cut()
        await stopping


async def test_what_has_not_left_ends_with_the_grace() -> None:
    async with open_exit() as exit:
        alice = await Visit(exit, ALICE).admit()
        await exit.stop(0.05)
        await alice.read(wire.GOAWAY)
        assert (await alice.read(wire.CLOSE))[2] is CloseReason.SHUTTING_DOWN


async def test_lines_about_refused_peers_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("cryprq_proxy.exit.exit.clock", lambda: now)
    async with open_exit(BOB) as exit:

        async def refused(times: int) -> int:
            """How many lines the log has after so many more refusals."""
            for _ in range(times):
                with pytest.raises(PeerError):
                    await Visit(exit, ALICE).admit()
            return sum("refused" in record.getMessage() for record in caplog.records)

        assert await refused(REFUSALS_LOGGED + 2) == REFUSALS_LOGGED
        now += REFUSAL_SECONDS
        assert await refused(2) == REFUSALS_LOGGED + 1
        assert "2 other refusals were not logged" in caplog.text


class Invited:
    """Invites that let in whoever comes with one secret, and write down each use."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.asked: list[PeerId] = []

    async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
        self.asked.append(peer)
        return (Redeemed.NOW if secret == self.secret else Redeemed.NOT), "alice"


async def test_an_invite_lists_its_peer_and_is_asked_for_nobody_else() -> None:
    invites = Invited(bytes(16))
    async with open_exit(BOB, invites=invites) as exit:
        with pytest.raises(PeerError):
            await Visit(exit, ALICE).admit(invite=bytes(range(16)))
        await Visit(exit, ALICE).admit(invite=bytes(16))
        await Visit(exit, ALICE).admit()
        await Visit(exit, BOB).admit()
        assert invites.asked == [ALICE.peer_id] * 2


async def test_an_invented_secret_is_refused_to_a_listed_peer_too() -> None:
    async with open_exit(BOB, invites=Invited(bytes(16))) as exit:
        with pytest.raises(PeerError) as refused:
            await Visit(exit, BOB).admit(invite=bytes(range(16)))
        assert refused.value.reason is CloseReason.NOT_AUTHORIZED
        await Visit(exit, BOB).admit(invite=bytes(16))


async def test_a_secret_that_was_used_before_puts_nobody_on_the_list() -> None:
    """Its peer may have been revoked since."""

    class Used(Invites):
        async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
            return Redeemed.BEFORE, "alice"

    async with open_exit(BOB, invites=Used()) as exit:
        await Visit(exit, BOB).admit(invite=bytes(16))
        for _ in range(2):
            with pytest.raises(PeerError):
                await Visit(exit, ALICE).admit(invite=bytes(16))


# --- its status ---


async def test_the_status_of_many_sessions_is_read_a_turn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them took 13 to 21 ms in one turn of the loop, and the sums over 4,000 another 16 ms."""
    monkeypatch.setattr(exit_module, "TOLD_AT_ONCE", 2)
    async with open_exit(bounds={"sessions_per_peer": 8}) as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(5)]
        reading = spawn(exit.status(), "status")
        read: list[int] = []
        summed: list[int] = []
        monkeypatch.setattr(PeerSession, "status", lambda entry, now: read.append(1))
        monkeypatch.setattr(Totals, "add", lambda totals, session: summed.append(1))
        turns = 0
        while not reading.done():
            before = len(read)
            await asyncio.sleep(0)
            assert len(read) - before <= 2
            assert len(summed) == len(read)
            turns += 1
        assert turns >= 3
        assert len(reading.result().sessions) == len(exit.sessions) == exit.counts()[0] == 5
        for visit in visits:
            visit.cut()


async def test_a_session_that_ends_while_the_status_is_read_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the counters of the metrics would fall with the next status, and seem to begin anew."""
    monkeypatch.setattr(exit_module, "TOLD_AT_ONCE", 1)
    async with open_exit() as exit:
        visits = [await Visit(exit, ALICE).admit() for _ in range(3)]
        for entry in exit.sessions:
            entry.session.table.refused[StreamReason.LIMIT] += 1
        reading = spawn(exit.status(), "status")
        await asyncio.sleep(0)
        exit.authorize({})
        assert len(exit.sessions) == 0
        assert (await reading).streams_refused == (await exit.status()).streams_refused == {"limit": 3}
        for visit in visits:
            visit.cut()


# --- which session goes on ---


async def test_a_lost_carrier_is_followed_by_another_one() -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        await cut(exit, first)
        second = await Visit(exit, ALICE).admit(first.known)
        assert second.resumed
        assert held(exit) == (1, 0)
        second.cut()


async def answers(visit: Visit) -> bool:
    """Whether the exit still hears the visit's path."""
    try:
        await visit.send(wire.encode_number(wire.PING, 7))
        return (await visit.read(wire.PONG))[2] == 7
    except CarrierError:
        return False


async def test_a_new_carrier_leaves_the_one_before_it() -> None:
    """The client says when a path is over: perhaps both are of use."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        second = await Visit(exit, ALICE).join(first.known)
        assert await answers(first) and await answers(second)
        assert held(exit) == (1, 0)
        for visit in (first, second):
            visit.cut()


async def test_a_carrier_whose_path_the_client_has_left_is_closed() -> None:
    """The exit would hold it until its silence is noticed, and once more for each change of the client's network."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        second = await Visit(exit, ALICE).join(first.known)
        (entry,) = exit.sessions
        await second.send(wire.encode_records(wire.ABANDON, 0, 1))
        with pytest.raises(CarrierError):
            await first.read(wire.CLOSE)
        assert list(entry.carriers) == [1]
        assert await answers(second)
        second.cut()


async def test_no_more_carriers_of_a_session_than_the_bound() -> None:
    """One more takes the place of the oldest that is not in use."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        await first.send(wire.encode_prefer(1, 0))
        numbers = range(1, MOST_PATHS + 3)
        visits = [first, *[await Visit(exit, ALICE).join(first.known, path) for path in numbers]]
        (entry,) = exit.sessions
        assert len(entry.carriers) == MOST_PATHS
        assert list(entry.carriers) == [0, *range(4, MOST_PATHS + 3)]
        assert [await answers(visit) for visit in visits] == [True] + [False] * 3 + [True] * (MOST_PATHS - 1)
        for visit in visits:
            visit.cut()


@pytest.mark.parametrize("path", [0, 1, 2])
async def test_a_claim_for_a_path_that_was_there_before_gets_no_answer(path: int) -> None:
    """It neither joins nor begins: the session stays with its newer path."""
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        second = await Visit(exit, ALICE).admit(first.known, 2)
        with pytest.raises(CarrierError):
            await Visit(exit, ALICE).admit(first.known, path)
        assert await answers(second)
        assert held(exit) == (1, 0)
        for visit in (first, second):
            visit.cut()


async def test_a_session_goes_on_for_its_own_peer_with_its_own_secret_only() -> None:
    async with open_exit() as exit:
        alice = await Visit(exit, ALICE).admit()
        known = alice.known
        bob = await Visit(exit, BOB).admit(known)
        assert not bob.resumed and held(exit) == held(exit, BOB) == (1, 0)
        known.secret = bytes(len(known.secret))
        again = await Visit(exit, ALICE).admit(known, 2)
        assert not again.resumed
        assert held(exit) == held(exit, BOB) == (1, 0), "whoever has the first one is not its peer"
        for visit in (alice, bob, again):
            visit.cut()


@pytest.mark.parametrize("short", [False, True])
async def test_a_path_that_is_overtaken_while_its_verdict_is_written_becomes_nothing(short: bool) -> None:
    async with open_exit() as exit:
        first = await Visit(exit, ALICE).admit()
        slow = Visit(exit, ALICE, pipe=HeldPipe)
        assert isinstance(slow.theirs, HeldPipe)
        late = spawn(slow.join(first.known, 1) if short else slow.admit(first.known, 1), "late")
        await slow.theirs.reached.wait()
        newer = await Visit(exit, ALICE).admit(first.known, 2)
        slow.theirs.release.set()
        await slow.work
        assert slow.theirs.closed
        assert await answers(newer)
        assert held(exit) == (1, 0)
        await late
        for visit in (first, newer):
            visit.cut()


async def test_a_session_that_ends_while_its_verdict_is_written_gets_no_carrier() -> None:
    async with open_exit() as exit:
        slow = Visit(exit, ALICE, pipe=HeldPipe)
        assert isinstance(slow.theirs, HeldPipe)
        late = spawn(slow.admit(), "late")
        await slow.theirs.reached.wait()
        exit.authorize({})
        slow.theirs.release.set()
        await slow.work
        assert slow.theirs.closed
        assert held(exit) == (0, 0)
        await late


async def test_a_peer_that_acknowledges_what_was_never_sent_loses_its_session() -> None:
    async with open_exit() as exit:
        liar = await Visit(exit, ALICE).admit()
        await liar.send(wire.encode_records(wire.ACK, 0, 99))
        assert (await liar.read(wire.CLOSE))[2] is CloseReason.RESUME
        await until(lambda: held(exit) == (0, 0))
        liar.cut()


# --- packets ---


class FakeNetwork(NoPacketNetwork):
    features = Feature.PACKETS

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.links: list[PacketLink] = []

    def join(self, peer: PeerId, link: PacketLink, shown: str) -> None:
        if self.full:
            raise CryprqError("no address is free")
        self.links.append(link)
        link.assign(bytes([198, 18, 0, 2]), bytes(16))

    def leave(self, link: PacketLink) -> None:
        if link in self.links:
            self.links.remove(link)


@pytest.mark.parametrize(("full", "address"), [(False, bytes([198, 18, 0, 2])), (True, bytes(4))])
async def test_a_client_with_packets_hears_its_addresses(full: bool, address: bytes) -> None:
    network: Any = FakeNetwork(full=full)
    async with open_exit(network=network) as exit:
        await exit.start()
        alice = await Visit(exit, ALICE, features=Feature.PACKETS).admit()
        assert (await alice.read(wire.NETWORK))[2] == (1, address, bytes(16))
        assert len(network.links) == (not full)
        for link in network.links:
            link.assign(bytes([198, 18, 0, 3]), bytes([1] * 16))
            assert (await alice.read(wire.NETWORK))[2] == (2, bytes([198, 18, 0, 3]), bytes([1] * 16))
        exit.authorize({})
        assert network.links == [], "its link left with the session"
