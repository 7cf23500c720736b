"""A hostile peer on the lane of the real exit: what it does is bounded and counted, and its neighbours go on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise

import pytest

from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.carrier import LaneCarrier
from cryprq_proxy.carriers.lane.settings import LaneSettings
from cryprq_proxy.exit.peer_session import PeerSession
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.received import MAX_RANGES
from cryprq_proxy.session.frames_ahead import MAX_AHEAD
from cryprq_proxy.session.session import MAX_SMALL
from tests.support.second_client import Session, SessionOver
from tests.support.second_frames import UDP, Address, Close, Kind, frame
from tests.support.second_lane import RANGES, Lane, Message, Weather, ack_message, stream_message
from tests.support.second_stage import MEGABYTE, Stage, comes_back
from tests.support.settings import session_limits
from tests.support.settle import until
from tests.support.web_links import place

pytestmark = pytest.mark.timeout(60)
MOST_FOLD = 3
POURED = 40


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with place(lane=LaneSettings(UdpOffload(True, True), Bbr), limits=session_limits()) as exit_place:
        stage = Stage(exit_place)
        try:
            yield stage
        finally:
            await stage.stop()


class Victim:
    """An address in whose name datagrams are sent; it counts what comes in return."""

    def __init__(self, exit_address: Address) -> None:
        self._exit = exit_address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.sent = self.came = self._count = 0

    def send(self, datagram: bytes) -> None:
        self._socket.sendto(datagram, self._exit)
        self.sent += len(datagram)

    def count(self) -> int:
        """The datagrams that have come; `came` is their size."""
        with suppress(BlockingIOError):
            while True:
                self.came += len(self._socket.recv(65_507))
                self._count += 1
        return self._count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def victim(stage: Stage) -> Iterator[Victim]:
    with closing(Victim(stage.tcp)) as victim:
        yield victim


class Source(asyncio.DatagramProtocol):
    """A target that answers one datagram with many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        for _ in range(POURED):
            self.transport.sendto(bytes(1000), addr)  # type: ignore[attr-defined]


