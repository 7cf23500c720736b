"""Two sessions, whatever happens to the paths between them: every stream's bytes arrive once and in order."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CarrierError, CloseReason, StreamReason
from cryprq_proxy.session import session as session_module
from cryprq_proxy.session import turns, wire
from cryprq_proxy.session.lane_path import LanePath
from cryprq_proxy.session.path import ACK_DELAY, SessionPath
from cryprq_proxy.session.records import HEADER
from cryprq_proxy.session.retention import REPEATED, PathLog, Retention
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.suspicion import LEAST_LATE
from cryprq_proxy.session.wire import Kind, StreamProtocol
from tests.support.choices import Choices
from tests.support.settings import rotation_limits
from tests.support.simulated_apps import Ending, Manner, Talker
from tests.support.simulated_network import Connection
from tests.support.simulated_play import SimulatedPlay, first_allowances
from tests.support.simulated_stage import Stage, play_limits
from tests.support.simulator import Broken, End, Route, Wire

PLAYS = int(os.environ.get("SIMULATED_PLAYS", "60"))
"""Some thousand for the long form."""
BLOCK = 10
CORPUS = sorted((Path(__file__).parents[1] / "fuzz/corpus/simulator").iterdir())
ROUTE = Route(rate=1e7, delay=0.01)
NEVER = float("inf")
CALM = play_limits(rotation=rotation_limits(interval=600.0))
"""No rotation but those that a test begins."""


def seeded_play(seed: int) -> SimulatedPlay:
    return SimulatedPlay(Choices(random.Random(seed).randbytes(300)))


@pytest.mark.parametrize("first", range(0, PLAYS, BLOCK))
def test_whatever_happens_to_the_paths_the_session_keeps_its_promises(first: int) -> None:
    for seed in range(first, first + BLOCK):
        seeded_play(seed).run()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_session_keeps_its_promises_in_plays_of_the_corpus(path: Path) -> None:
    SimulatedPlay(Choices(path.read_bytes())).run()


def test_a_play_is_the_same_each_time() -> None:
    plays = [seeded_play(7), seeded_play(7)]
    for play in plays:
        play.run()
    assert plays[0].trace == plays[1].trace
    assert plays[0].stage.clock.events == plays[1].stage.clock.events


# --- a path that is lost at each byte ---


def short_exchange() -> Stage:
    """A request and its answer, with both ends."""
    stage = Stage(CALM, route=ROUTE, manner=lambda stream: Manner(size=120, piece=70, pause=0.001))
    stage.open(Manner(size=60, piece=40, pause=0.001))
    return stage


def first_path(stage: Stage) -> Connection:
    return stage.network.connections[0]


def direction(connection: Connection, up: bool) -> Wire:
    return connection.up if up else connection.down


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_the_only_path_is_reset_at_each_byte(up: bool) -> None:
    whole = short_exchange()
    assert whole.run(20, lambda: whole.over)
    size = direction(first_path(whole), up).arrived
    assert 200 < size < 2_000
    for position in range(1, size + 1):
        stage = short_exchange()
        direction(first_path(stage), up).cut_after = position
        stage.finish()
        assert stage.network.dialled == 2, f"the path was not cut at {position}"


# --- each kind of frame is lost ---


class Tap:
    """Where each record of the first path begins and ends, and what it holds, by direction."""

    def __init__(self, stage: Stage) -> None:
        self.records: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self.kinds: dict[bool, dict[Kind, list[int]]] = {True: {}, False: {}}
        """In which records each kind came."""
        connection = first_path(stage)
        for end, up in ((connection.client, False), (connection.exit, True)):
            self._follow(end.host.session, up)
            self._listen(end, up, 2 if up else 1)

    def _follow(self, session: Session, up: bool) -> None:
        act = session.act

        def acted(path: SessionPath | LanePath, kind: int, id: int, value: object) -> None:
            if isinstance(path, SessionPath):
                self._note(up, Kind(kind), path)
            act(path, kind, id, value)

        session.act = acted  # type: ignore[method-assign]

    def _note(self, up: bool, kind: Kind, path: SessionPath) -> None:
        if path.number == 0:
            # The exit's verdict is its first record; it is counted as one that was received.
            self.kinds[up].setdefault(kind, []).append(path.keys.records_received - 1)

    def _listen(self, end: End, up: bool, flights: int) -> None:
        """Cut what arrives into records; `flights` bytes of the handshake go before."""
        arrive, position, waiting = end.arrive, flights, b""

        def arrived(data: bytes) -> None:
            nonlocal position, waiting
            waiting += data
            while len(waiting) >= HEADER:
                size = HEADER + int.from_bytes(waiting[:HEADER])
                if len(waiting) < size:
                    break
                self.records[up].append((position, position + size))
                position, waiting = position + size, waiting[size:]
            arrive(data)

        end.arrive = arrived  # type: ignore[method-assign]


def eventful() -> Stage:
    """All that has a frame of its own happens on the first path, and some of it twice."""
    stage = Stage(CALM, route=ROUTE, manner=manner_by_number)
    network, clock = stage.network, stage.clock
    client, exit = network.client.session, network.exit.session

    def later(seconds: float, what: Callable[[], object]) -> None:
        def event() -> None:
            if client.closed is None:
                what()

        clock.after(seconds, event)

    for _ in range(12):
        stage.open(Manner(size=100))
    stage.open(Manner(size=70_000, ending=Ending.WAIT))
    later(0.1, lambda: stage.open(Manner(size=10, ending=Ending.RESET)))
    later(0.1, lambda: stage.open(Manner(size=0, datagrams=4, pause=0.01), StreamProtocol.UDP))
    later(0.1, lambda: stage.links[0].say())
    later(0.1, lambda: stage.links[1].say())
    later(0.1, lambda: exit.announce(wire.encode_bare(wire.GOAWAY)))
    later(0.1, lambda: client.prefer(0))
    later(0.1, lambda: exit.send_control(wire.encode_epoch(wire.REKEY_PLEASE, exit.rotation.current + 1)))
    later(0.12, lambda: client.send_packet(0, 0, 0, memoryview(bytes(40))))
    later(0.12, lambda: exit.send_packet(0, 0, 0, memoryview(bytes(40))))
    later(0.12, lambda: announce_address(stage))
    later(0.15, lambda: network.dial())
    # The second path ends: each side says on the first one what it has received.
    later(0.3, lambda: network.connections[-1].reset() if len(network.connections) > 1 else None)
    later(1.5, lambda: client.rotation.start(clock.now))
    return stage


def manner_by_number(stream: int) -> Manner:
    return Manner(size=300, delay=0.005 * (stream & 1), refuse=stream == 3, ending=Ending(stream == 4))


def announce_address(stage: Stage) -> None:
    for path in stage.exit.session.paths.values():
        path.announce(wire.encode_advertise(Destination("192.0.2.1", 443)))


@pytest.fixture
def small_credit() -> Iterator[None]:
    """So that a short play gets beyond the first credit of the session, and its first number of streams."""
    with first_allowances(1 << 20, 16):
        yield


def tapped() -> Tap:
    stage = eventful()
    tap = Tap(stage)
    finish_eventful(stage)
    return tap


def finish_eventful(stage: Stage) -> None:
    stage.run(2)
    stage.finish()


def cut(up: bool, position: int) -> Stage:
    stage = eventful()
    direction(first_path(stage), up).cut_after = position
    finish_eventful(stage)
    return stage


@pytest.mark.usefixtures("small_credit")
def test_each_kind_of_frame_is_lost_once() -> None:
    """The path is reset just before its record has arrived, and just after; the first record with it, and the last."""
    tap = tapped()
    assert set(tap.kinds[True]) | set(tap.kinds[False]) >= set(Kind) - {
        Kind.DATA, Kind.SWITCH, Kind.CLOSE, Kind.ACCEPT, Kind.NO_SESSION, Kind.JOINED,
    }  # fmt: skip
    places = {
        (up, position)
        for up, kinds in tap.kinds.items()
        for records in kinds.values()
        for record in (records[0], records[-1])
        for position in (tap.records[up][record][1] - 1, tap.records[up][record][1])
    }
    for up, position in sorted(places):
        cut(up, position)


@pytest.mark.usefixtures("small_credit")
def test_a_rotation_survives_the_loss_of_the_path_at_each_record() -> None:
    """Whatever SWITCH or answer is lost with it."""
    tap = tapped()
    for up, records in tap.records.items():
        for _, end in records:
            stage = cut(up, end - 1)
            assert stage.client.session.rotation.current > 0


# --- two paths ---


class Pulse:
    """How long a Talker has waited for its next bytes, at most, since `begin`."""

    def __init__(self, stage: Stage, talkers: list[Talker]) -> None:
        self._clock = stage.clock
        self.begin = stage.clock.now
        self.last = dict.fromkeys(talkers, stage.clock.now)
        self.longest = 0.0
        for talker in talkers:
            self._watch(talker)

    def _watch(self, talker: Talker) -> None:
        received = talker.data_received

        def data_received(data: memoryview) -> None:
            self.longest = max(self.longest, self._clock.now - self.last[talker])
            self.last[talker] = self._clock.now
            received(data)

        talker.data_received = data_received  # type: ignore[method-assign]


STEADY = Manner(size=1 << 20, piece=300, pause=0.004, ending=Ending.WAIT)
LARGE = Manner(size=1 << 26, ending=Ending.WAIT)


def moving(streams: int, route: Route = ROUTE) -> tuple[Stage, Pulse]:
    """Streams on which both ends say something all the time."""
    stage = Stage(CALM, route=route, manner=lambda stream: STEADY)
    for _ in range(streams):
        stage.open(STEADY)
    stage.run(1.0)
    talkers = stage.talkers
    assert len(talkers) == 2 * streams and all(talker.received for talker in talkers)
    return stage, Pulse(stage, talkers)


def two_paths(route: Route, *, preferred: int = 0, bulk: bool = False) -> Stage:
    """Two paths, on which streams talk, and one is downloaded if `bulk`. What is usual on them is known."""
    limits = replace(CALM, retained=1 << 22, window_pool=1 << 24)
    stage = Stage(limits, route=route, manner=lambda stream: LARGE if bulk and stream == 1 else STEADY)
    stage.open(Manner(size=0, ending=Ending.WAIT) if bulk else STEADY)
    for _ in range(3):
        stage.open(STEADY)
    stage.network.wanted = 2
    stage.network.dial()
    stage.run(1.0)
    stage.client.session.prefer(preferred)
    stage.run(2.0)
    for host in stage.network.hosts:
        assert host.session.current is host.session.paths[preferred]
    return stage


@pytest.mark.parametrize("preferred", [0, 1])
@pytest.mark.parametrize("round_trip", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("what", ["vanish", "up", "down"])
def test_nothing_stalls_longer_than_the_suspicion_when_one_of_two_paths_dies(
    preferred: int, round_trip: float, what: str
) -> None:
    """Also where one direction goes on: the side that finds out tells the other one."""
    stage = two_paths(Route(rate=1e7, delay=round_trip / 2), preferred=preferred)
    suspicion = max(host.session.paths[preferred].suspicion.seconds for host in stage.network.hosts)
    assert suspicion < round_trip + 2 * LEAST_LATE + ACK_DELAY
    pulse = Pulse(stage, stage.talkers)
    connection = next(other for other in stage.network.connections if other.number == preferred)
    if what == "vanish":
        connection.vanish()
    else:
        connection.stop(up=what == "up", down=what == "down")
    stage.run(3.0)
    assert suspicion / 2 < pulse.longest < suspicion + round_trip + ACK_DELAY
    assert not stage.client.errors and not stage.exit.errors
    stage.finish()


class Doubts:
    """What doubts there were, and what they cost."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.again = 0
        """Bytes that went again."""
        doubt, lose = SessionPath.doubt, Retention.lose

        def counted_doubt(path: SessionPath, now: float, *, told: bool = False) -> None:
            self.count += not told
            doubt(path, now, told=told)

        def counted_lose(retention: Retention, log: PathLog) -> None:
            self.again += sum(len(unit.frame) for unit in log.units)
            lose(retention, log)

        monkeypatch.setattr(SessionPath, "doubt", counted_doubt)
        monkeypatch.setattr(Retention, "lose", counted_lose)


