"""docs/protocol.md against the product: a client that was made from the page runs against the real exit."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.support import second_client as second
from tests.support import second_flights as flights
from tests.support.pages import ROOT
from tests.support.second_client import Path, Session
from tests.support.second_flights import Handshake, Keys
from tests.support.second_frames import (
    CANCELLED,
    CONNECTION_REFUSED,
    FIXED,
    TCP,
    UDP,
    Address,
    Close,
    Kind,
    data_frame,
    fin_frame,
    frame,
    frames,
    put_address,
    rekey_frame,
)
from tests.support.second_stage import EXIT_ID, KEYS, MEGABYTE, Stage, comes_back, plain, raw, say, watch
from tests.support.settings import rotation_limits, session_limits
from tests.support.web_links import Relay, place

pytestmark = pytest.mark.timeout(60)
FROZEN = json.loads((ROOT / "tests/vectors/frozen.json").read_text())
RECORDS = json.loads((ROOT / "tests/vectors/records.json").read_text())


@pytest.fixture
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """The parameter has what is different in the exit's limits."""
    async with place(limits=session_limits(**getattr(request, "param", {}))) as exit_place:
        stage = Stage(exit_place)
        try:
            yield stage
        finally:
            await stage.stop()


# -- the vectors -----------------------------------------------------------------------------------------------


def opened_first(message: bytes, name: bytes, prologue: bytes, psk: bytes) -> tuple[int, bytes]:
    """The size of the encapsulation key and the payload in a first message."""
    noise = flights.Noise(name, prologue)
    noise.mix_key_and_hash(psk)
    noise.mix_hash(message[:32])
    noise.mix_key(message[:32])
    return len(noise.decrypt(message[32:1232])), noise.decrypt(message[1232:])


@pytest.mark.parametrize(("shown", "pattern"), [(FROZEN, 0), (FROZEN["short"], 1)], ids=["signed", "short"])
def test_frozen_first_flights_of_both_patterns_open(shown: dict[str, Any], pattern: int) -> None:
    exit_id = bytes.fromhex("842d521c32eb82e2035ad8a9bc3aa72746afa098f700992137ec473f8316e276")
    psk = flights.sha256(b"cryprq/1 psk0" + exit_id)
    first = bytes.fromhex(shown["first"])
    size, payload = opened_first(first, flights.LINK_NAME, b"cryprq/1 link" + exit_id, psk)
    assert (size, payload[:3], payload[-1]) == (1184, bytes([1, 2, 2]), pattern)


