"""Streams over the lane, as docs/protocol.md has them: the second client against the real exit."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.settings import LaneSettings
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.cubic import Cubic
from tests.support.pages import ROOT
from tests.support.second_client import Session, Stream
from tests.support.second_flights import AES, CHACHA
from tests.support.second_frames import TCP, UDP, fin_frame, put_address
from tests.support.second_lane import Lane, LaneKey, Message, Ranges, Weather, read_ack, stream_message
from tests.support.second_stage import MEGABYTE, Stage, comes_back, say
from tests.support.settings import session_limits
from tests.support.web_links import place

pytestmark = pytest.mark.timeout(60)
VECTORS = json.loads((ROOT / "tests/vectors/lane.json").read_text())


SETTINGS = [LaneSettings(UdpOffload(True, True), Bbr), LaneSettings(UdpOffload(False, False), Cubic)]


@pytest.fixture(params=SETTINGS, ids=["offload", "plain"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with place(lane=request.param, limits=session_limits()) as exit_place:
        stage = Stage(exit_place)
        try:
            yield stage
        finally:
            await stage.stop()


def watch(lane: Lane) -> dict[int, int]:
    """How many messages of each type come from now on."""
    seen: dict[int, int] = {}

    def look(counter: int, message: bytes) -> None:
        seen[message[0]] = seen.get(message[0], 0) + 1

    lane.on_message = look
    return seen


async def until_acked(session: Session, lane: Lane, *counters: int) -> None:
    await session.until(lambda: lane.acked.issuperset(counters))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: str(case["cipher"]))
def test_frozen_datagrams_open(case: dict[str, object]) -> None:
    cipher = AES if str(case["cipher"]).startswith("AES") else CHACHA
    key = LaneKey(cipher, bytes.fromhex(str(case["key"])), int(str(case["index"])))
    counter = 0
    for row in case["sent"]:  # type: ignore[attr-defined]
        for datagram in row["datagrams"]:
            told, message = key.open(bytes.fromhex(datagram))
            assert told == counter
            assert key.seal(counter, message) == bytes.fromhex(datagram)
            counter += 1


def test_ranges_in_any_order() -> None:
    ranges = Ranges()
    for counter in [5, 3, 9, 4, 4, 0, 10, 9]:
        ranges.add(counter)
    assert ranges.pairs == [(0, 1), (3, 6), (9, 11)]
    assert read_ack(ranges.message(0)) == [(9, 11), (3, 6), (0, 1)]


async def test_both_directions_go_over_the_lane(stage: Stage) -> None:
    session, lane, path = await stage.on_lane()
    seen, records = watch(lane), path.out.count
    contents = [bytes([number]) * 70_000 + MEGABYTE[number:] for number in range(6)]
    assert all(await asyncio.gather(*(comes_back(session, stage.echo, content) for content in contents)))
    await session.until(lambda: not lane.flying)
    assert session.retained == 0 and not session.streams
    assert seen[Message.STREAM] + seen[Message.STREAM_ASK] > 6 << 20 >> 17
    assert path.out.count < records + 100


async def test_bytes_arrive_through_bad_weather(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    lane.out_weather = Weather(1, drop=0.03, double=0.03, late=0.1)
    lane.in_weather = Weather(2, drop=0.03, double=0.03, late=0.1)
    contents = [bytes([number]) * 50_000 + MEGABYTE[number:] for number in range(3)]
    assert all(await asyncio.gather(*(comes_back(session, stage.echo, content) for content in contents)))


async def test_an_upload_has_its_checksum_at_the_target(stage: Stage) -> None:
    got: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        digest = hashlib.sha256()
        while data := await reader.read(65_536):
            digest.update(data)
        got.set_result(digest.hexdigest())
        writer.close()

    session, lane, _ = await stage.on_lane()
    lane.out_weather = Weather(3, drop=0.02, late=0.2)
    stream = await session.open(await stage.server(sink))
    data = random.Random(4).randbytes(3 << 20)
    await say(stream, data)
    assert await got == hashlib.sha256(data).hexdigest()
    assert await stream.read_all() == b""


async def test_a_download_has_its_checksum(stage: Stage) -> None:
    data = random.Random(5).randbytes(8 << 20)

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    session, lane, _ = await stage.on_lane()
    lane.in_weather = Weather(6, drop=0.02, double=0.1, late=0.05)
    stream = await session.open(await stage.server(pour))
    assert await stream.read_all() == data


async def test_an_open_that_is_lost_goes_again_and_its_data_waits_for_it(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    lost: list[bytes] = []

    def lose_open(datagram: bytes, deliver: Callable[[bytes], None]) -> None:
        if not lost:
            lost.append(datagram)  # the first one holds OPEN
        else:
            deliver(datagram)

    lane.out_weather = lose_open
    assert await comes_back(session, stage.echo, MEGABYTE[:40_000])
    assert lost and session.over is None


async def test_data_goes_before_its_open(stage: Stage) -> None:
    """What the exit holds until the OPEN is there, it acts on then, without being told again."""
    session, lane, _ = await stage.on_lane()
    seen = watch(lane)
    number = 9
    ahead = lane.send(stream_message(number, 0, b"hello", ask=True))
    end = lane.send(bytes([Message.FRAMES_ASK]) + fin_frame(number, 5))
    session.streams[number] = stream = Stream(session, number, stage.echo, TCP)
    session.next_stream, stream.sent, stream.out_end = number + 1, 5, 5
    lane.send(bytes([Message.FRAMES]) + session.open_frame(stream))
    assert await stream.read_all() == b"hello"
    await until_acked(session, lane, ahead, end)
    assert seen[Message.ACK]


@pytest.mark.parametrize("delay", [0.2, 0.6])
async def test_late_acknowledgements_end_nothing(stage: Stage, delay: float) -> None:
    session, lane, _ = await stage.on_lane()
    lane.ack_delay = delay
    assert await comes_back(session, stage.echo, MEGABYTE[:300_000])
    lane.ack_delay = 0.02
    assert await comes_back(session, stage.echo, MEGABYTE)


async def test_streams_go_on_over_the_lane_when_the_only_path_is_cut(stage: Stage) -> None:
    wire, address = await stage.wire()
    session = stage.session(lane=stage.tcp)
    path = await session.begin(address)
    await session.until(session.on_lane)
    stream = await session.open(stage.echo)
    await stream.write(MEGABYTE)
    await wire.stop()
    await path.lost.wait()
    assert not session.paths
    stream.finish()
    assert await stream.read_all() == MEGABYTE
    assert await comes_back(session, stage.echo, MEGABYTE)
    await session.join(stage.tcp)
    assert await session.rotate() == 1
    assert await comes_back(session, stage.echo)


async def test_what_the_lane_carries_goes_by_a_path_when_it_falls_silent(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    stream = await session.open(stage.echo)
    await stream.write(MEGABYTE)
    assert await stream.read()
    silence = Weather(drop=1)
    lane.out_weather = lane.in_weather = silence
    lane.fall()
    stream.finish()
    await stream.read_all()
    assert stream.taken == len(MEGABYTE)
    lane.out_weather = lane.in_weather = Weather()
    await session.until(session.on_lane)
    assert await comes_back(session, stage.echo, MEGABYTE)


async def test_counters_go_on_over_rotations(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    counters: list[int] = []
    firsts: dict[int, int] = {}

    def look(counter: int, message: bytes) -> None:
        counters.append(counter)
        firsts.setdefault(lane.heard_in, counter)

    lane.on_message = look
    flow = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 3))
    for epoch in (1, 2, 3):
        before = lane.counter
        assert await session.rotate() == epoch
        await session.until(lambda: lane.sends_in == lane.heard_in == session.epoch.number)
        assert lane.counter > before
    assert await flow
    assert await comes_back(session, stage.echo)
    assert len(set(counters)) == len(counters)
    assert list(firsts) == [0, 1, 2, 3] and list(firsts.values()) == sorted(firsts.values())


@pytest.mark.parametrize("size", [610, 1210, 1252])
async def test_the_keys_rotate_over_a_lane_that_takes_only_small_datagrams(stage: Stage, size: int) -> None:
    """There is no path any more. A whole REKEY would need a datagram of 1,285 bytes."""

    def journey(datagram: bytes, deliver: Callable[[bytes], None]) -> None:
        if len(datagram) <= size:
            deliver(datagram)

    wire, address = await stage.wire()
    session = stage.session(lane=stage.tcp, weather=journey)
    path = await session.begin(address)
    await session.until(session.on_lane)
    assert session.lane is not None
    session.lane.in_weather = journey
    assert await comes_back(session, stage.echo, MEGABYTE[:100_000])
    await wire.stop()
    await path.lost.wait()
    assert not session.paths
    for epoch in (1, 2, 3):
        assert await session.rotate() == epoch
        assert await comes_back(session, stage.echo, MEGABYTE[:100_000])
    assert not session.paths


async def test_the_client_moves_to_another_address(stage: Stage) -> None:
    session, lane, _ = await stage.on_lane()
    seen = watch(lane)
    stream = await session.open(stage.echo)
    await stream.write(MEGABYTE)
    lane.move()
    stream.finish()
    assert await stream.read_all() == MEGABYTE
    assert seen[Message.CHALLENGE]


async def test_datagrams_of_a_udp_stream_go_by_the_lane_too(stage: Stage) -> None:
    """The exit sends those that fit there."""
    loop = asyncio.get_running_loop()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data, addr)  # type: ignore[attr-defined]

    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    try:
        session, lane, _ = await stage.on_lane()
        seen = watch(lane)
        stream = await session.open(("0.0.0.0", 0), UDP)
        await stream.opened()
        target = transport.get_extra_info("sockname")
        message = struct.pack(">BI", Message.DATAGRAM, stream.number) + put_address(target) + b"over the lane"
        while not seen.get(Message.DATAGRAM):  # before it has an answer to its probe, it uses the path
            lane.send(message)
            assert await stream.datagram() == (target, b"over the lane")
    finally:
        transport.close()