@pytest.mark.parametrize("round_trip", [0.01, 0.05, 0.15])
def test_a_queue_that_grows_is_no_silence(round_trip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of it, within seconds, while much is downloaded."""
    route = Route(rate=1e6, delay=round_trip / 2, room=1 << 15, piece=1_448)
    stage = two_paths(route, bulk=True)
    doubts = Doubts(stage, monkeypatch)
    for _ in range(5):
        for connection in stage.network.connections:
            connection.change(room=2 * connection.up.route.room - (1 << 14))
        stage.run(1.0)
    connection = first_path(stage)
    assert (connection.down.sent - connection.down.arrived) / route.rate > 0.4
    assert doubts.count == 0 and doubts.again == 0
    stage.finish()


@pytest.mark.parametrize("round_trip", [0.001, 0.05, 0.15])
@pytest.mark.parametrize("bulk", [False, True], ids=["talk", "download"])
def test_a_host_whose_loop_is_busy_is_rarely_taken_for_a_silent_path(
    round_trip: float, bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a tenth of a second, three times a second. And the doubts cost little."""
    stage = two_paths(Route(rate=1e7, delay=round_trip / 2, piece=1_448), bulk=bulk)
    doubts = Doubts(stage, monkeypatch)
    for _ in range(50):
        stage.exit.suspend(0.1)
        stage.run(0.3)
    assert doubts.count <= 1 and doubts.again < 1 << 18
    stage.finish()


@pytest.mark.parametrize("bulk", [False, True], ids=["talk", "download"])
def test_a_laptop_that_sleeps_sends_little_again(bulk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = two_paths(Route(rate=1e7, delay=0.025, piece=1_448), bulk=bulk)
    doubts = Doubts(stage, monkeypatch)
    stage.client.suspend(3.0)
    stage.run(10.0)
    assert doubts.count <= 4 and doubts.again < 1 << 18
    for host in stage.network.hosts:
        assert host.session.current is host.session.paths[0]
    stage.finish()


def test_what_a_large_log_holds_goes_again_when_the_other_path_was_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a download goes on, though the peer hears nothing of it by the path that died."""
    stage = two_paths(Route(rate=1e7, delay=0.025, piece=1_448), bulk=True)
    exit = stage.exit.session
    doubts = Doubts(stage, monkeypatch)
    pulse = Pulse(stage, [stage.talkers[0]])
    held = sum(len(unit.frame) for unit in exit.paths[0].log.units)
    assert held > 4 * REPEATED
    suspicion = exit.paths[0].suspicion.seconds
    first_path(stage).vanish()
    stage.run(2.0)
    assert doubts.again > 4 * REPEATED and not exit.paths[0].log.units
    # What has arrived and was not acknowledged goes again before the rest.
    assert pulse.longest < suspicion + 2 * 0.05 + 3 * ACK_DELAY + wire.MAX_DATA / 1e7
    stage.finish()


def test_a_new_path_takes_over_without_a_pause() -> None:
    stage, pulse = moving(16)
    old = first_path(stage)
    new = stage.network.dial(Route(rate=1e7, delay=0.03))
    stage.run(0.5)
    stage.client.session.prefer(new.number)
    stage.run(0.5)
    assert stage.client.session.current is stage.client.session.paths[new.number]
    old.client.close()
    stage.run(1.0)
    # The bytes that come by the longer path are later by as much as it is longer.
    assert pulse.longest < 0.004 + 2 * 0.03
    stage.finish()


def test_hosts_that_are_slower_than_the_suspicion_do_not_send_all_of_it_again_and_again() -> None:
    """Each path was doubted in turn, and what it had carried went by the other one, which took the hosts more time."""
    stage = Stage(CALM, route=ROUTE, manner=lambda stream: Manner(size=60_000, piece=300))
    stage.network.wanted = 2
    stage.network.dial()
    stage.run(1)
    with mock.patch.object(turns, "TURN_WORK", 60):
        for host in stage.network.hosts:
            host.turn_seconds = 0.02
        for _ in range(16):
            stage.open(Manner(size=60_000, piece=300))
        assert stage.run(120, lambda: stage.over)
        stage.finish()


# --- no path, or no answer ---


def test_a_session_waits_300_seconds_for_a_path() -> None:
    stage, _ = moving(8)
    client = stage.client.session
    network = stage.network
    network.wanted = 0
    first_path(stage).reset()
    stage.open(Manner(size=500))
    stage.run(300)
    assert not client.paths and client.closed is None and not stage.over
    network.wanted = 1
    stage.finish()
    assert len(stage.streams) == 9


def test_a_rotation_goes_on_after_300_seconds_without_a_path() -> None:
    """It had begun before, and the new path is not blamed for the time that it takes."""
    stage, _ = moving(2)
    rotation = stage.client.session.rotation
    rotation.start(stage.clock.now)
    stage.network.wanted = 0
    first_path(stage).reset()
    stage.run(300)
    assert rotation.current == 0
    stage.network.wanted = 1
    stage.network.keep_up()
    stage.run(5)
    assert rotation.current == stage.exit.session.rotation.current == 1
    assert stage.network.dialled == 2 and not stage.client.errors and not stage.exit.errors
    stage.finish()


def test_a_peer_that_never_acknowledges_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for it is bounded: data by `retained`, and small frames by MAX_SMALL."""
    monkeypatch.setattr(session_module, "MAX_SMALL", 1 << 16)
    stage = Stage(CALM, manner=lambda stream: Manner(size=0, ending=Ending.WAIT))
    client = stage.client.session
    act = client.act

    def deaf(path: SessionPath, kind: int, id: int, value: object) -> None:
        if kind not in (Kind.ACK, Kind.ABANDON):
            act(path, kind, id, value)

    monkeypatch.setattr(client, "act", deaf)
    for _ in range(8):
        stage.open(Manner(size=60_000))
    stage.clock.run(2)
    kept = client.retention.kept
    assert CALM.retained <= kept <= CALM.retained + 2 * wire.MAX_PLAINTEXT
    for _ in range(2_000):
        talker = stage.open(Manner(size=0, ending=Ending.WAIT))
        stage.clock.run(0.05)
        if client.closed is not None or talker is None:
            break
        talker.leave(StreamReason.CANCELLED)
        assert client.retention.kept <= CALM.retained + (1 << 17) + (1 << 16)
    assert client.closed is CloseReason.LIMIT
    assert "does not acknowledge" in str(stage.client.errors[-1])


def test_a_session_outlives_many_paths_that_die_at_once() -> None:
    """Each leaves an ABANDON, and none of them is acknowledged before the last path works."""
    stage = Stage(CALM, route=ROUTE)
    stage.open(Manner(size=500))
    network = stage.network
    network.wanted = 0
    network.on_established = lambda connection: connection.reset() if network.dialled < 400 else None
    for _ in range(400):
        network.dial(early=False)
        stage.run(0.5)
    stage.run(1)
    assert network.dialled == 401
    assert stage.client.session.closed is None, stage.client.errors
    network.wanted = 1
    stage.finish()


# --- that the simulator finds what it is to find ---


def test_a_talker_sees_bytes_that_come_twice() -> None:
    stage, _ = moving(1)
    talker = stage.talkers[0]
    before = talker.received
    talker.data_received(memoryview(talker._pattern(before, 10, 100 - talker._direction)))
    with pytest.raises(Broken, match="other bytes"):
        talker.data_received(memoryview(talker._pattern(before, 10, 100 - talker._direction)))


def test_a_stage_sees_bytes_that_nobody_counts() -> None:
    stage, _ = moving(1)
    stage.check()
    stage.exit.session.retention.kept += 1
    with pytest.raises(Broken, match="bytes are kept"):
        stage.check()


def test_a_stage_takes_no_error_but_that_of_a_dead_path() -> None:
    stage, _ = moving(1)
    stage.exit.errors.append(CarrierError(CloseReason.TIMED_OUT, "silent"))
    stage.check()
    stage.exit.errors.append(CarrierError(CloseReason.BAD_RECORD, "forged"))
    with pytest.raises(Broken, match="forged at the exit"):
        stage.check()


def test_a_stage_sees_a_stream_that_does_not_end() -> None:
    stage, _ = moving(1)
    stage.talkers[1].finished = True
    with pytest.raises(Broken, match="does not end"):
        stage.finish()