def test_frozen_flights_have_the_lengths_of_the_page() -> None:
    assert [len(FROZEN[flight]) // 2 for flight in ("first", "second")] == [1258, 6547]
    assert len(FROZEN["third"]) // 2 == 5458 and len(FROZEN["invite"]["third"]) // 2 == 5422
    assert [len(FROZEN["short"][flight]) // 2 for flight in ("first", "second", "third")] == [1258, 1158, 52]


@pytest.mark.parametrize("path", [0, 7])
def test_frozen_keys_of_a_path(path: int) -> None:
    records = bytes.fromhex(FROZEN["epoch 0"]["records"])
    for side in ("client", "exit"):
        expected = FROZEN[f"epoch 0, path {path}"][f"{side}_record"]
        assert flights.path_key(records, side.encode(), path).hex() == expected


def test_frozen_short_handshake_has_ticket_and_keys_of_its_path() -> None:
    short = FROZEN["short"]
    path = short["path"]
    assert short["ticket"] == flights.ticket(bytes.fromhex(FROZEN["epoch 1"]["resume"]), path).hex()
    for side in ("client", "exit"):
        key = flights.path_key(bytes.fromhex(short["records"]), side.encode(), path)
        assert key.hex() == short[f"{side}_record"]


def test_frozen_rekey_opens_with_the_secrets_of_its_epoch() -> None:
    epoch = {name: bytes.fromhex(value) for name, value in FROZEN["epoch 0"].items()}
    prologue = b"cryprq/2 rekey" + bytes.fromhex(FROZEN["session_id"]) + struct.pack(">I", 1) + epoch["hash"]
    rekey = bytes.fromhex(FROZEN["rekey"])
    assert opened_first(rekey, flights.REKEY_NAME, prologue, epoch["chain"]) == (1184, b"")


@pytest.mark.parametrize("case", RECORDS, ids=lambda case: str(case["cipher"]))
def test_frozen_records(case: dict[str, Any]) -> None:
    cipher = flights.AES if case["cipher"].startswith("AES") else flights.CHACHA
    key = bytes.fromhex(case["key"])
    out, back = second.Direction(cipher, key, 0), second.Direction(cipher, key, 0)
    for row in case["records"]:
        plaintext = bytes.fromhex(row["plaintext"]) * int(row.get("times", 1))
        record = out.seal(plaintext)
        assert hashlib.sha256(record).hexdigest() == row["sha256"]
        assert back.open(record[:4], record[4:]) == plaintext


def test_proofs_of_the_page() -> None:
    resume, h2 = bytes(range(0x20, 0x40)), bytes(range(0x40, 0x60))
    assert flights.ticket(resume, 1).hex() == "7bb2725cea2aa22a9c8bfc6a52115606"
    proofs = [flights.proof(resume, role, h2, 1).hex()[:16] for role in (b"C", b"S")]
    assert proofs == ["92f5707f7384f025", "9cb337f622da6361"]


def rows_of(heading: str) -> list[tuple[str, bytes]]:
    """A table of examples on the page: what, and its bytes."""
    page = (ROOT / "docs/protocol.md").read_text()
    section = page.split(f"### {heading}\n")[1].split("\n### ")[0]
    return [
        (what, bytes.fromhex(data)) for what, data in re.findall(r"^\| (.+?) \| `(\w+)` \|$", section, re.M)
    ]


@pytest.mark.parametrize(("what", "data"), rows_of("Frames"), ids=lambda value: str(value)[:24])
def test_frames_of_the_page(what: str, data: bytes) -> None:
    kind = Kind[what.split(",")[0]]
    assert data[0] == kind
    if kind == Kind.REKEY_ANSWER or kind == Kind.DATAGRAM or kind == Kind.ADVERTISE or kind in FIXED:
        ((parsed, _),) = frames(data)
        assert parsed == kind


def test_frames_that_the_client_makes_are_those_of_the_page() -> None:
    page = dict(rows_of("Frames"))
    example = frame(Kind.OPEN, "IB", 1, TCP) + put_address(("example.com", 443))
    assert page["OPEN, stream 1, TCP, example.com:443"] == example
    six = frame(Kind.OPEN, "IB", 2, TCP) + put_address(("2001:db8::1", 22))
    assert page["OPEN, stream 2, TCP, [2001:db8::1]:22"] == six
    assert page['DATA, stream 1, offset 65,536, "bye"'] == data_frame(1, 65_536, b"bye")
    assert page["FIN, stream 1, final offset 65,539"] == fin_frame(1, 65_539)
    datagram = frame(Kind.DATAGRAM, "IH", 3, 2) + put_address(("192.0.2.53", 53)) + b"\x12\x34"
    assert page["DATAGRAM, stream 3, 192.0.2.53:53, payload 1234"] == datagram
    assert list(frames(datagram)) == [(Kind.DATAGRAM, (3, ("192.0.2.53", 53), b"\x12\x34"))]


# -- handshake and streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ciphers", [b"\1\2", b"\2\1", b"\2"], ids=["aes", "chacha first", "chacha only"])
async def test_a_session_begins_and_early_data_goes_along(stage: Stage, ciphers: bytes) -> None:
    session = stage.session(ciphers=ciphers)
    stream = await session.open(stage.echo)
    early = MEGABYTE[:65_536]
    await say(stream, early)
    path = await session.begin(stage.tcp)
    assert path.verdict.result() == Kind.ACCEPT
    assert path.made.cipher in ciphers and (ciphers[0] == flights.AES or path.made.cipher == flights.CHACHA)
    assert await stream.read_all() == early
    assert not session.streams


async def test_many_streams_at_once_in_both_directions(stage: Stage) -> None:
    session, path = await stage.begun()
    contents = [bytes([number]) * 700_000 + MEGABYTE[number:] for number in range(24)]
    assert all(await asyncio.gather(*(comes_back(session, stage.echo, content) for content in contents)))
    assert await comes_back(session, stage.echo, MEGABYTE * 12)
    await session.until(lambda: not path.log)
    assert not session.streams and session.retained == 0


async def test_the_credit_of_the_session_is_renewed(stage: Stage) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(136):
            writer.write(MEGABYTE)
            await writer.drain()
        writer.close()

    session, _ = await stage.begun()
    stream = await session.open(await stage.server(pour))
    size = 0
    while piece := await stream.read():
        size += len(piece)
    assert size == 136 << 20 > second.FIRST_CREDIT


async def test_the_credit_that_the_exit_gives_is_renewed(stage: Stage) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        writer.write(b"%d" % size)
        writer.close()

    session, _ = await stage.begun()
    stream = await session.open(await stage.server(count))
    for _ in range(136):
        await stream.write(MEGABYTE)
    stream.finish()
    assert await stream.read_all() == b"%d" % (136 << 20)


async def test_either_half_may_close_first(stage: Stage) -> None:
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())
        writer.write(MEGABYTE)
        writer.close()

    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def close_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    session, _ = await stage.begun()
    stream = await session.open(await stage.server(digest))
    await say(stream, MEGABYTE)
    assert await stream.read_all() == hashlib.sha256(MEGABYTE).digest() + MEGABYTE
    stream = await session.open(await stage.server(close_first))
    assert await stream.read_all() == b"bye"
    assert stream.in_end == 3 and stream.number in session.streams
    await say(stream, MEGABYTE)
    assert await heard == MEGABYTE
    assert not session.streams


@pytest.mark.parametrize("fin", [False, True])
async def test_a_refusal_is_answered_with_the_final_offset(stage: Stage, fin: bool) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    nobody = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    session, path = await stage.begun()
    refused = watch(session, Kind.REFUSED)
    stream = await session.open(nobody)
    await stream.write(b"x" * 5_000)
    if fin:
        stream.finish()
    with pytest.raises(second.StreamEnded) as ended:
        await stream.opened()
    assert ended.value.args == (CONNECTION_REFUSED,)
    assert refused == [(stream.number, CONNECTION_REFUSED)]
    assert stream.out_end == 5_000 and stream.in_end == 0 and not session.streams
    assert await comes_back(session, stage.echo)
    await session.until(lambda: not path.log)


async def test_a_reset_is_answered_with_what_the_exit_has_sent(stage: Stage) -> None:
    broken: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 12_345)
        try:
            broken.set_result(await reader.read())
        except ConnectionError:
            broken.set_result(b"reset")
        writer.close()

    session, _ = await stage.begun()
    answers = watch(session, Kind.RESET)
    stream = await session.open(await stage.server(speak))
    await session.until(lambda: stream.highest == 12_345)
    stream.reset()
    await session.until(lambda: not session.streams)
    assert answers == [(stream.number, CANCELLED, 12_345)]
    assert await broken == b"reset"
    assert session.taken == session.came == 12_345


