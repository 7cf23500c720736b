"""Streams over the lane's real carriers, on a network that does everything to datagrams: carriers/lane/driver.py.

The applications at both ends look at each byte, and the stage at what both sides have promised (simulated_stage.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from cryprq_proxy.carriers.lane.batch import Sent, SocketAddress
from cryprq_proxy.carriers.lane.carrier import LaneCarrier
from cryprq_proxy.carriers.lane.driver import STUCK_SECONDS, LaneDriver
from cryprq_proxy.errors import CloseReason
from cryprq_proxy.lane.layout import ACK
from cryprq_proxy.lane.slices import HEADROOM, Shape
from cryprq_proxy.recovery.congestion import Sample
from cryprq_proxy.recovery.received import AckFrame, encode
from cryprq_proxy.recovery.recovery import Recovery, Settled
from cryprq_proxy.recovery.round_trip import ACK_DELAY, RoundTrip
from cryprq_proxy.session.turns import ACK_WORK, TURN_WORK
from cryprq_proxy.session.wire import encode_window
from tests.support.aired import BOTH, EXIT, PLAIN, AiredLane
from tests.support.links import TARGET
from tests.support.settings import rotation_limits
from tests.support.simulated_apps import Manner
from tests.support.simulated_stage import Stage, play_limits

DOWNLOAD = Manner(size=1_000_000, piece=200_000)
REQUEST = Manner(size=2_000)


class Aired(Stage):
    """A stage whose hosts have a TCP connection and a lane, which is up and preferred."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, interval: float = 3_000.0, **lane: object) -> None:
        limits = replace(play_limits(), rotation=rotation_limits(interval=interval))
        super().__init__(limits, manner=lambda stream: DOWNLOAD, keys=False)
        self.aired = AiredLane(self, monkeypatch, **lane)  # type: ignore[arg-type]
        self.air = self.aired.air
        assert self.run(2.0, lambda: all(driver.streams.carries for driver in self.drivers))

    @property
    def drivers(self) -> tuple[LaneDriver, LaneDriver]:
        return self.aired.drivers

    @property
    def client_address(self) -> SocketAddress:
        outlet = self.aired.client._outlet()
        assert outlet is not None
        return outlet.socket.address

    def download(self, number: int = 1) -> None:
        for _ in range(number):
            assert self.open(REQUEST) is not None

    def until_over(self, seconds: float = 60.0) -> float:
        """Let all end. Returns how long it took."""
        began = self.clock.now
        assert self.run(seconds, lambda: self.over), self.state()
        return self.clock.now - began

    def halfway(self) -> None:
        """Until about the middle of a download."""
        before = self.drivers[0].received_bytes
        assert self.run(20.0, lambda: self.drivers[0].received_bytes - before > DOWNLOAD.size // 2)

    def lose_tcp(self) -> None:
        """For good."""
        network = self.network
        network.keep_up = lambda: None  # type: ignore[method-assign]
        for connection in network.connections:
            connection.reset()
        self.run(0.1)
        assert not any(session.paths for session in network.sessions)


type Begin = Callable[..., Aired]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Makes stages; in the end the lanes leave no timer, reader or index behind."""
    stages: list[Aired] = []

    def make(**more: object) -> Aired:
        stages.append(Aired(monkeypatch, **more))  # type: ignore[arg-type]
        return stages[-1]

    yield make
    for stage in stages:
        stage.aired.close()
        assert not stage.air.loop.readers and not stage.air.sockets
        stage.clock.run(10.0)
        assert not stage.air.loop.live_timers()


# --- what the network does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [BOTH, PLAIN])
def test_streams_cross_the_lane(begin: Begin, offload: object) -> None:
    stage = begin(offload=offload)
    stage.download(4)
    stage.until_over()
    client, exit = stage.drivers
    assert client.received_bytes > 4 * DOWNLOAD.size, "over the lane, and not over TCP"
    assert client.recovery.lost == exit.recovery.lost == 0
    stage.finish()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "weather",
    [
        {"loss": 0.02},
        {"loss": 0.2},
        {"repeated": 0.3},
        {"jitter": 0.02},
        {"loss": 0.05, "repeated": 0.1, "jitter": 0.01},
    ],
    ids=str,
)
def test_every_byte_comes_once_in_any_weather(begin: Begin, weather: dict[str, float], seed: int) -> None:
    stage = begin(seed=seed)
    stage.aired.change(**weather)
    stage.download(3)
    stage.until_over()
    if "loss" in weather:
        assert stage.drivers[1].recovery.lost
    stage.finish()


def test_a_lane_without_any_tcp_connection_carries_on(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.halfway()
    stage.lose_tcp()
    stage.download()
    stage.air.loss = 0.01
    stage.until_over()
    assert not any(session.paths for session in stage.network.sessions)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.0, 3.5, 6.0])
def test_a_black_out_costs_little_more_than_its_time(begin: Begin, seconds: float) -> None:
    """Without TCP, so that nothing else helps."""
    stage = begin()
    stage.lose_tcp()
    stage.download()
    stage.halfway()
    stage.air.blocked = lambda source, target: True
    stage.run(seconds)
    stage.aired.go_on()
    before = stage.drivers[0].received_bytes
    assert stage.run(0.6, lambda: stage.drivers[0].received_bytes > before)
    stage.until_over()


def test_blocked_datagrams_move_streams_to_tcp(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.halfway()
    stage.air.blocked = lambda source, target: True
    assert stage.until_over() < 5.0
    assert not any(driver.streams.carries for driver in stage.drivers)
    stage.aired.go_on()
    stage.run(200.0, lambda: all(driver.streams.carries for driver in stage.drivers))
    stage.finish()


def test_a_path_that_takes_smaller_datagrams_from_now_on(begin: Begin) -> None:
    """A router's, which says nothing."""
    stage = begin()
    stage.run(1.0)
    size = stage.aired.exit.size
    stage.download()
    stage.halfway()
    stage.air.mtu = 1_400
    stage.download()
    stage.until_over()
    stage.run(30.0)
    assert stage.aired.exit.size < size
    stage.download(2)
    stage.until_over()
    stage.finish()


def test_a_device_that_takes_smaller_datagrams_from_now_on(begin: Begin) -> None:
    """This machine's: the kernel refuses what is larger, and nothing of it is lost."""
    stage = begin()
    stage.run(1.0)
    stage.lose_tcp()
    stage.download()
    stage.halfway()
    stage.air.device = 1_300
    stage.download()
    stage.until_over()
    assert stage.aired.exit.size <= 1_300 - 28
    assert stage.aired.exit.status().drops["too_big"]


def test_marks_of_routers_are_counted_and_told(begin: Begin) -> None:
    stage = begin()
    stage.air.marks = 1.0
    stage.download()
    stage.until_over()
    exit = stage.drivers[1].recovery
    assert exit._seen_ce >= DOWNLOAD.size // 1_400


def test_a_network_that_drops_what_may_be_marked_gets_none_of_it(begin: Begin) -> None:
    """RFC 9000 section 13.4.2. Probes of the path are not marked, and pass."""
    stage = begin()
    stage.lose_tcp()
    carry = stage.air.carry
    plain: list[int] = []
    marked: list[int] = []

    def drop(source: SocketAddress, target: SocketAddress, data: bytes, ect: bool) -> None:
        (marked if ect else plain).append(len(data))
        if not ect:
            carry(source, target, data, ect)

    stage.air.carry = drop  # type: ignore[method-assign]
    stage.download()
    assert stage.until_over() < 10.0
    before = len(marked)
    assert 0 < before < len(plain)
    stage.download()
    stage.until_over()
    assert len(marked) == before, "here it does not try again"


@pytest.mark.parametrize("tcp", [True, False])
@pytest.mark.parametrize("leap", [100.0, 7_200.0])
def test_a_clock_that_leaps_stops_no_stream(begin: Begin, leap: float, tcp: bool) -> None:
    """Both machines have rested: whatever was due by then is due at once."""
    stage = begin()
    if not tcp:
        stage.lose_tcp()
    stage.download(2)
    stage.halfway()
    stage.clock.leap(leap)
    assert stage.until_over() < 5.0
    stage.download()
    assert stage.until_over() < 5.0
    assert not stage.client.errors and not stage.exit.errors


# --- addresses and keys -----------------------------------------------------------------------------------------------


def test_a_nat_that_gives_the_client_another_address(begin: Begin) -> None:
    stage = begin()
    stage.lose_tcp()
    stage.download()
    stage.halfway()
    control = stage.drivers[1].recovery.control
    here = stage.client_address
    stage.air.nat[here] = ("203.0.113.9", 9)
    stage.until_over()
    assert stage.aired.exit.path.counters.migrations == 1
    assert stage.drivers[1].recovery.control is control, "the path is new, what is in flight is not"


def test_a_socket_that_is_replaced(begin: Begin) -> None:
    stage = begin()
    stage.lose_tcp()
    stage.download()
    stage.halfway()
    stage.air.home = "192.0.2.2"
    stage.aired.client._open(stage.clock.now)
    assert not stage.drivers[0].up
    stage.download()
    stage.until_over()
    assert stage.client_address[0] == "192.0.2.2"


@pytest.mark.parametrize("tcp", [True, False])
def test_rotation_each_second_under_loss(begin: Begin, tcp: bool) -> None:
    stage = begin(interval=1.0)
    if not tcp:
        stage.lose_tcp()
    stage.air.loss = 0.03
    for _ in range(4):
        stage.download()
        stage.run(1.0)
    stage.until_over()
    assert stage.client.session.rotation.current >= 3
    assert stage.drivers[0].received_bytes > 4 * DOWNLOAD.size


# --- the socket -------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_no_loss(begin: Begin) -> None:
    stage = begin()
    draw = stage.air.draw
    stage.air.refuse = lambda: Sent.FULL if draw.random() < 0.3 else None
    stage.download(2)
    stage.until_over()
    assert stage.aired.exit.status().drops["full"]
    assert stage.drivers[1].recovery.lost == 0


def test_a_queue_that_stays_full_is_left(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.halfway()
    stage.air.refuse = lambda: Sent.FULL
    assert stage.until_over() < STUCK_SECONDS + 5.0
    assert not any(driver.streams.carries for driver in stage.drivers)


def test_a_queue_that_is_full_from_the_beginning_is_left(begin: Begin) -> None:
    """Nothing is in flight whose silence would tell."""
    stage = begin()
    stage.run(1.0)
    stage.air.refuse = lambda: Sent.FULL
    stage.download()
    assert stage.run(STUCK_SECONDS + 2.0, lambda: not stage.drivers[0].streams.carries)
    stage.until_over()


def test_what_the_session_refuses_is_sent_again(begin: Begin) -> None:
    stage = begin()
    streams = stage.drivers[0].streams
    take, refused = streams.stream_data, [0]

    def refuse(*args: Any) -> bool:
        refused[0] += 1
        return refused[0] % 8 != 1 and take(*args)

    streams.stream_data = refuse  # type: ignore[assignment, method-assign]
    stage.download()
    stage.until_over()
    assert refused[0] > 8
    stage.finish()


def test_a_filter_that_refuses_datagrams_moves_streams_to_tcp(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.halfway()
    stage.air.refuse = lambda: Sent.FAILED
    assert stage.until_over() < 5.0


# --- packets beside ---------------------------------------------------------------------------------------------------


def packet(lane: LaneCarrier, size: int = 1_000) -> bool:
    buffer = memoryview(bytearray(HEADROOM) + b"E" + bytes(size - 1))
    return lane.send_packet(buffer, HEADROOM, len(buffer), Shape(0, 0, 0))


def test_packets_count_in_the_window_while_streams_are_in_flight(begin: Begin) -> None:
    stage = begin()
    driver, lane = stage.drivers[1], stage.aired.exit
    stage.run(1.0)
    assert packet(lane)
    assert driver.recovery.in_flight == 0, "no streams"
    stage.download()
    stage.halfway()
    stage.run(1.0, lambda: bool(driver.streams.log.units) and not driver.full)
    before = driver.recovery.in_flight
    assert packet(lane)
    assert before < driver.recovery.in_flight <= before + 1_100
    stage.until_over()
    assert driver.recovery.lost == 0


def test_packets_wait_for_the_window_while_streams_do_and_no_longer(begin: Begin) -> None:
    stage = begin()
    driver, lane = stage.drivers[1], stage.aired.exit
    stage.download()
    assert stage.run(5.0, lambda: driver.full)
    sent = lane.status().sent
    assert packet(lane) and lane.send_datagram(1, TARGET, b"x")
    assert lane.status().sent == sent and driver.held
    assert stage.run(0.2, lambda: not driver.held)
    stage.until_over()
    driver.hold(b"more than one", None)
    driver.hold(b"of them", None)
    driver.streams.wake()
    stage.run(0.001)
    assert not driver.held
    assert driver.held.dropped == 0 and not driver.full
    sent = lane.status().sent
    for _ in range(1_000):
        assert packet(lane), "nobody waits"
    assert lane.status().sent == sent + 1_000


def test_no_packet_waits_for_what_rotates_the_keys(begin: Begin) -> None:
    """Frames of the session alone never fill a window, however many packets are under way beside them."""
    stage = begin(interval=1.0)
    stage.aired.change(delay=0.05)
    stage.run(1.0)
    rotated = [host.session.ledger.rotations for host in stage.network.hosts]
    for _ in range(5_000):
        for lane in (stage.aired.client, stage.aired.exit):
            assert packet(lane) and packet(lane)
        stage.run(0.001)
    for host, before in zip(stage.network.hosts, rotated, strict=True):
        assert host.session.ledger.rotations >= before + 4
    assert [driver.held.dropped for driver in stage.drivers] == [0, 0]
    assert stage.aired.exit.status().sent > 10_000 and not any(driver.held for driver in stage.drivers)


class Steady:
    """A congestion control that has found its rate: 100 Mbit/s."""

    rate = 12.5e6
    window = 500_000
    datagram = 1_200

    def sent(self, size: int, now: float, in_flight: int) -> None: ...

    def acked(self, sample: Sample) -> None: ...

    def lost(self, size: int, now: float, in_flight: int) -> None: ...

    def silent(self, now: float) -> None: ...

    def reset(self, now: float) -> None: ...


@pytest.mark.parametrize(("size", "number"), [(100, 160), (1_100, 20)])
def test_streams_and_packets_share_the_window_by_bytes(begin: Begin, size: int, number: int) -> None:
    """More of both than fits: each gets about half, whatever the sizes of trains and packets are."""
    stage = begin()
    driver, lane = stage.drivers[1], stage.aired.exit
    stage.download(40)
    assert stage.run(5.0, lambda: driver.full)
    driver.recovery.control = Steady()
    streams, sent, dropped = driver.sent_bytes, 0, driver.held.dropped
    for _ in range(500):
        for _ in range(number):
            assert packet(lane, size)
        sent += number
        stage.run(0.001)
    streams = driver.sent_bytes - streams
    packets = size * (sent - (driver.held.dropped - dropped))
    assert 0.5 < packets / streams < 1.5 and packets + streams > 0.4 * Steady.rate


def test_packets_beside_the_streams_do_not_ask_when_the_driver_is_due(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begin()
    stage.run(30.0)
    asked: list[float] = []
    deadline = LaneDriver.deadline

    def counted(driver: LaneDriver, now: float) -> float:
        asked.append(now)
        return deadline(driver, now)

    monkeypatch.setattr(LaneDriver, "deadline", counted)
    for _ in range(100):
        assert packet(stage.aired.exit)
    stage.run(0.4)
    assert len(asked) <= 4, "both sides' own timers"
    stage.download(2)
    stage.until_over()
    assert len(asked) > 4


def test_what_asks_for_nothing_is_acknowledged_in_time_on_a_quiet_lane(begin: Begin) -> None:
    """Before the sender's probe time-out, which would ask."""
    stage = begin()
    stage.run(30.4)  # between two looks of the lane's own timer
    exit = stage.network.sessions[1]
    exit.send_control(encode_window(0, 1))
    assert exit.retention.kept
    timeout = stage.drivers[1].recovery.round_trip.timeout()
    assert 2 * stage.air.delay + ACK_DELAY < 0.9 * timeout
    assert stage.run(0.9 * timeout, lambda: not exit.retention.kept)


# --- idle, and the end ------------------------------------------------------------------------------------------------


def test_an_idle_lane_sends_what_its_check_needs(begin: Begin) -> None:
    stage = begin()
    stage.run(30.0)
    idle = len(stage.air.sent)
    timers = stage.air.loop.timers
    stage.run(60.0)
    sent, made = len(stage.air.sent) - idle, stage.air.loop.timers - timers
    stage.download(2)
    stage.until_over()
    stage.run(30.0)
    for driver in stage.drivers:
        assert driver.recovery.deadline() == inf and driver.received.due == inf
    idle, timers = len(stage.air.sent), stage.air.loop.timers
    stage.run(60.0)
    assert len(stage.air.sent) - idle <= sent + 2
    assert stage.air.loop.timers - timers <= made + 4


def test_an_idle_lane_wakes_for_each_probe_and_for_nothing_else(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.until_over()
    stage.run(30.0)
    sent, fired = len(stage.air.sent), stage.air.loop.fired
    stage.run(60.0)
    # Half of what is sent are answers.
    assert 0 < stage.air.loop.fired - fired <= (len(stage.air.sent) - sent) // 2


def test_the_end_of_a_session_is_told_by_the_lane(begin: Begin) -> None:
    stage = begin()
    stage.lose_tcp()
    stage.client.session.close(CloseReason.NORMAL)
    stage.aired.client.close()
    stage.run(1.0)
    assert stage.exit.session.closed is CloseReason.NORMAL


# --- hostile --------------------------------------------------------------------------------------------------------


def say(lane: LaneCarrier, message: bytes) -> None:
    """What a peer with the keys may send."""
    assert lane.begin()
    size = lane.lane.seal(message, lane._output, 0)
    lane.push(0, size, size, False)


def test_an_acknowledgement_of_what_was_never_sent_ends_the_session(begin: Begin) -> None:
    stage = begin()
    stage.download()
    stage.halfway()
    sent = stage.aired.exit.lane.counter
    say(stage.aired.client, bytes((ACK,)) + encode(AckFrame([0, sent + 10_000], 0.0, 0)))
    with pytest.raises(Exception, match="never sent"):
        stage.run(5.0)
    assert stage.exit.session.closed is CloseReason.PROTOCOL


def test_malformed_acknowledgements_are_counted(begin: Begin) -> None:
    stage = begin()
    for body in (b"", b"\0" * 21, b"\xff" * 40, encode(AckFrame([0, 1], 0.0, 0)) + b"x"):
        say(stage.aired.client, bytes((ACK,)) + body)
    stage.run(0.5)
    assert stage.aired.exit.status().drops["malformed"] == 4
    stage.download()
    stage.until_over()
    stage.finish()


def test_repeated_and_forged_datagrams_change_nothing(begin: Begin) -> None:
    stage = begin()
    stage.air.repeated = 1.0
    carry = stage.air.carry

    def forge(source: SocketAddress, target: SocketAddress, data: bytes, ect: bool) -> None:
        carry(source, target, data[:-1] + bytes((data[-1] ^ 1,)), ect)
        carry(source, target, data, ect)

    stage.air.carry = forge  # type: ignore[method-assign]
    stage.download(2)
    stage.until_over()
    assert stage.aired.client.status().drops["tag"] and stage.aired.client.status().drops["replay"]
    assert stage.drivers[1].recovery.lost == 0
    stage.finish()


def test_a_peer_that_acknowledges_nothing_is_bounded(begin: Begin) -> None:
    """It gets no more than a window, and then what TCP carries."""
    stage = begin()
    client = stage.drivers[0]
    client._acknowledge = client.received.take  # type: ignore[assignment, method-assign]
    before = stage.drivers[0].received_bytes
    stage.download()
    assert stage.until_over() < 5.0
    assert stage.drivers[0].received_bytes - before < DOWNLOAD.size // 2


def test_a_lane_that_works_again_behind_a_queue_is_judged_by_its_least_round_trip(begin: Begin) -> None:
    """And not by what its last probes waited."""
    stage = begin()
    exit = stage.drivers[1]
    least = exit.streams.least_round_trip
    stage.air.delay *= 40
    stage.run(200.0)
    path = stage.aired.exit.path
    assert path.round_trip is not None and path.round_trip > 20 * least
    exit._worn = "its keys are too old"
    assert stage.run(20.0, lambda: not exit.up)
    exit.renew()
    assert stage.run(20.0, lambda: exit.up)
    assert exit.streams.least_round_trip == least
    assert exit.recovery.round_trip.least == least


def test_the_round_trip_is_that_of_the_streams_while_they_move_and_that_of_the_probes_behind(
    begin: Begin,
) -> None:
    """Told by one figure, which is that of the path."""
    stage = begin()
    path, recovery = stage.aired.exit.path, stage.drivers[1].recovery
    stage.air.delay *= 10
    stage.download()
    stage.until_over()
    assert recovery.round_trip.smoothed > 0.15
    assert path.round_trip == pytest.approx(recovery.round_trip.smoothed, rel=0.01)
    assert path.least_round_trip < 0.1
    stage.air.delay /= 10
    stage.run(200.0)
    assert path.round_trip == pytest.approx(0.02, rel=0.1)


def test_a_round_that_measured_nothing_tells_no_round_trip(begin: Begin) -> None:
    stage = begin()
    exit = stage.drivers[1]
    before = stage.aired.exit.path.round_trip
    exit.recovery.round_trip = RoundTrip()
    stage.run(200.0)
    exit.recovery.rounds.count += 1
    exit.acknowledged(memoryview(encode(AckFrame([0, 1], 0.0, 0))))
    assert stage.aired.exit.path.round_trip == pytest.approx(before)


def test_a_flood_of_acknowledgements_is_looked_at_a_turn_at_a_time(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begin()
    driver = stage.drivers[1]
    stage.run(1.0)
    counter = stage.aired.exit.lane.counter
    body = memoryview(encode(AckFrame([counter - 1, counter], 0.0, 0)))
    looked = []
    acked = Recovery.acked

    def look(recovery: Recovery[Any], frame: AckFrame, counter: int, now: float) -> Settled[Any]:
        looked.append(frame)
        return acked(recovery, frame, counter, now)

    monkeypatch.setattr(Recovery, "acked", look)
    for _ in range(2):
        driver.streams.session.turn.renew()
        looked.clear()
        for _ in range(TURN_WORK):
            assert driver.acknowledged(body)
        assert 0 < len(looked) <= TURN_WORK // ACK_WORK


def test_an_address_that_has_proved_nothing_gets_three_times_what_came_from_it(begin: Begin) -> None:
    """Somebody on the path holds a datagram of the client back and sends it from elsewhere, while much flows."""
    stage = begin()
    spy = ("203.0.113.66", 6)
    stage.air.nat[spy] = spy
    held: list[bytes] = []
    carry = stage.air.carry

    def hold(source: SocketAddress, target: SocketAddress, data: bytes, ect: bool) -> None:
        if target == EXIT and len(held) < 5 and stage.drivers[0].received_bytes > DOWNLOAD.size // 4:
            held.append(data)
            carry(spy, target, data, ect)
        else:
            carry(source, target, data, ect)

    stage.air.carry = hold  # type: ignore[method-assign]
    stage.download()
    stage.until_over()
    assert held and 0 < stage.air.bytes_to(spy) <= 3 * sum(map(len, held))


def test_the_first_address_gets_no_streams_before_it_has_answered(begin: Begin) -> None:
    stage = begin()
    stage.aired.exit.path.least_round_trip = inf
    stage.drivers[1].up = False
    before = stage.drivers[1].sent_bytes
    stage.air.blocked = lambda source, target: target == EXIT
    stage.download()
    stage.run(0.5)
    assert stage.drivers[1].sent_bytes == before
