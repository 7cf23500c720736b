"""A hostile exit on the lane of a real client: what it does is bounded and counted, and the client goes on.

The exit is a real one, whose side of the lane the tests take over.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.carrier import LaneCarrier
from cryprq_proxy.carriers.lane.driver import LaneDriver
from cryprq_proxy.carriers.lane.settings import LaneSettings
from cryprq_proxy.client.client import Client
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.received import MAX_RANGES, AckFrame, encode
from cryprq_proxy.session.session import MAX_SMALL, Session
from cryprq_proxy.session.wire import LaneUse
from tests.support.second_frames import Kind, frame
from tests.support.second_lane import Message, ack_message, stream_message
from tests.support.second_stage import MEGABYTE
from tests.support.settings import session_limits
from tests.support.settle import until
from tests.support.web_links import Place, opened, place

pytestmark = pytest.mark.timeout(60)
SETTINGS = LaneSettings(UdpOffload(True, True), Bbr)


class Stage:
    """An exit, and a client that sends by the lane."""

    def __init__(self, exit_place: Place) -> None:
        self.place = exit_place
        self.client: Client = exit_place.client(
            exit_place.endpoint("tcp"), lane=SETTINGS, lane_use=LaneUse.UDP
        )

    async def begin(self) -> None:
        await until(lambda: self.session is not None and self.session.lane is not None)
        await until(lambda: self.of_client.driver.streams.carries and self.of_exit.driver.streams.carries)  # type: ignore[union-attr]

    @property
    def session(self) -> Session | None:
        return self.client._kept.session

    @property
    def of_client(self) -> LaneCarrier:
        link = self.client._kept.packet_link
        assert link is not None and link.lane is not None
        return link.lane

    @property
    def of_exit(self) -> LaneCarrier:
        assert self.session is not None
        entry = self.place.exit.sessions.by_id(self.session.session_id)
        assert entry is not None and entry.packet_link is not None and entry.packet_link.lane is not None
        return entry.packet_link.lane

    @property
    def driver(self) -> LaneDriver:
        """The exit's."""
        driver = self.of_exit.driver
        assert driver is not None
        return driver

    def seal(self, message: bytes) -> bytes:
        """As the exit."""
        exit = self.of_exit
        assert exit.begin()
        size = exit.lane.seal(message, exit._output, 0)
        return bytes(exit._output[:size])

    def send(self, datagram: bytes) -> None:
        outlet = self.of_exit._outlet()
        assert outlet is not None
        outlet.socket.send(memoryview(bytearray(datagram)), len(datagram), outlet.to)

    async def echoes(self, data: bytes = MEGABYTE) -> bool:
        return await self.place.echoes(self.client, data)

    async def loses_the_session(self, before: Session | None) -> None:
        """The client ends it, and has another one that works."""
        await until(lambda: self.session is not before)
        await self.begin()
        assert await self.echoes()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with place(lane=SETTINGS, limits=session_limits()) as exit_place:
        stage = Stage(exit_place)
        await stage.begin()
        yield stage


# -- acknowledgements ------------------------------------------------------------------------------------------------


async def test_an_exit_that_acknowledges_what_was_never_sent_loses_the_session(stage: Stage) -> None:
    assert await stage.echoes()
    before = stage.session
    stage.send(stage.seal(ack_message(1 << 40, 0, 0, 1, [])))
    await stage.loses_the_session(before)


async def test_an_exit_that_acknowledges_what_was_left_out_loses_the_session(stage: Stage) -> None:
    before, received = stage.session, stage.driver.received
    take = received.take

    def all_of_it(now: float) -> AckFrame | None:
        frame = take(now)
        return None if frame is None else frame._replace(bounds=[0, frame.bounds[-1]])

    stage.driver._acknowledge = lambda now: _say(stage.driver, all_of_it(now))  # type: ignore[method-assign]
    flow = asyncio.create_task(_flow(stage))
    try:
        await until(lambda: stage.session is not before)
    finally:
        flow.cancel()
        await asyncio.wait([flow])
    await stage.begin()
    assert await stage.echoes()


async def _flow(stage: Stage) -> None:
    while await stage.echoes():
        pass


def _say(driver: LaneDriver, told: AckFrame | None, times: int = 1) -> None:
    """The acknowledgement that the exit sends."""
    lane = driver._carrier
    if told is None or not lane.begin():
        return
    message = bytes([Message.ACK]) + encode(told)
    for _ in range(times):
        size = lane.lane.seal(message, driver._output, 0)
        lane.push(0, size, size, False)