async def test_a_reset_by_the_target_is_answered(stage: Stage) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(7)
        # Without linger, a target that has read everything ends with FIN.
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    session, path = await stage.begun()
    resets = watch(session, Kind.RESET)
    stream = await session.open(await stage.server(hang_up))
    await stream.write(b"goodbye")
    with pytest.raises(second.StreamEnded):
        await stream.read()
    assert resets == [(stream.number, 10, 0)]
    assert stream.out_end == 7 and not session.streams
    await session.until(lambda: not path.log)
    assert await comes_back(session, stage.echo)


async def test_datagrams_have_the_address_of_their_source(stage: Stage) -> None:
    loop = asyncio.get_running_loop()
    session, _ = await stage.begun()
    stream = await session.open(("0.0.0.0", 0), UDP)
    await stream.opened()
    with socket.socket(type=socket.SOCK_DGRAM) as target:
        target.setblocking(False)
        target.bind(("127.0.0.1", 0))
        for payload in (b"abc", b"", b"x" * 1_400):
            stream.send_datagram(target.getsockname(), payload)
            came, source = await loop.sock_recvfrom(target, 2_000)
            assert came == payload
            await loop.sock_sendto(target, payload[::-1], source)
            assert await stream.datagram() == (target.getsockname(), payload[::-1])
    resets = watch(session, Kind.RESET)
    stream.finish()
    await session.until(lambda: not session.streams)
    assert resets == [(stream.number, CANCELLED, 0)]


