"""What one peer may cause in one turn of the loop, and what it may not cause at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import control_rates, frame_reader, retention, wire
from cryprq_proxy.session.acknowledgements import receive_abandon, receive_ack
from cryprq_proxy.session.path import FILL_MINIMUM, SessionPath
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import StreamHandler
from cryprq_proxy.session.turns import (
    DROPS_PER_UNIT,
    END_WORK,
    FRAME_COSTS,
    FRAME_WORK,
    RECORD_WORK,
    TURN_WORK,
    TurnBudget,
)
from cryprq_proxy.session.wire import MAX_DATA, StreamProtocol
from tests.support.links import LaterOffload, Link

NEAR = Destination("127.0.0.1", 9)
MANY = 16_000
type Flood = Callable[[int], bytes]


class Turns:
    """The turns of a loop: what was asked for with `soon` is called in the next one."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def next(self) -> None:
        due, self.soon = self.soon, []
        for callback in due:
            callback()


def opening(number: int) -> bytes:
    return wire.encode_open(1000 + number, StreamProtocol.TCP, NEAR)


def open_and_reset(number: int) -> bytes:
    return opening(number) + wire.encode_reset(1000 + number, StreamReason.CANCELLED, 0)


def open_and_finish(number: int) -> bytes:
    return opening(number) + wire.encode_fin(1000 + number, 0)


FLOODS: dict[str, Flood] = {
    "OPEN": opening,
    "OPEN and FIN": open_and_finish,
    "OPEN and RESET": open_and_reset,
    "FIN that has come": lambda _: wire.encode_fin(1, 0),
    "FIN of a dead stream": lambda _: wire.encode_fin(3, 0),
    "RESET of a dead stream": lambda _: wire.encode_reset(3, StreamReason.GENERAL, 0),
    "DATAGRAM": lambda _: wire.encode_datagram(2, NEAR, b""),
    "DATAGRAM of a dead stream": lambda _: wire.encode_datagram(3, NEAR, b""),
    "WINDOW": lambda number: wire.encode_window(1, 65_536 + number),
    "WINDOW of a dead stream": lambda _: wire.encode_window(3, 1),
    "OPEN that has come": lambda _: wire.encode_open(1, StreamProtocol.TCP, NEAR),
    "ABANDON of a dead path": lambda _: wire.encode_records(wire.ABANDON, 99, 0),
    "DATA": lambda number: wire.encode_data_header(wire.DATA, 1, number) + b"x",
    "DATA that has come": lambda _: wire.encode_data_header(wire.DATA, 1, 0) + b"x",
    "DATA of a dead stream": lambda _: wire.encode_data_header(wire.DATA, 3, 0) + b"x",
    "DATA behind a hole": lambda number: wire.encode_data_header(wire.DATA, 1, 1 + number) + b"x",
    "DATA with holes": lambda number: wire.encode_data_header(wire.DATA, 1, 1 + number * 2 % 2_000) + b"x",
}


def prepared() -> Link:
    """A link whose exit has stream 1 of bytes, stream 2 of datagrams, and a third one that has ended."""
    link = Link()
    link.pair()
    link.open(protocol=StreamProtocol.UDP)
    one, other = link.pair()
    for app in (one, other):
        app.say(b"", finish=True)
    link.quiesce()
    link.exit.turn.renew()
    assert sorted(link.exit.streams) == [1, 2] and not link.exit.retention.kept
    return link


def exit_path(link: Link) -> SessionPath:
    return link.carrier.paths[1]


def packed(link: Link, flood: Flood, number: int, joined: int) -> bytes:
    """The frames in records of about `joined` bytes, as the client seals them."""
    records, plain = bytearray(), bytearray()
    sealer = link.carrier.paths[0].keys.sealer
    for index in range(number):
        plain += flood(index)
        if len(plain) >= joined:
            records += sealer.seal(bytes(plain))
            plain.clear()
    if plain:
        records += sealer.seal(bytes(plain))
    return bytes(records)


