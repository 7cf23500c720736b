"""A hostile peer on the lane of the real exit: what it does is bounded and counted, and its neighbours go on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress

import pytest

from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.settings import LaneSettings
from cryprq_proxy.recovery.bbr import Bbr
from tests.support.second_client import Session
from tests.support.second_frames import UDP, Address, Kind, frame
from tests.support.second_lane import Message, Weather
from tests.support.second_stage import Stage, comes_back
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