async def test_pieces_in_any_order_and_twice(stage: Stage) -> None:
    session, path = await stage.begun()
    stream = await session.open(stage.echo)
    await stream.opened()
    odd = [data_frame(1, offset, b"o") for offset in range(1, 2_001, 2)]
    even = [data_frame(1, offset, b"e") for offset in range(0, 2_000, 2)]
    other = data_frame(1, 1_000, b"?" * 1_001)
    raw(path, *odd, other, *even, fin_frame(1, 2_001))
    stream.out_end = 2_001
    assert await stream.read_all() == b"eo" * 500 + b"?o" * 500 + b"?"
    assert not session.streams


async def test_the_client_waits_for_what_lies_before_a_fin() -> None:
    session = Session(KEYS, EXIT_ID)
    stream = await session.open(("127.0.0.1", 1))
    stream.end(6)
    assert not stream.ended()
    stream.accept(5, b"!")
    stream.accept(0, b"hello")
    assert stream.ended() and await stream.read_all() == b"hello!"


async def test_a_fin_before_its_data_is_no_end_yet(stage: Stage) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def close_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    session, path = await stage.begun()
    stream = await session.open(await stage.server(close_first))
    assert await stream.read_all() == b""
    raw(path, data_frame(1, 5, b"!"), fin_frame(1, 6))
    assert await comes_back(session, stage.echo)
    assert not heard.done()
    raw(path, data_frame(1, 0, b"hello"))
    assert await heard == b"hello!"


# -- paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [True, False], ids=["short", "signed"])
async def test_the_loss_of_the_only_path_costs_nothing(stage: Stage, short: bool) -> None:
    relay = Relay(stage.place.tcp)
    stage.wires.append(relay)
    session = stage.session()
    path = await session.begin(plain(await relay.start()))
    transfers = [asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 4)) for _ in range(4)]
    await session.until(lambda: session.came > 3_000_000)
    relay.cut()
    await path.lost.wait()
    assert not any(transfer.done() for transfer in transfers) and session.again
    joined = await session.join(stage.tcp, short=short)
    assert joined.verdict.result() == (Kind.ACCEPT if short else Kind.JOINED)
    assert joined.number == 1
    assert all(await asyncio.gather(*transfers))


async def test_a_session_survives_many_losses(stage: Stage) -> None:
    session, path = await stage.begun()
    transfer = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 8))
    for turn in range(6):
        came = session.came
        await session.until(lambda came=came: session.came > came + 500_000)  # type: ignore[misc]
        session.lose(path)
        path = await session.join(stage.tcp, short=turn < 5)  # a ticket needs a rotation behind a signature
    assert await transfer


async def test_of_two_paths_one_is_cut(stage: Stage) -> None:
    session, first = await stage.begun()
    wire, address = await stage.wire()
    newer = await session.join(address)
    transfer = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 6))
    await session.until(lambda: session.came > 1_000_000)
    assert session.carrier() is newer
    await wire.stop()
    await newer.lost.wait()
    assert await transfer
    assert session.carrier() is first and not session.again


async def test_an_open_goes_first_on_each_path(stage: Stage) -> None:
    session = stage.session()
    wire, address = await stage.wire()
    first = await session.begin(address)
    newer = await session.join(stage.tcp)
    session.prefer(first)
    assert await comes_back(session, stage.echo)
    wire.swallow_there = True
    stream = await session.open(stage.echo)
    await wire.swallowed_some(20)
    session.prefer(newer)
    await say(stream, b"hello")
    assert await stream.read_all() == b"hello"
    assert stream.opened_on == {first.number, newer.number}


async def test_abandon_tells_the_exit_of_a_loss_that_it_has_not_seen(stage: Stage) -> None:
    wire, address = await stage.wire()
    session = stage.session()
    path = await session.begin(address)
    transfer = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 4))
    await session.until(lambda: session.came > 1_000_000)
    wire.black_hole = wire.swallow_there = wire.swallow_back = True
    await wire.swallowed_some(1)
    session.lose(path)
    abandoned = watch(session, Kind.ABANDON)
    await session.join(stage.tcp)
    assert await transfer
    assert [number for number, _ in abandoned] == [path.number]
    assert abandoned[0][1] <= path.out.count


async def test_both_sides_send_on_the_path_that_the_client_prefers(stage: Stage) -> None:
    session, first = await stage.begun()
    newer = await session.join(stage.tcp)
    session.prefer(first)
    assert await comes_back(session, stage.echo)
    came: list[int] = []
    session.on_frame = lambda path, kind, fields: came.append(path.number) if kind == Kind.DATA else None
    before = newer.out.bytes
    assert await comes_back(session, stage.echo, MEGABYTE)
    assert set(came) == {first.number}
    assert newer.out.bytes - before < 1_000  # no more than an ACK and a PONG