class Counted:
    """Counts the frames that are taken out of joined records, and the records that are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: SessionPath) -> None:
        self._keys = path.keys
        self._records = path.keys.opener.records
        self._kinds: list[int] = []
        real = frame_reader.read_frames

        def read_frames(plaintext: bytes) -> Iterator[wire.Frame]:
            for frame in real(plaintext):
                self._kinds.append(frame[0])
                yield frame

        monkeypatch.setattr(frame_reader, "read_frames", read_frames)

    def take(self) -> tuple[int, int, int]:
        """Records, frames, and the least work that these were, since the last call."""
        opened = self._keys.opener.records
        records, self._records = opened - self._records, opened
        kinds, self._kinds = self._kinds, []
        return records, len(kinds), records * RECORD_WORK + sum(FRAME_COSTS[kind] for kind in kinds)


@pytest.mark.parametrize("joined", [1, 130_000], ids=["a record each", "full records"])
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_taken_a_turn_at_a_time(
    monkeypatch: pytest.MonkeyPatch, flood: Flood, joined: int
) -> None:
    """524 KiB of small frames are what one wake-up reads. They took 30 to 1,200 ms of it."""
    link = prepared()
    exit, path = link.exit, exit_path(link)
    if flood(0)[0] == wire.DATA:
        joined = 1
    data = memoryview(packed(link, flood, MANY, joined))
    counted = Counted(monkeypatch, path)
    turns, largest = 0, max(FRAME_COSTS)
    while data or exit.turn.left <= 0:
        exit.turn.renew()
        data = data[path.receive(data, link.carrier.now) :]
        records, frames, work = counted.take()
        assert records or frames or not data
        assert work <= TURN_WORK + RECORD_WORK + largest
        turns += 1
    assert turns >= MANY * min(FRAME_COSTS) // TURN_WORK
    assert exit.closed is None


def test_a_record_is_left_in_the_middle_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    link = prepared()
    app = link.served[2]
    payloads = [number.to_bytes(2) for number in range(5_000)]
    record = packed(link, lambda number: wire.encode_datagram(2, NEAR, payloads[number]), 5_000, 130_000)
    path = exit_path(link)
    assert path.receive(memoryview(record), link.carrier.now) == len(record)
    taken = len(app.datagrams)
    assert 0 < taken <= TURN_WORK // FRAME_COSTS[wire.DATAGRAM] + 1
    assert path.receive(memoryview(b""), link.carrier.now) == 0, "nothing before the next turn"
    assert len(app.datagrams) == taken
    while len(app.datagrams) < len(payloads):
        link.exit.turn.renew()
        path.receive(memoryview(b""), link.carrier.now)
    assert app.datagrams == [(NEAR, payload) for payload in payloads]


def test_what_was_left_is_lost_with_the_path_and_comes_again() -> None:
    """The record of the last frame that was taken is not counted as received."""
    link = prepared()
    apps = [link.open() for _ in range(1_000)]
    path = link.carrier.to_right
    while path.pull(link.carrier.now):
        link.client.turn.renew()
    path.deliver(link.carrier.now)
    assert 2 < len(link.exit.streams) < 100
    assert exit_path(link).received == exit_path(link).keys.records_received - 1
    link.resume()
    link.quiesce()
    assert len(link.exit.streams) == 1_002
    assert all(app.events == [("opened",)] for app in apps)


def test_a_peers_sessions_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight sessions of one peer are no eight budgets."""
    links = [prepared() for _ in range(8)]
    shared = TurnBudget(Turns().soon.append)
    total = 0
    for link in links:
        link.exit.turn = shared
        counted = Counted(monkeypatch, exit_path(link))
        exit_path(link).receive(memoryview(packed(link, opening, 500, 1)), link.carrier.now)
        total += counted.take()[2]
    assert total <= TURN_WORK + RECORD_WORK + FRAME_COSTS[wire.OPEN]


def test_those_that_wait_for_a_turn_go_on_in_their_order() -> None:
    turns, order = Turns(), ""
    budget = TurnBudget(lambda callback: turns.soon.append(callback))

    def user(name: str) -> Callable[[], None]:
        def take() -> None:
            nonlocal order
            order += name
            budget.spend(TURN_WORK - 1 if name == "b" else TURN_WORK)
            budget.wait(take)

        return take

    for name in "abc":
        budget.wait(user(name))
    assert order == "" and len(turns.soon) == 1
    seen = []
    for _ in range(5):
        before = order
        turns.next()
        seen.append(order[len(before) :])
    assert seen == ["a", "bc", "a", "bc", "a"]