async def pour_to_client(session: Session, victim: Victim) -> None:
    """Let a target send the client datagrams of 1,000 bytes, and wait until all are there, or at `victim`."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Source, local_addr=("127.0.0.1", 0))
    try:
        stream = await session.open(("0.0.0.0", 0), UDP)
        await stream.opened()
        stream.send_datagram(transport.get_extra_info("sockname"), b"more")
        await until(lambda: len(stream.datagrams) + victim.count() >= POURED)
    finally:
        transport.close()


async def test_acknowledgements_count_in_what_the_first_address_gets(stage: Stage, victim: Victim) -> None:
    """Small datagrams that ask for long ones."""
    session, _ = await stage.begun(lane=stage.tcp, weather=Weather(drop=1))
    lane = session.lane
    assert lane is not None
    await session.until(lambda: lane.sends_in == 0)
    for serial in range(1, 111):
        lane.counter += 1  # each one begins a range
        victim.send(lane.seal(bytes([Message.FRAMES_ASK]) + frame(Kind.PREFER, "II", serial, 0)))
        if serial > 70:
            assert await comes_back(session, stage.echo)
    victim.count()
    assert victim.came <= MOST_FOLD * victim.sent


async def test_the_first_address_gets_no_more_than_three_times_what_came_from_it(
    stage: Stage, victim: Victim
) -> None:
    """A client that names another host as the source of its first datagrams has nothing sent there."""
    session, _ = await stage.begun(lane=stage.tcp, weather=Weather(drop=1))
    lane = session.lane
    assert lane is not None
    await session.until(lambda: lane.sends_in == 0)
    victim.send(lane.seal(bytes([Message.KEEPALIVE])))
    for _ in range(5):
        victim.send(lane.seal(bytes([Message.FRAMES_ASK]) + frame(Kind.PREFER, "II", 1, 0)))
    await pour_to_client(session, victim)
    assert victim.came <= MOST_FOLD * victim.sent
    lane.out_weather = Weather()
    await session.until(session.on_lane)


async def test_an_address_that_the_client_may_have_moved_to_gets_little(stage: Stage, victim: Victim) -> None:
    session, lane, _ = await stage.on_lane()
    for _ in range(20):
        victim.send(lane.seal(bytes([Message.FRAMES_ASK])))
        assert await comes_back(session, stage.echo)
    victim.count()
    assert victim.came <= MOST_FOLD * victim.sent


# -- what does not open, and what came before ------------------------------------------------------------------------


def of_exit(stage: Stage) -> PeerSession:
    """What the exit has of the only session."""
    (entry,) = stage.place.exit.sessions
    return entry


def lane_of(stage: Stage) -> LaneCarrier:
    link = of_exit(stage).packet_link
    assert link is not None and link.lane is not None
    return link.lane


async def test_what_does_not_open_is_counted_and_changes_nothing(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    good = lane.seal(bytes([Message.KEEPALIVE]))
    lane.send_raw(good)
    for _ in range(50):
        lane.send_raw(good)
        lane.send_raw(good[:-1] + bytes([good[-1] ^ 1]))
        forged = lane.seal(bytes([Message.FRAMES]))
        lane.send_raw(forged[:-1] + bytes([forged[-1] ^ 1]))
        lane.send_raw(good[:20])
    assert await comes_back(session, stage.echo, MEGABYTE)

    def counted() -> int:
        drops, listener = lane_of(stage).status().drops, stage.place.exit.sessions.lanes
        assert listener is not None
        return drops["replay"] + drops["tag"] + drops["length"] + listener.strangers

    await until(lambda: counted() >= 200)
    assert drops_of(stage, "replay") >= 50 and drops_of(stage, "tag") >= 50


def drops_of(stage: Stage, cause: str) -> int:
    return lane_of(stage).status().drops[cause]


async def test_malformed_messages_are_counted(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    wrong = [
        bytes([Message.ACK]),
        ack_message(1, 0, 0, 0, []),
        ack_message(1, 0, 0, 9, []),
        ack_message(9, 0, 0, 1, [0, 1]),
        ack_message(9, 0, 0, 1, [1, 1])[:-1],
        bytes([Message.STREAM]),
        bytes([0x7F]),
    ]
    for message in wrong:
        lane.send(message)
    await until(lambda: drops_of(stage, "malformed") >= len(wrong))
    assert await comes_back(session, stage.echo, MEGABYTE)


# -- acknowledgements ------------------------------------------------------------------------------------------------


def acknowledges_all(lane: Lane) -> None:
    """From now on acknowledge each counter up to the highest that came."""

    def fill() -> None:
        lane.came.pairs[:] = [(0, lane.came.pairs[-1][1])]

    lane.on_message = lambda counter, message: fill() if lane.came.pairs else None


async def ends_with(session: Session, reason: Close) -> None:
    with pytest.raises(SessionOver) as over:
        await session.until(lambda: False)
    assert over.value.args == (reason,)


async def test_who_acknowledges_what_was_never_sent_loses_the_session(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    assert await comes_back(session, stage.echo, MEGABYTE)
    lane.send(ack_message(1 << 40, 0, 0, 1, []))
    await ends_with(session, Close.PROTOCOL)


async def test_who_acknowledges_what_was_left_out_loses_the_session(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    acknowledges_all(lane)
    with pytest.raises(SessionOver) as over:
        while True:
            assert await comes_back(session, stage.echo, MEGABYTE)
    assert over.value.args == (Close.PROTOCOL,)


async def test_acknowledgements_that_come_often_and_say_much(stage: Stage) -> None:
    """Each is sent three times, with ranges that are long settled and a delay and marks beyond all measure."""
    session, lane, _ = await stage.on_lane()
    neighbour, *_ = await stage.on_lane()

    def thrice(datagram: bytes, deliver: Callable[[bytes], None]) -> None:
        deliver(datagram)
        if lane.came.pairs:
            held = list(range(lane.came.pairs[-1][1] - 1, -1, -1))
            held = [counter for counter in held if lane.came.has(counter)][::2][:RANGES]
            if len(held) > 1:
                rest = [step for high, low in pairwise(held) for step in (high - low - 1, 1)]
                if 0 not in rest:
                    for _ in range(2):
                        deliver(lane.seal(ack_message(held[0], 4_000, (1 << 32) - 1, 1, rest)))

    lane.out_weather = thrice
    attack = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE))
    assert await comes_back(neighbour, stage.echo, MEGABYTE)
    assert await attack
    lane.out_weather = Weather()
    assert await comes_back(session, stage.echo, MEGABYTE)


async def test_a_peer_that_acknowledges_nothing_gets_by_tcp_what_the_lane_carried(stage: Stage) -> None:
    """And the exit keeps no more than it may of what waits."""
    session, lane, _ = await stage.on_lane()
    lane.acks = False
    flow = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 2))
    most = 0
    while not flow.done():
        await asyncio.sleep(0.005)
        if not session.over:
            most = max(most, of_exit(stage).session.retention.kept)
    assert await flow
    assert 0 < most <= session_limits().retained + MAX_SMALL


# -- what the exit keeps ---------------------------------------------------------------------------------------------


async def test_data_for_streams_that_are_never_opened_has_a_bound(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    sent = []
    for number in range(2_000, 2_600):
        sent.append(lane.send(stream_message(number, 0, bytes(1_000), ask=True)))
        await asyncio.sleep(0)
    ahead = of_exit(stage).session.receiver.ahead
    await session.until(lambda: len(lane.acked & set(sent)) > 100)
    assert await comes_back(session, stage.echo, MEGABYTE)
    assert 100_000 < ahead.bytes <= MAX_AHEAD
    assert len(lane.acked & set(sent)) < 300


async def test_bytes_with_holes_before_them_have_a_bound(stage: Stage) -> None:
    """What finds no room is not acknowledged; the session goes on, and so does the stream."""
    session, lane, _ = await stage.on_lane()
    stream = await session.open(stage.echo)
    await stream.opened()
    sent = []
    for gap in range(1_500):
        sent.append(lane.send(stream_message(stream.number, 2 * gap + 1, b"x", ask=True)))
        if gap % 50 == 0:
            await asyncio.sleep(0.001)
    assert await comes_back(session, stage.echo, MEGABYTE)
    assert 0 < len(lane.acked & set(sent)) < 1_024
    for begin in range(0, 3_000, 1_000):
        lane.send(stream_message(stream.number, begin, bytes(1_000), ask=True))
    data = b""
    while len(data) < 3_000:
        data += await stream.read()
    assert not data.strip(b"x\0")


async def test_counters_with_holes_between_them_have_a_bound(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    driver = lane_of(stage).driver
    assert driver is not None
    for step in [1] * 2_000 + [1 << 17, 1 << 33, 1 << 62]:
        lane.counter += step
        lane.send(bytes([Message.FRAMES_ASK]))
        if lane.counter % 100 == 0:
            await asyncio.sleep(0)
    assert await comes_back(session, stage.echo, MEGABYTE)
    assert len(driver.received._bounds) <= 2 * MAX_RANGES


@pytest.mark.parametrize("jump", [3_600.0, -3_600.0])
async def test_a_clock_that_jumps_stops_no_stream(stage: Stage, jump: float) -> None:
    session, *_ = await stage.on_lane()
    neighbour, *_ = await stage.on_lane()
    assert await comes_back(session, stage.echo, MEGABYTE)
    entry = stage.place.exit.sessions.by_id(session.session_id)
    assert entry is not None and entry.packet_link is not None and entry.packet_link.lane is not None
    carrier = entry.packet_link.lane
    flow = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 4))
    await session.until(lambda: session.came > 2 << 20)
    before = carrier._clock
    carrier._clock = lambda: before() + jump
    assert await flow
    assert await comes_back(session, stage.echo, MEGABYTE)
    assert await comes_back(neighbour, stage.echo, MEGABYTE)


@pytest.mark.parametrize(
    "message",
    [
        bytes([Message.FRAMES]) + frame(Kind.PING, "Q", 1),
        stream_message(0, 0, b"x"),
        stream_message(1, 1 << 62, b"x"),
    ],
    ids=["a frame of a path", "stream 0", "an offset above 2^62"],
)
async def test_what_may_not_come_by_the_lane_ends_the_session(stage: Stage, message: bytes) -> None:
    session, lane, _ = await stage.on_lane()
    lane.send(message)
    await ends_with(session, Close.PROTOCOL)