async def test_an_exit_without_the_session_is_silent_to_a_ticket_and_says_so_to_a_claim(stage: Stage) -> None:
    session, path = await stage.begun()
    stream = await session.open(stage.echo)
    await stream.opened()
    async with place() as other:
        session.lose(path)
        with pytest.raises(flights.FlightError, match="no verdict"):
            await session.join(plain(other.tcp))
        old = session.session_id
        path = await session.join(plain(other.tcp))  # signed, behind a ticket that came to nothing
        assert path.verdict.result() == Kind.NO_SESSION
        assert path.number == 2 and session.session_id != old and session.next_path == 3
        with pytest.raises(second.StreamEnded):
            await stream.read()
        assert await comes_back(session, plain(other.echo), MEGABYTE)
        session.lose(path)
        assert (await session.join(plain(other.tcp))).number == 3
        assert await session.rotate() == 1
        assert await comes_back(session, plain(other.echo))
        session.close()
        await session.finished()


@pytest.mark.parametrize("short", [True, False], ids=["short", "signed"])
async def test_a_number_of_a_path_that_was_used_gets_no_verdict(stage: Stage, short: bool) -> None:
    session, _ = await stage.begun()
    await session.join(stage.tcp, number=3)
    for stale in (2, 1):
        with pytest.raises(flights.FlightError, match="no verdict"):
            await session.join(stage.tcp, short=short, number=stale)
    assert len(session.paths) == 2
    assert (await session.join(stage.tcp, short=short)).number == 4
    assert await comes_back(session, stage.echo)


async def test_who_lacks_the_resume_secret_does_not_join(stage: Stage) -> None:
    session, path = await stage.begun()
    right, session.epoch = session.epoch, replace(session.epoch, resume=bytes(32))
    with pytest.raises(flights.FlightError, match="no verdict"):
        await session.join(stage.tcp, short=True)
    session.epoch = right
    assert await comes_back(session, stage.echo)
    session.lose(path)
    session.epoch = replace(right, resume=bytes(32))
    path = await session.join(stage.tcp, short=False)
    assert path.verdict.result() == Kind.NO_SESSION
    assert await comes_back(session, stage.echo)


@pytest.mark.parametrize(("ahead", "taken"), [(8, True), (9, False)])
async def test_tickets_are_of_the_next_eight_numbers(stage: Stage, ahead: int, taken: bool) -> None:
    session, _ = await stage.begun()
    if taken:
        await session.join(stage.tcp, number=ahead)
    else:
        with pytest.raises(flights.FlightError, match="no verdict"):
            await session.join(stage.tcp, number=ahead)
        await session.join(stage.tcp, short=False)
    assert await comes_back(session, stage.echo)


# -- rotation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [1, 2])
async def test_rotations_while_data_flows(stage: Stage, paths: int) -> None:
    session, _ = await stage.begun()
    for _ in range(1, paths):
        await session.join(stage.tcp)
    transfer = asyncio.create_task(comes_back(session, stage.echo, MEGABYTE * 8))
    assert [await session.rotate() for _ in range(4)] == [1, 2, 3, 4]
    assert [path.switches for path in session.paths.values()] == [[1, 2, 3, 4]] * paths
    assert await transfer


async def test_a_path_joins_in_each_epoch(stage: Stage) -> None:
    session, path = await stage.begun()
    for epoch in (1, 2, 3):
        await session.rotate()
        session.lose(path)
        path = await session.join(stage.tcp, short=epoch != 2)
        assert path.back.epoch == epoch
        assert await comes_back(session, stage.echo)


async def test_a_rekey_that_is_lost_with_its_path_goes_again(stage: Stage) -> None:
    wire, address = await stage.wire()
    session = stage.session()
    path = await session.begin(address)
    assert await comes_back(session, stage.echo)
    await session.until(lambda: not path.log)
    wire.swallow_there = True
    rotation = asyncio.create_task(session.rotate())
    await wire.swallowed_some(1_200)
    await wire.stop()
    await path.lost.wait()
    joined = await session.join(stage.tcp)
    assert await rotation == 1
    assert joined.switches == [1]
    assert await comes_back(session, stage.echo)