async def test_an_exit_that_says_all_three_times_with_delays_and_marks_beyond_measure(stage: Stage) -> None:
    driver = stage.driver

    def thrice(now: float) -> None:
        told = driver.received.take(now)
        _say(driver, None if told is None else told._replace(delay=4_000.0, ce=(1 << 32) - 1), 3)

    driver._acknowledge = thrice  # type: ignore[method-assign]
    assert await stage.echoes()
    assert stage.driver is driver, "it is still the same session"


async def test_an_exit_that_acknowledges_nothing_gets_by_tcp_what_the_lane_carried(stage: Stage) -> None:
    driver, session = stage.driver, stage.session
    assert session is not None
    driver._acknowledge = driver.received.take  # type: ignore[assignment, method-assign]
    flow = asyncio.create_task(stage.echoes(MEGABYTE * 2))
    most = 0
    while not flow.done():
        await asyncio.sleep(0.005)
        most = max(most, session.retention.kept)
    assert await flow
    assert 0 < most <= session_limits().retained + MAX_SMALL
    assert stage.session is session


# -- what does not open, what came before, and from elsewhere ---------------------------------------------------------


async def test_what_does_not_open_is_counted_and_changes_nothing(stage: Stage) -> None:
    assert await stage.echoes()
    good = stage.seal(bytes([Message.KEEPALIVE]))
    stage.send(good)
    for _ in range(50):
        stage.send(good)
        forged = stage.seal(bytes([Message.FRAMES]))
        stage.send(forged[:-1] + bytes([forged[-1] ^ 1]))
        stage.send(good[:20])
        stage.send(stage.seal(bytes([Message.ACK])))
    before = stage.session

    def counted(cause: str) -> int:
        return stage.of_client.status().drops[cause]

    await until(lambda: counted("replay") >= 50 and counted("tag") >= 50 and counted("malformed") >= 50)
    assert await stage.echoes()
    assert stage.session is before


async def test_datagrams_from_elsewhere_are_not_read(stage: Stage) -> None:
    """The client's socket takes what its exit sends, and nobody else."""
    outlet = stage.of_exit._outlet()
    assert outlet is not None and outlet.to is not None
    received = stage.of_client.status().received
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as elsewhere:
        elsewhere.bind(("127.0.0.2", 0))
        for _ in range(200):
            elsewhere.sendto(stage.seal(bytes([Message.FRAMES_ASK])), outlet.to.address[:2])
    assert await stage.echoes(b"hello")
    assert stage.of_client.status().received < received + 200
    assert await stage.echoes()


# -- what the client keeps -------------------------------------------------------------------------------------------


async def test_bytes_with_holes_before_them_have_a_bound(stage: Stage) -> None:
    app = await opened(stage.client, stage.place.echo)
    assert app.stream is not None and stage.session is not None
    for gap in range(1_500):
        stage.send(stage.seal(stream_message(app.stream.id, 2 * gap + 1, b"x", ask=True)))
        if gap % 20 == 0:
            await asyncio.sleep(0.001)
    assert await stage.echoes()
    pieces = app.stream.pieces
    assert pieces is not None and 0 < pieces.pieces < 1_024


async def test_counters_with_holes_between_them_have_a_bound(stage: Stage) -> None:
    exit, client = stage.of_exit, stage.of_client.driver
    assert client is not None
    for step in [1] * 2_000 + [1 << 17, 1 << 33]:
        for _ in range(min(step, 1)):
            exit.lane.skip()
        stage.send(stage.seal(bytes([Message.FRAMES_ASK])))
        if exit.lane.counter % 100 == 0:
            await asyncio.sleep(0)
    assert await stage.echoes()
    assert len(client.received._bounds) <= 2 * MAX_RANGES


@pytest.mark.parametrize(
    "message",
    [
        bytes([Message.FRAMES]) + frame(Kind.PING, "Q", 1),
        stream_message(1_000, 0, b"x"),
        stream_message(0, 0, b"x"),
    ],
    ids=["a frame of a path", "a stream that the client did not open", "stream 0"],
)
async def test_what_may_not_come_by_the_lane_ends_the_session(stage: Stage, message: bytes) -> None:
    before = stage.session
    stage.send(stage.seal(message))
    await stage.loses_the_session(before)