def test_a_budget_is_asked_for_again_only_when_half_of_it_is_spent() -> None:
    turns = Turns()
    budget = TurnBudget(lambda callback: turns.soon.append(callback))
    budget.spend(TURN_WORK // 2)
    assert turns.soon == []
    budget.spend(1)
    budget.spend(1)
    assert turns.soon == [budget.renew]
    turns.next()
    assert budget.left == TURN_WORK and turns.soon == []


def test_a_fault_in_one_that_waited_does_not_keep_the_others() -> None:
    turns, served = Turns(), []
    budget = TurnBudget(lambda callback: turns.soon.append(callback))

    def fault() -> None:
        raise ZeroDivisionError

    budget.wait(fault)
    budget.wait(lambda: served.append(1))
    with pytest.raises(ZeroDivisionError):
        turns.next()
    turns.next()
    assert served == [1]


# --- what the peer makes us send -----------------------------------------------------------------------------------


def fill(path: SessionPath, now: float) -> int:
    return path.fill(memoryview(bytearray(FILL_MINIMUM + 262_144)), 262_144, now)


def test_many_small_frames_leave_a_turn_at_a_time() -> None:
    """Answers that the peer did not read for a while, or after a loss: 43,000 of them fit one buffer."""
    link = prepared()
    exit, path = link.exit, exit_path(link)
    exit.turn.renew()
    for _ in range(30_000):
        exit.send(wire.encode_reset(1, StreamReason.GENERAL, 0))
    assert fill(path, link.carrier.now) > 0
    assert 0 < len(path.log.units) <= TURN_WORK // FRAME_WORK
    woken = []
    path.ready = lambda: woken.append(1)
    exit.turn.renew()
    fill(path, link.carrier.now)
    assert woken == [1], "there is more to send"


def test_many_windows_leave_a_turn_at_a_time() -> None:
    link = Link()
    for _ in range(3 * TURN_WORK):
        link.open()
    link.quiesce()
    exit, path = link.exit, exit_path(link)
    for stream in exit.streams.values():
        exit.table.window_due(stream)
    due = exit.table.windows_due
    assert len(due) == 3 * TURN_WORK
    exit.turn.renew()
    fill(path, link.carrier.now)
    assert 0 < 3 * TURN_WORK - len(due) <= TURN_WORK
    for _ in range(3):
        exit.turn.renew()
        fill(path, link.carrier.now)
    assert not due


class Idle(StreamHandler):
    """A stream whose socket has nothing to read."""

    asked = 0

    def writable(self) -> None:
        Idle.asked += 1


def test_many_streams_that_wait_are_asked_a_turn_at_a_time() -> None:
    link = Link()
    for _ in range(2_000):
        link.open()
    link.quiesce()
    Idle.asked = 0
    for stream in link.exit.streams.values():
        stream.handler = Idle()
        stream.wait_for_turn()
    link.exit.turn.renew()
    fill(exit_path(link), link.carrier.now)
    assert 0 < Idle.asked <= TURN_WORK // 4
    for _ in range(10):
        link.exit.turn.renew()
        fill(exit_path(link), link.carrier.now)
    assert Idle.asked == 2_000


def kept_at_the_exit(frames: int) -> tuple[Turns, Link]:
    """A link whose exit has sent so many frames that are not acknowledged, and whose next turn has begun."""
    turns = Turns()
    link = Link(soon=lambda callback: turns.soon.append(callback))
    link.quiesce()
    exit = link.exit
    for _ in range(frames):
        exit.send(wire.encode_reset(1, StreamReason.GENERAL, 0))
    while exit.retention.waits:
        exit.turn.renew()
        fill(exit_path(link), link.carrier.now)
    assert len(exit_path(link).log.units) == frames
    turns.soon.clear()
    exit.turn.renew()
    return turns, link


def freed_by_turns(turns: Turns, session: Session) -> list[int]:
    """How many frames each turn frees, until none is asked for."""
    freed = []
    while turns.soon:
        before = session.retention.dropped
        turns.next()
        freed.append(session.retention.dropped - before)
    return freed


def test_an_acknowledgement_of_very_many_frames_frees_them_a_turn_at_a_time() -> None:
    turns, link = kept_at_the_exit(20_000)
    exit, path = link.exit, exit_path(link)
    for _ in range(5):
        receive_ack(exit, path, 0, path.keys.records_sent)
    assert 20_000 - len(path.log.units) == retention.DROPS
    assert max(freed_by_turns(turns, exit), default=0) <= retention.DROPS
    assert exit.retention.kept == 0


def test_many_acknowledgements_together_free_a_turns_worth_at_a_time() -> None:
    """Each of them is bounded, and one record holds thousands."""
    turns, link = kept_at_the_exit(40_000)
    exit, path = link.exit, exit_path(link)
    for records in range(path.log.acknowledged, path.keys.records_sent + 1):
        receive_ack(exit, path, 0, records)
    worth = TURN_WORK * DROPS_PER_UNIT + retention.DROPS
    assert 4_000 < 40_000 - len(path.log.units) <= worth
    assert max(freed_by_turns(turns, exit), default=0) <= worth
    assert exit.retention.kept == 0


def test_what_a_lost_path_had_brought_is_freed_a_turn_at_a_time() -> None:
    """The peer says how much it has received on it, and waits for the rest."""
    turns, link = kept_at_the_exit(20_000)
    exit, path = link.exit, exit_path(link)
    last = [unit for unit in path.log.units if unit.record == path.log.units[-1].record]
    path.lost(link.carrier.now)
    receive_abandon(exit, 0, last[0].record)
    freed = [exit.retention.dropped, *freed_by_turns(turns, exit)]
    assert max(freed) <= retention.DROPS and sum(freed) == 20_000 - len(last)
    [log] = exit.retention.lost_logs(0)
    assert list(log.units) == last


def test_what_a_session_kept_is_freed_a_turn_at_a_time() -> None:
    """A peer that acknowledges nothing makes us keep 250,000 frames, and then we end the session: it took 58 ms."""
    turns = Turns()
    link = Link(soon=lambda callback: turns.soon.append(callback))
    link.quiesce()
    exit = link.exit
    for _ in range(20_000):
        exit.send(wire.encode_reset(1, StreamReason.GENERAL, 0))
    exit.turn.renew()
    fill(exit_path(link), link.carrier.now)
    turns.soon.clear()
    exit.turn.renew()
    exit.close(CloseReason.LIMIT)
    assert exit.retention.dropped == retention.DROPS
    assert max(freed_by_turns(turns, exit), default=0) <= retention.DROPS
    assert exit.retention.kept == 0 and link.budgets[1].used == 0


def test_very_many_streams_end_with_their_session_a_turn_at_a_time() -> None:
    """16,384 sockets took 400 ms to close."""
    turns = Turns()
    link = Link(soon=lambda callback: turns.soon.append(callback))
    apps = [link.open() for _ in range(1_000)]
    link.carrier.settle()
    turns.soon.clear()
    link.client.turn.renew()
    link.client.close(CloseReason.NORMAL)
    assert not link.client.streams

    def ended() -> int:
        return sum(app.ended for app in apps)

    assert 0 < ended() <= TURN_WORK // END_WORK
    while turns.soon:
        before = ended()
        turns.next()
        assert ended() - before <= TURN_WORK // END_WORK + 1
    assert ended() == 1_000


# --- rates ---------------------------------------------------------------------------------------------------------


def flooded(victim: Session, link: Link, frame: bytes, most: int) -> int:
    """How many of these frames `victim` takes, at one moment."""
    for number in range(most):
        try:
            link.forge(victim, frame)
        except PeerError as error:
            assert error.reason is CloseReason.LIMIT and "too many" in str(error)
            return number
    return most


ADDRESS = Destination("192.0.2.1", 1)
CONTROL: dict[str, bytes] = {
    "PING": wire.encode_number(wire.PING, 1),
    "PONG": wire.encode_number(wire.PONG, 1),
    "LANE": wire.encode_lane(9, 1),
    "ACK of nothing new": wire.encode_records(wire.ACK, 0, 0),
}
OF_THE_EXIT: dict[str, bytes] = CONTROL | {
    "STREAMS": wire.encode_number(wire.STREAMS, 1),
    "REKEY_PLEASE": wire.encode_epoch(wire.REKEY_PLEASE, 1),
    "REKEY_ANSWER": wire.encode_part(wire.REKEY_ANSWER, 0, 0, b"late"),
    "GOAWAY": wire.encode_bare(wire.GOAWAY),
    "ADVERTISE": wire.encode_advertise(ADDRESS),
}
OF_THE_CLIENT: dict[str, bytes] = CONTROL | {
    "REKEY": wire.encode_part(wire.REKEY, 0, 0, b"late"),
    "PREFER": wire.encode_prefer(0, 0),
}


@pytest.mark.parametrize(
    ("side", "frame"),
    [
        *(pytest.param("client", frame, id=f"client, {name}") for name, frame in OF_THE_EXIT.items()),
        *(pytest.param("exit", frame, id=f"exit, {name}") for name, frame in OF_THE_CLIENT.items()),
    ],
)
def test_a_flood_of_control_frames_ends_the_session(side: str, frame: bytes) -> None:
    link = Link(offload=LaterOffload())
    for session in (link.client, link.exit):
        session.packet_link.announced = lambda number, index: None  # type: ignore[method-assign]
    link.quiesce()
    victim: Session = getattr(link, side)
    link.carrier.now += 60
    assert flooded(victim, link, frame, 1_000) == control_rates.CONTROL_BURST


@pytest.mark.parametrize(
    ("side", "frame"),
    [
        ("client", wire.encode_network(1, bytes(4), bytes(16))),
        ("exit", wire.encode_taken(1, [ip_network("10.0.0.0/8")])),
    ],
)
def test_a_flood_of_addresses_ends_the_session(side: str, frame: bytes) -> None:
    link = Link()
    for session in (link.client, link.exit):
        session.packet_link.network_received = lambda serial, ipv4, ipv6: None  # type: ignore[method-assign]
        session.packet_link.taken_received = lambda serial, networks: None  # type: ignore[method-assign]
    link.quiesce()
    link.carrier.now += 60
    assert flooded(getattr(link, side), link, frame, 1_000) == control_rates.CONTROL_BURST // 16


def test_what_a_lost_path_carried_may_come_again() -> None:
    link = prepared()
    link.carrier.now += 60
    for _ in range(3):
        assert (
            flooded(link.exit, link, CONTROL["PING"], most=control_rates.CONTROL_BURST)
            == control_rates.CONTROL_BURST
        )
        link.resume()


def test_what_a_peer_needs_is_never_too_much() -> None:
    """A keepalive each second for an hour, and rotations as fast as they go."""
    link = Link()
    link.quiesce()
    for _ in range(3_600):
        link.carrier.now += 1.0
        link.forge(link.exit, wire.encode_number(wire.PING, 1), wire.encode_number(wire.PONG, 1))
    for _ in range(2 * control_rates.CONTROL_BURST):
        link.forge(link.client, wire.encode_number(wire.PING, 1))
        link.client.rotation.start(link.carrier.now)
        link.carrier.settle()
    assert link.client.rotation.current == 2 * control_rates.CONTROL_BURST


@pytest.mark.parametrize(
    "flood",
    [
        "RESET of a dead stream",
        "DATAGRAM of a dead stream",
        "WINDOW of a dead stream",
        "OPEN that has come",
        "ABANDON of a dead path",
    ],
)
def test_a_flood_for_dead_streams_ends_the_session(flood: str) -> None:
    link = prepared()
    frame = FLOODS[flood](0)
    most = control_rates.LATE_BURST
    link.carrier.now += 60
    assert flooded(link.exit, link, frame * 128, most) == most // 128


def test_pieces_that_a_frame_sets_free_cost_as_frames_do() -> None:
    link = Link()
    app, end = link.pair()
    size = MAX_DATA >> 3
    assert app.stream is not None
    receive, number = link.exit.receiver.receive_data, app.stream.id
    before = link.exit.turn.left
    stream = link.exit.streams[number]
    stream.announced = 64 * size
    for place in range(1, 17):
        receive(number, place * size, memoryview(bytes(size)))
    assert stream.pieces is not None and not end.received
    receive(number, 0, memoryview(bytes(size)))
    assert len(end.received) == 17 * size and before - link.exit.turn.left >= 2 * FRAME_COSTS[wire.DATA]