@pytest.mark.parametrize("paths", [1, 2])
async def test_an_answer_that_is_lost_with_its_path_goes_again(stage: Stage, paths: int) -> None:
    session = stage.session()
    if paths == 2:
        await session.begin(stage.tcp)
    wire, address = await stage.wire()
    path = await (session.begin(address) if paths == 1 else session.join(address))
    session.prefer(path)
    assert await comes_back(session, stage.echo)
    await session.until(lambda: not path.log)
    wire.swallow_back = True
    rotation = asyncio.create_task(session.rotate())
    await wire.swallowed_some(1_152)
    await wire.stop()
    await path.lost.wait()
    if paths == 1:
        await session.join(stage.tcp)
    assert await rotation == 1
    assert await comes_back(session, stage.echo)
    assert await session.rotate() == 2


async def test_a_path_that_joins_by_the_new_epoch_confirms_it(stage: Stage) -> None:
    wire, address = await stage.wire()
    session = stage.session()
    path = await session.begin(address)
    assert await comes_back(session, stage.echo)
    await session.until(lambda: not path.log)

    def answered(_: Path, kind: Kind, fields: tuple[Any, ...]) -> None:
        if kind == Kind.REKEY_ANSWER:
            wire.swallow_there = True

    session.on_frame = answered
    rotation = asyncio.create_task(session.rotate())
    await wire.swallowed_some(25)
    assert session.epoch.number == 1 and path.out.epoch == 1
    await wire.stop()
    await path.lost.wait()
    joined = await session.join(stage.tcp)
    assert await rotation == 1
    assert joined.switches == [] and joined.back.epoch == 1
    assert await session.rotate() == 2
    assert joined.switches == [2]
    assert await comes_back(session, stage.echo)


async def test_the_session_goes_to_its_next_epoch_when_a_path_has_joined(stage: Stage) -> None:
    session, _ = await stage.begun(alone=True)
    await session.join(stage.tcp)
    await session.until(lambda: session.epoch.number == 1 and session.settled())
    assert await comes_back(session, stage.echo)


@pytest.mark.parametrize("stage", [{"rotation": rotation_limits(records=40)}], indirect=True)
async def test_the_client_heeds_the_exit_that_asks_for_a_rotation(stage: Stage) -> None:
    session, _ = await stage.begun(alone=True)
    asked = watch(session, Kind.REKEY_PLEASE)
    while not asked:
        assert await comes_back(session, stage.echo)
    await session.until(lambda: session.epoch.number == 1 and session.settled())
    assert asked[0] == (1,)
    assert await comes_back(session, stage.echo)


# -- flights that come to nothing ------------------------------------------------------------------------------


async def test_an_exit_names_its_version_to_a_client_of_another(stage: Stage) -> None:
    session = stage.session()
    with pytest.raises(flights.OtherVersion) as other:
        await session.begin(stage.tcp, versions=b"\3\7")
    assert other.value.args == (2,)
    path = await session.begin(stage.tcp, versions=b"\3\2")
    assert path.verdict.result() == Kind.ACCEPT


async def exchange(address: Address, *sent: bytes) -> bytes:
    """Send flights, and take what comes until the exit closes."""
    reader, writer = await asyncio.open_connection(*address)
    for flight in sent:
        writer.write(struct.pack(">H", len(flight)) + flight)
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


async def test_a_short_handshake_of_another_version_gets_a_signed_flight(stage: Stage) -> None:
    flight = Handshake(EXIT_ID, short=True, versions=b"\3").flight1()
    answer = await exchange(stage.tcp, flight)
    assert struct.unpack(">H", answer[:2])[0] == len(answer) - 2 == 6547


async def test_first_flights_that_are_wrong_or_repeated_get_no_answer(stage: Stage) -> None:
    wrong_id = Handshake(bytes(32), short=False).flight1()
    assert await exchange(stage.tcp, wrong_id) == b""
    flight = Handshake(EXIT_ID, short=False).flight1()
    reader, writer = await asyncio.open_connection(*stage.tcp)
    writer.write(struct.pack(">H", len(flight)) + flight)
    assert await reader.readexactly(2) == struct.pack(">H", 6547)
    writer.transport.abort()
    assert await exchange(stage.tcp, flight) == b""


