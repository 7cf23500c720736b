"""Streams on the lane: bytes by offset, in datagrams that may be lost, and counters that never begin again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import LocalError
from cryprq_proxy.lane import sealing as lane_module
from cryprq_proxy.lane.layout import (
    ACK,
    FRAMES,
    FRAMES_ASK,
    HEADER,
    KEEPALIVE,
    MAX_STREAM,
    MAX_TRAIN,
    STREAM,
    STREAM_ASK,
    STREAM_HEADER,
    STREAM_OVERHEAD,
)
from cryprq_proxy.lane.sealed_train import MAX_SEND
from cryprq_proxy.lane.sealing import LINGER, OUT_SIZE, Lane
from cryprq_proxy.lane.slices import PLAIN, Shape
from tests.support.lanes import GSO, datagrams, dropped, forged, message, receive, seal_stream
from tests.vectors.make_lane import EPOCH, ROOM, Recorder, lanes, seal_packet, tcp4

SIZE = STREAM_OVERHEAD + 100
BYTES = random.Random(1).randbytes(MAX_STREAM)

type Told = tuple[int, int, bytes, int, int, bool]


def part(offset: int, payload: bytes, index: int = 0, stream: int = 7, kind: int = STREAM) -> bytes:
    return STREAM_HEADER.pack(kind, index, stream, offset) + payload


def one_train(lane: Lane, data: bytes, offset: int = 0, stream: int = 7, ask: bool = False) -> bytes:
    ((sent, segment),) = seal_stream(lane, data, offset, SIZE, stream=stream, ask=ask)
    assert segment == min(SIZE, STREAM_OVERHEAD + len(data))
    return sent


def check(told: list[Told], data: bytes) -> set[int]:
    """Each run holds the bytes of its place. Returns the counters, none of which came twice."""
    counters: set[int] = set()
    for _, offset, payload, first, count, _ in told:
        assert payload and payload == data[offset : offset + len(payload)]
        found = set(range(first, first + count))
        assert len(found) == count and not found & counters
        counters |= found
    return counters


# --- out ---


@pytest.mark.parametrize("length", [1, 99, 100, 101, 4400, 6400, 6401, 25_500])
@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
def test_a_train_arrives_as_one_run(cipher: Cipher, length: int) -> None:
    client, exit_, _, at_exit = lanes(cipher)
    message(client, bytes((KEEPALIVE,)))
    sends = seal_stream(client, BYTES[:length], 5, SIZE)
    count = -(-length // 100)
    assert client.counter == 1 + count
    assert len(sends) == -(-count // MAX_TRAIN)
    for sent, segment in sends:
        assert receive(exit_, sent, segment) == len(sent)
        assert exit_.advanced
    assert [run[3:5] for run in at_exit.streams] == [
        (1 + at, min(MAX_TRAIN, count - at)) for at in range(0, count, MAX_TRAIN)
    ]
    assert b"".join(run[2] for run in at_exit.streams) == BYTES[:length]
    assert [run[1] for run in at_exit.streams] == [5 + 100 * at for at in range(0, count, MAX_TRAIN)]
    assert (at_exit.others, dropped(exit_)) == ([], {})


@pytest.mark.parametrize("size", [8972, 1472, 1443, 1200, 600])
def test_as_much_as_goes_in_one_call(size: int) -> None:
    client, exit_, _, at_exit = lanes()
    sends = seal_stream(client, BYTES, 2**40, size)
    for sent, segment in sends:
        assert segment == size and len(sent) <= MAX_SEND and -(-len(sent) // segment) <= MAX_TRAIN
        receive(exit_, sent, segment)
    assert b"".join(run[2] for run in at_exit.streams) == BYTES


def test_what_does_not_go_in_one_call() -> None:
    client, *_ = lanes()
    buffer, out = memoryview(bytearray(MAX_STREAM + 1)), memoryview(bytearray(OUT_SIZE))
    for end, size in ((MAX_STREAM + 1, 1443), (256 * 100, SIZE), (0, SIZE), (1, 2 * STREAM_OVERHEAD - 1)):
        with pytest.raises(LocalError):
            client.seal_stream(1, 0, buffer, 0, end, size, out, 0, False)
    with pytest.raises(LocalError):
        Lane(True, bytes, Recorder(), ROOM).seal_stream(1, 0, buffer, 0, 1, SIZE, out, 0, False)
    assert client.counter == 0


@given(st.data())
def test_any_part_goes_again_in_datagrams_of_any_size(data: st.DataObject) -> None:
    """What is sealed stays as it is, so that any of it can be sealed again."""
    client, exit_, _, at_exit = lanes()
    kept, out = memoryview(bytearray(BYTES[:9000])), memoryview(bytearray(OUT_SIZE))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, 8999))
        end = data.draw(st.integers(start + 1, 9000))
        size = data.draw(st.integers(100, 1500))
        before, position = client.counter, data.draw(st.integers(0, 99))
        at_exit.streams.clear()
        sends, first, count = client.seal_stream(3, start, kept, start, end, size, out, position, True)
        assert (first, count) == (before, client.counter - before)
        assert sends[0][0] == position
        for begin, finish, segment in sends:
            receive(exit_, bytes(out[begin:finish]), segment)
        assert kept == BYTES[:9000]
        assert b"".join(run[2] for run in at_exit.streams) == BYTES[start:end]
        assert check(at_exit.streams, BYTES) == set(range(first, first + count))
        assert [run[5] for run in at_exit.streams] == [False] * (len(sends) - 1) + [True]
    assert dropped(exit_) == {}


# --- in ---


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_the_last_datagram_may_ask(ask: bool, together: bool) -> None:
    client, exit_, _, at_exit = lanes()
    sent = one_train(client, BYTES[:250], ask=ask)
    for piece in [sent] if together else datagrams(sent, SIZE):
        exit_.open_batch(memoryview(bytearray(piece)), len(piece), SIZE, 0.0)
    if not ask:
        exit_.flush()
    assert at_exit.streams == [(7, 0, BYTES[:250], 0, 3, ask)]


@pytest.mark.parametrize("bad", range(10))
@pytest.mark.parametrize("damaged", [False, True])
def test_a_train_with_a_gap_comes_in_two_runs(bad: int, damaged: bool) -> None:
    client, exit_, _, at_exit = lanes()
    pieces = datagrams(one_train(client, BYTES[:950]), SIZE)
    kept = [*pieces]
    if damaged:
        kept[bad] = kept[bad][:-1] + bytes((kept[bad][-1] ^ 1,))
    else:
        del kept[bad]
    receive(exit_, b"".join(kept), SIZE)
    assert check(at_exit.streams, BYTES[:950]) == set(range(10)) - {bad}
    assert len(at_exit.streams) == (1 if bad in (0, 9) else 2)
    receive(exit_, b"".join(pieces), SIZE)
    assert check(at_exit.streams, BYTES[:950]) == set(range(10))
    assert dropped(exit_) == {"tag": 1, "replay": 9} if damaged else {"replay": 9}


def test_wherever_a_train_has_gaps_the_same_views_open_it() -> None:
    """New views for each place of a loss cost a third of the opening at 3 % of loss."""
    client, exit_, _, at_exit = lanes()
    arrived = memoryview(bytearray(40 * SIZE))
    trains = [datagrams(one_train(client, BYTES[:4000]), SIZE) for _ in range(39)]
    kept = ROOM.row.__self__._rows  # type: ignore[attr-defined]
    before = 0
    for gap, pieces in enumerate(trains):
        del pieces[gap]
        arrived[: 39 * SIZE] = b"".join(pieces)
        exit_.open_batch(arrived, 39 * SIZE, SIZE, 0.0)
        before = before or len(kept)
    assert check(at_exit.streams, BYTES) == {at for at in range(39 * 40) if at % 40 != at // 40}
    assert before == len(kept)


@given(st.data())
def test_loss_damage_order_and_streams_side_by_side(data: st.DataObject) -> None:
    client, exit_, _, at_exit = lanes()
    flight: list[bytes] = []
    offsets = {1: 0, 2: 0, 3: 0}
    for _ in range(data.draw(st.integers(1, 5))):
        stream = data.draw(st.integers(1, 3))
        length = data.draw(st.integers(1, 1200))
        offset = offsets[stream]
        offsets[stream] += length
        flight += datagrams(one_train(client, BYTES[offset : offset + length], offset, stream), SIZE)
        if data.draw(st.booleans()):
            flight.append(message(client, bytes((FRAMES,)).ljust(data.draw(st.integers(2, 114)), b"f")))
        if data.draw(st.booleans()):
            flight.append(message(client, bytes((KEEPALIVE,)).ljust(data.draw(st.integers(1, 114)), b"k")))
    numbers = {one[:HEADER]: number for number, one in enumerate(flight)}
    kept = [one for one in flight if data.draw(st.integers(0, 5))]
    if data.draw(st.booleans()):
        kept = data.draw(st.permutations(kept))
    damaged = set()
    for at, one in enumerate(kept):
        if not data.draw(st.integers(0, 7)):
            damaged.add(numbers[one[:HEADER]])
            kept[at] = one[:-1] + bytes((one[-1] ^ 1,))
    kept += kept[: data.draw(st.integers(0, 3))]
    while kept:
        train = [kept.pop(0)]
        while kept and len(kept[0]) <= len(train[0]) == len(train[-1]) and data.draw(st.booleans()):
            train.append(kept.pop(0))
        joined = b"".join(train)
        exit_.open_batch(memoryview(bytearray(joined)), len(joined), len(train[0]), 0.0)
        if data.draw(st.booleans()):
            exit_.flush()
    exit_.flush()
    seen = check(at_exit.streams, BYTES)
    for _, counter, _ in at_exit.all_frames:
        assert counter not in seen
        seen.add(counter)
    for first, last in at_exit.others:
        others = set(range(first, last + 1))
        assert others and not others & seen
        seen |= others
    assert not seen & damaged
    assert len(at_exit.messages) == sum(last - first + 1 for first, last in at_exit.others)
    assert set(dropped(exit_)) <= {"tag", "replay"}


def test_two_streams_frames_and_a_packet_in_one_train() -> None:
    client, exit_, _, at_exit = lanes()
    train = one_train(client, BYTES[:300], 1000, 1)
    train += one_train(client, BYTES[:200], 0, 2, ask=True)
    train += message(client, bytes((FRAMES,)).ljust(114, b"f"))
    ((packet, _),) = seal_packet(client, tcp4(bytes(66)), Shape(PLAIN, 0, 0), SIZE)
    assert len(packet) == SIZE
    train += packet + message(client, bytes((KEEPALIVE,)).ljust(114)) + one_train(client, BYTES[:100], 9, 2)
    train += message(client, bytes((FRAMES_ASK, 1)))
    receive(exit_, train, SIZE)
    assert at_exit.streams == [
        (1, 1000, BYTES[:300], 0, 3, False),
        (2, 0, BYTES[:200], 3, 2, True),
        (2, 9, BYTES[:100], 8, 1, False),
    ]
    assert at_exit.all_frames == [(b"f" * 113, 5, False), (b"\1", 9, True)]
    assert [run[0] for run in at_exit.runs] == [tcp4(bytes(66))]
    assert at_exit.others == [(6, 7)]


def test_a_run_over_the_border_of_two_receives() -> None:
    client, exit_, _, at_exit = lanes()
    pieces = datagrams(one_train(client, BYTES[:1000]), SIZE)
    receive(exit_, b"".join(pieces[:4]), SIZE)
    receive(exit_, b"".join(pieces[4:]), SIZE)
    assert at_exit.streams == [(7, 0, BYTES[:400], 0, 4, False), (7, 400, BYTES[400:1000], 4, 6, False)]


def test_datagrams_one_by_one_are_joined_until_something_does_not_follow() -> None:
    client, exit_, _, at_exit = lanes()
    pieces = datagrams(one_train(client, BYTES[:700]), SIZE)
    pieces += datagrams(one_train(client, BYTES[:300], 0, 8), SIZE)
    del pieces[3]
    for piece in pieces:
        exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    assert [run[3:5] for run in at_exit.streams] == [(0, 3), (4, 3)]
    exit_.flush()
    assert at_exit.streams[2:] == [(8, 0, BYTES[:300], 7, 3, False)]
    assert check(at_exit.streams, BYTES) == set(range(10)) - {3}
    exit_.flush()
    assert len(at_exit.streams) == 3


@pytest.mark.parametrize(
    ("second", "counter"),
    [(part(11, b"y"), 1), (part(9, b"y"), 1), (part(10, b"y", stream=8), 1), (part(10, b"y"), 2)],
)
def test_only_what_follows_is_joined(second: bytes, counter: int) -> None:
    _, exit_, _, at_exit = lanes()
    for piece in (forged(part(0, bytes(10)), 0), forged(second, counter)):
        exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    assert at_exit.streams == [(7, 0, bytes(10), 0, 1, False)]
    exit_.flush()
    _, _, stream, offset = STREAM_HEADER.unpack_from(second)
    assert at_exit.streams[1:] == [(stream, offset, b"y", counter, 1, False)]


def test_no_more_is_joined_than_there_is_room_for() -> None:
    client, exit_, _, at_exit = lanes()
    for sent, segment in seal_stream(client, BYTES, 0, 1443):
        for piece in datagrams(sent, segment):
            exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    exit_.flush()
    assert b"".join(run[2] for run in at_exit.streams) == BYTES
    assert [run[4] for run in at_exit.streams] == [46, 46, 2]


def test_frames_come_behind_the_bytes_that_came_before_them() -> None:
    client, exit_, _, at_exit = lanes()
    for piece in (one_train(client, b"x"), message(client, bytes((FRAMES, 1)))):
        assert not at_exit.streams
        exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    assert at_exit.streams and at_exit.all_frames


def test_lanes_that_share_a_room_do_not_mix_their_streams() -> None:
    ends = [lanes() for _ in range(2)]
    for turn in range(2):
        for number, (client, exit_, _, _) in enumerate(ends):
            piece = one_train(client, bytes((number,)) * 50, 50 * turn)
            exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    for number, (_, exit_, _, at_exit) in enumerate(ends):
        exit_.flush()
        assert b"".join(run[2] for run in at_exit.streams) == bytes((number,)) * 100


def test_a_session_that_is_over_gets_nothing_more() -> None:
    client, exit_, _, at_exit = lanes()
    piece = one_train(client, b"x")
    exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    exit_.forget()
    exit_.flush()
    assert at_exit.streams == []


def test_counters_of_all_else_are_told() -> None:
    client, exit_, _, at_exit = lanes()
    ack = message(client, bytes((ACK,)) + bytes(20))
    receive(exit_, ack)
    ((sent, segment),) = seal_packet(client, tcp4(bytes(950)), GSO, 700)
    damaged = bytearray(sent)
    damaged[3 * segment + 40] ^= 1
    receive(exit_, bytes(damaged), segment)
    receive(exit_, sent, segment)
    assert at_exit.messages == [(ACK, bytes(20), len(ack))]
    assert at_exit.others == [(0, 0), (1, 3), (5, 10), (4, 4)]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("plaintexts", "cause", "runs"),
    [
        ([part(0, b"")], "malformed", 0),
        ([part(0, b"")[:-1]], "malformed", 0),
        ([bytes((STREAM_ASK,))], "malformed", 0),
        ([part(0, b"x", index=9)], "", 1),
        ([part(100, b"x", index=1), part(101, b"y", index=1)], "disagreement", 0),
        ([part(0, b"x", stream=1), part(1, b"y", index=1, stream=2)], "disagreement", 0),
        ([part(0, b"x"), part(0, b"y", index=1)], "disagreement", 0),
        ([part(2**64 - 1, b"x"), part(0, b"y", index=1)], "disagreement", 0),
        ([bytes((KEEPALIVE,)).ljust(15), part(0, b"y", index=1)], "disagreement", 0),
        ([part(0, b"x"), part(1, b"y", index=1)], "", 1),
    ],
)
def test_nonsense_is_counted(plaintexts: list[bytes], cause: str, runs: int, alone: bool) -> None:
    _, exit_, _, at_exit = lanes()
    pieces = [forged(plaintext, counter) for counter, plaintext in enumerate(plaintexts)]
    if alone:
        for piece in pieces:
            receive(exit_, piece)
    else:
        receive(exit_, b"".join(pieces), len(pieces[0]))
        assert len(at_exit.streams) == runs
    if cause == "malformed" or not alone:
        assert dropped(exit_) == ({cause: len(pieces)} if cause else {})
    told = check_counters(at_exit)
    assert told == set(range(len(pieces)))


def check_counters(sink: Recorder) -> set[int]:
    told = {counter for run in sink.streams for counter in range(run[3], run[3] + run[4])}
    return told | {counter for first, last in sink.others for counter in range(first, last + 1)}


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(8, 11), st.binary(max_size=80)), max_size=12),
    st.integers(1, 120),
)
def test_any_plaintext_with_any_counter(plaintexts: list[tuple[int, int, bytes]], segment: int) -> None:
    _, exit_, _, at_exit = lanes()
    data = b""
    for counter, kind, rest in plaintexts:
        if len(rest) % 2:
            rest = rest[:1] + bytes(12) + rest[1:]
        data += forged((bytes((kind,)) + rest).ljust(segment, b"\0")[:segment], counter)
    receive(exit_, data, segment + 29)
    assert all(run[2] for run in at_exit.streams)
    assert len(check_counters(at_exit)) <= len({counter for counter, _, _ in plaintexts})


# --- counters ---


def test_counters_go_on_over_epochs() -> None:
    """A new key goes on counting, and what is late under the old one still comes."""
    client, exit_, _, at_exit = lanes()
    first = datagrams(one_train(client, BYTES[:300]), SIZE)
    indices = iter((5, 6))
    client._entropy = exit_._entropy = lambda size: next(indices).to_bytes(size)
    at_client = client.install(Cipher.AES_256_GCM, 1, EPOCH, 1.0)
    exit_.announced(1, at_client, 1.0)
    client.announced(1, exit_.install(Cipher.AES_256_GCM, 1, EPOCH, 1.0), 1.0)
    assert client.spent == 0
    second = datagrams(one_train(client, BYTES[300:500], 300), SIZE)
    assert [int.from_bytes(piece[5:13]) for piece in [*first, *second]] == [0, 1, 2, 3, 4]
    assert client.spent == 2
    assert client.skip() == 5
    receive(exit_, message(client, bytes((FRAMES, 1))))
    assert at_exit.all_frames == [(b"\1", 6, False)]
    assert client.spent == 4
    for piece in [*first[:2], *second]:
        receive(exit_, piece)
        assert not exit_.advanced
    receive(exit_, first[2], now=LINGER)
    assert check(at_exit.streams, BYTES) == {0, 1, 2, 3, 4}
    assert exit_.spent == 3


def test_each_key_has_its_limit_from_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_SEALED", 2)
    client, *_ = lanes()
    for number in (1, 2):
        one_train(client, b"x")
        assert client.ready
        one_train(client, b"x")
        assert not client.ready
        with pytest.raises(LocalError):
            one_train(client, b"x")
        client._entropy = lambda size, index=number: index.to_bytes(size)
        client.install(Cipher.AES_256_GCM, number, EPOCH, 0.0)
        client.announced(number, 77, 0.0)
        assert client.ready and client.spent == 0
    assert client.counter == 4


def test_late_datagrams_within_the_window_of_a_key() -> None:
    client, exit_, _, at_exit = lanes()
    train = [one_train(client, b"x", offset) for offset in range(40)]
    for piece in reversed(train):
        receive(exit_, piece)
    assert check_counters(at_exit) == set(range(40))