async def test_a_stranger_is_rejected(stage: Stage) -> None:
    session = stage.session(Keys(bytes(32), bytes(32)))
    with pytest.raises(second.Rejected) as rejected:
        await session.begin(stage.tcp)
    assert rejected.value.args == (Close.NOT_AUTHORIZED,)


# -- the end ---------------------------------------------------------------------------------------------------


async def test_close_ends_the_session_at_the_exit(stage: Stage) -> None:
    ended = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    session, _ = await stage.begun()
    newer = await session.join(stage.tcp)
    stream = await session.open(await stage.server(hold))
    await stream.opened()
    session.close()
    await newer.lost.wait()
    await ended.wait()
    session.over = None
    again = await session.join(stage.tcp, short=False)
    assert again.verdict.result() == Kind.NO_SESSION


async def test_an_exit_that_stops_at_once_closes_the_session(stage: Stage) -> None:
    session, path = await stage.begun()
    stream = await session.open(stage.echo)
    await stage.place.exit.stop(0)
    with pytest.raises(second.SessionOver) as over:
        await stream.read()
    assert over.value.args == (Close.SHUTTING_DOWN,)
    assert path.lost.is_set()


VIOLATIONS = [
    ("unknown kind", b"\x7f", Close.PROTOCOL),
    ("frame cut short", frame(Kind.ACK, "I", 0), Close.PROTOCOL),
    ("unknown protocol", frame(Kind.OPEN, "IB", 9, 7) + put_address(("127.0.0.1", 1)), Close.PROTOCOL),
    ("DATA without data", frame(Kind.DATA, "IQ", 1, 0), Close.PROTOCOL),
    ("stream 0", data_frame(0, 0, b"x"), Close.PROTOCOL),
    ("a stream that never was", data_frame(77, 0, b"x"), Close.PROTOCOL),
    ("OPENED from the client", frame(Kind.OPENED, "I", 1), Close.PROTOCOL),
    ("STREAMS from the client", frame(Kind.STREAMS, "Q", 99_999), Close.PROTOCOL),
    ("GOAWAY from the client", frame(Kind.GOAWAY), Close.PROTOCOL),
    ("ACCEPT after the verdict", frame(Kind.ACCEPT), Close.PROTOCOL),
    ("LANE without the feature", frame(Kind.LANE, "IIB", 0, 5, 0), Close.PROTOCOL),
    (
        "DATAGRAM on a stream of bytes",
        frame(Kind.DATAGRAM, "IH", 1, 1) + put_address(("127.0.0.1", 9)) + b"x",
        Close.PROTOCOL,
    ),
    ("data beyond the credit", data_frame(1, 131_072 << 10, b"x"), Close.CREDIT),
    ("ACK of what was not sent", frame(Kind.ACK, "IQ", 0, 1 << 30), Close.RESUME),
    ("ACK of a path that never was", frame(Kind.ACK, "IQ", 5, 0), Close.RESUME),
    ("REKEY that does not open", [rekey_frame(1, part, bytes(416)) for part in range(3)], Close.REKEY),
    ("REKEY of a wrong length", [rekey_frame(1, part, bytes(3)) for part in range(3)], Close.REKEY),
    ("REKEY of two minds", [rekey_frame(1, 0, b"one"), rekey_frame(1, 0, b"two")], Close.REKEY),
    ("a fourth part of a REKEY", rekey_frame(1, 3, b"more"), Close.PROTOCOL),
    ("too long a part of a REKEY", rekey_frame(1, 0, bytes(417)), Close.PROTOCOL),
    ("REKEY beyond the next epoch", rekey_frame(3, 0, bytes(416)), Close.REKEY),
    ("REKEY_PLEASE from the client", frame(Kind.REKEY_PLEASE, "I", 1), Close.REKEY),
    ("SWITCH in company", frame(Kind.SWITCH, "I", 1) + frame(Kind.PING, "Q", 1), Close.REKEY),
    (
        "bytes behind the end",
        [fin_frame(1, 5), data_frame(1, 5, b"x")],
        Close.PROTOCOL,
    ),
    (
        "a final offset that changes",
        [fin_frame(1, 5), frame(Kind.RESET, "IBQ", 1, 11, 9)],
        Close.PROTOCOL,
    ),
    (
        "a final offset below what came",
        [data_frame(1, 9, b"x"), frame(Kind.RESET, "IBQ", 1, 11, 3)],
        Close.PROTOCOL,
    ),
    ("FIN below what came", [data_frame(1, 9, b"x"), fin_frame(1, 9)], Close.PROTOCOL),
    ("FIN at another place", [fin_frame(1, 5), fin_frame(1, 6)], Close.PROTOCOL),
    ("FIN of a stream that never was", fin_frame(77, 0), Close.PROTOCOL),
    ("FIN beyond the credit", fin_frame(1, 131_072 << 10), Close.CREDIT),
    ("FIN above 2^62", fin_frame(1, (1 << 62) + 1), Close.PROTOCOL),
    ("an offset above 2^62", data_frame(1, 1 << 62, b"x"), Close.PROTOCOL),
    ("RESET with an unknown reason", frame(Kind.RESET, "IBQ", 1, 99, 0), Close.PROTOCOL),
    ("many gaps", [data_frame(1, 2 * i, b"x") for i in range(1, 1_100)], Close.LIMIT),
    ("many control frames", frame(Kind.PREFER, "II", 1, 0) * 600, Close.LIMIT),
]


@pytest.mark.parametrize(
    ("data", "reason"), [row[1:] for row in VIOLATIONS], ids=[row[0] for row in VIOLATIONS]
)
async def test_violations_end_the_session_with_the_reason_of_the_page(
    stage: Stage, data: bytes | list[bytes], reason: Close
) -> None:
    session, path = await stage.begun()
    stream = await session.open(stage.echo)
    await stream.opened()
    raw(path, *(data if isinstance(data, list) else [data]))
    with pytest.raises(second.SessionOver) as over:
        await session.until(lambda: False)
    assert over.value.args == (reason,)


def damaged(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: path.out.seal(frame(Kind.SWITCH, "I", 1)),
        lambda path: path.out.seal(frame(Kind.SWITCH, "I", 0)),
        lambda path: damaged(path.out.seal(b"!" * 20)),
        lambda path: struct.pack(">I", 131_601),
        lambda path: struct.pack(">I", 16) + bytes(16),
    ],
    ids=["SWITCH to an unknown epoch", "SWITCH to the same epoch", "damage", "too long", "too short"],
)
async def test_damage_ends_the_path_and_not_the_session(stage: Stage, wrong: Callable[[Path], bytes]) -> None:
    session, path = await stage.begun()
    closes = watch(session, Kind.CLOSE)
    path.writer.write(wrong(path))
    await path.lost.wait()
    assert not closes and session.over is None
    await session.join(stage.tcp)
    assert await comes_back(session, stage.echo)


async def test_frames_for_a_dead_number_are_ignored(stage: Stage) -> None:
    session, path = await stage.begun()
    stream = await session.open(stage.echo)
    await say(stream, b"x")
    assert await stream.read_all() == b"x"
    copies = session.open_frame(stream) + frame(Kind.WINDOW, "IQ", stream.number, 99_999)
    raw(path, copies + fin_frame(stream.number, 1) + data_frame(stream.number, 0, b"x"))
    assert await comes_back(session, stage.echo)
    assert session.over is None


async def test_an_open_behind_goaway_is_served_and_the_client_ends_the_session(stage: Stage) -> None:
    session, _ = await stage.begun()
    stream = await session.open(stage.echo)
    await stream.opened()
    stopping = asyncio.create_task(stage.place.exit.stop(20))
    await session.until(lambda: session.going_away)
    with pytest.raises(second.SessionOver):
        await session.open(stage.echo)
    await say(stream, MEGABYTE)
    assert await stream.read_all() == MEGABYTE
    session.close()
    await stopping


async def test_a_silent_path_is_given_up(stage: Stage) -> None:
    wire, address = await stage.wire()
    session = stage.session(keepalive=0.1)
    path = await session.begin(address)
    pongs = watch(session, Kind.PONG)
    await session.until(lambda: len(pongs) >= 2)
    wire.swallow_back = True
    await path.lost.wait()
    session.keepalive = 10
    await session.join(stage.tcp)
    assert await comes_back(session, stage.echo)


@pytest.mark.parametrize("stage", [{"keepalive": 0.3}], indirect=True)
async def test_answers_to_the_exit_keep_a_path_up(stage: Stage) -> None:
    session, path = await stage.begun()
    pings = watch(session, Kind.PING)
    await session.until(lambda: len(pings) >= 4)
    assert list(session.paths.values()) == [path]
    assert await comes_back(session, stage.echo)
