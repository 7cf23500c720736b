"""The lane: frozen datagrams, whole and torn super-packets, epochs, and that bad input is counted and dropped."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import asdict
from itertools import count
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher, new_aead
from cryprq_proxy.errors import CloseReason, LocalError, PeerError
from cryprq_proxy.lane import sealing as lane_module
from cryprq_proxy.lane.layout import (
    DATAGRAM,
    EXPRESS_KIND,
    HEADER,
    KEEPALIVE,
    KIND,
    MAX_TRAIN,
    OVERHEAD,
    SLICE,
    TAG,
)
from cryprq_proxy.lane.sealing import LINGER, MAX_EPOCHS, MAX_SEND, OUT_SIZE, Lane
from cryprq_proxy.lane.slices import (
    ASSEMBLED_BYTES,
    EXPRESS,
    HEADROOM,
    MAX_SLICES,
    NEEDS_CSUM,
    PLAIN,
    SLICE_HEADER,
    SLICE_SIZE,
    TCP4,
    TCP6,
    UDP_GSO,
    Run,
    Shape,
)
from tests.vectors.make_lane import (
    CLIENT_INDEX,
    EPOCH,
    EXIT_INDEX,
    FROZEN,
    Recorder,
    lanes,
    make,
    seal_packet,
    tcp4,
)

CIPHERS = pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
GSO = Shape(NEEDS_CSUM | TCP4, 100, 40)
WHOLE_PLAIN = Run(Shape(PLAIN, 0, 0), 0, 1, 1)


def receive(lane: Lane, data: bytes, segment: int = 0, now: float = 0.0) -> int:
    heard = lane.open_batch(memoryview(bytearray(data)), len(data), segment or len(data), now)
    lane.flush()
    return heard


def datagrams(sent: bytes, segment: int) -> list[bytes]:
    return [sent[at : at + segment] for at in range(0, len(sent), segment)]


def message(lane: Lane, body: bytes) -> bytes:
    out = memoryview(bytearray(2000))
    return bytes(out[: lane.seal(body, out, 0)])


def forged(plaintext: bytes, counter: int, index: int = EXIT_INDEX) -> bytes:
    """What a client with the right keys could send."""
    head = struct.pack("!BIQ", KIND, index, counter)
    return head + new_aead(Cipher.AES_256_GCM, EPOCH.client_lane).encrypt(head[1:], plaintext, head)


def part(flags: int, index: int, of: int, gso: int, header: int, rest: bytes) -> bytes:
    return SLICE_HEADER.pack(SLICE, flags, index, of, gso, header) + rest


def dropped(lane: Lane) -> dict[str, int]:
    return {cause: number for cause, number in asdict(lane.drops).items() if number}


# --- bytes ---


@pytest.mark.parametrize("vector", json.loads(FROZEN.read_text()), ids=lambda vector: vector["cipher"])
def test_frozen_datagrams(vector: dict[str, Any]) -> None:
    """Each datagram opens with nothing but the key and this layout; the exit gets what was sent."""
    aead = new_aead(Cipher[vector["cipher"]], bytes.fromhex(vector["key"]))
    _, exit_, _, at_exit = lanes(Cipher[vector["cipher"]])
    counter = 0
    for entry in vector["sent"]:
        pieces = [bytes.fromhex(text) for text in entry["datagrams"]]
        payloads = []
        for number, piece in enumerate(pieces):
            assert piece[:HEADER] == struct.pack("!BIQ", 1, vector["index"], counter)
            plain = aead.decrypt(piece[1:13], piece[13:], piece[:13])
            counter += 1
            if "message" in entry:
                assert plain.hex() == entry["message"]
                continue
            flags, gso, header = entry["shape"]
            packet = bytes.fromhex(entry["packet"])
            assert SLICE_HEADER.unpack_from(plain) == (1, flags, number, len(pieces), gso, header)
            assert plain[8 : 8 + header] == packet[:header]
            payloads.append(plain[8 + header :])
            assert len(piece) <= entry["size"]
        receive(exit_, b"".join(pieces), len(pieces[0]))
        if "message" in entry:
            plain = bytes.fromhex(entry["message"])
            assert at_exit.messages.pop() == (plain[0], plain[1:], len(pieces[0]))
        else:
            assert b"".join(payloads) == packet[header:]
            run = Run(Shape(*entry["shape"]), 0, len(pieces), len(pieces))
            assert at_exit.runs.pop() == (packet, run)
    assert dropped(exit_) == {}


def test_the_vectors_are_what_the_maker_makes() -> None:
    assert make() == json.loads(FROZEN.read_text())


# --- whole packets ---


@CIPHERS
@pytest.mark.parametrize("length", [1, 99, 100, 101, 200, 4000, 6400, 6401, 25_500])
@pytest.mark.parametrize("size", [140 + OVERHEAD + SLICE_SIZE, 1200])
def test_a_super_packet_arrives_whole(cipher: Cipher, length: int, size: int) -> None:
    client, exit_, _, at_exit = lanes(cipher)
    packet = tcp4(random.Random(length).randbytes(length))
    sends = seal_packet(client, packet, GSO, size)
    slices = -(-length // 100)
    assert len(sends) == -(-slices // MAX_TRAIN)
    for sent, segment in sends:
        assert segment == (177 if slices > 1 else 77 + length)
        assert receive(exit_, sent, segment) == len(sent)
        assert exit_.advanced
    assert b"".join(data[40:] for data, _ in at_exit.runs) == packet[40:]
    assert all(
        data[:40] == packet[:40] and run.shape == GSO and run.of == slices for data, run in at_exit.runs
    )
    assert sum(run.count for _, run in at_exit.runs) == slices
    assert dropped(exit_) == {}


@given(st.binary(min_size=20, max_size=3000), st.integers(OVERHEAD + SLICE_SIZE + 20, 1500), st.booleans())
def test_plain_packets_of_any_size_on_paths_of_any_size(packet: bytes, size: int, together: bool) -> None:
    client, exit_, _, at_exit = lanes()
    sends = seal_packet(client, packet, Shape(PLAIN, 0, 0), size)
    for sent, segment in sends:
        assert segment <= size
        for piece in [(sent, segment)] if together else [(one, 0) for one in datagrams(sent, segment)]:
            receive(exit_, *piece)
    assert [data for data, _ in at_exit.runs] == [packet]
    assert at_exit.runs[0][1].count == at_exit.runs[0][1].of
    assert exit_.incomplete == 0


@pytest.mark.parametrize("size", [1472, 1300, 1200, 600, 340])
def test_the_largest_super_packet_on_small_paths(size: int) -> None:
    """Segments that do not fit are cut smaller, into several sends where there are many."""
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(size).randbytes(57_344 - 60), 60)
    shape = Shape(NEEDS_CSUM | TCP4, 1380 - 12, 60)
    sends = seal_packet(client, packet, shape, size)
    assert all(len(sent) <= MAX_SEND and -(-len(sent) // segment) <= MAX_TRAIN for sent, segment in sends)
    assert all(segment <= size for _, segment in sends)
    for sent, segment in sends:
        receive(exit_, sent, segment)
    assert [data for data, _ in at_exit.runs] == [packet]
    assert dropped(exit_) == {}


def test_more_segments_than_slices_can_be_counted() -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(bytes(3000))
    ((sent, segment),) = seal_packet(client, packet, Shape(TCP4, 10, 40), 1472)
    receive(exit_, sent, segment)
    assert at_exit.runs == [(packet, Run(Shape(TCP4, 10, 40), 0, 3, 3))]
    assert (
        seal_packet(client, bytes(MAX_SLICES * 10 + 1), Shape(PLAIN, 0, 0), OVERHEAD + SLICE_SIZE + 10) == []
    )
    assert seal_packet(client, packet, GSO, OVERHEAD + SLICE_SIZE + 40) == []
    assert dropped(client) == {"unsent": 2}


def test_ipv6_and_udp_super_packets() -> None:
    client, exit_, _, at_exit = lanes()
    payload = bytes(250)
    for kind, header in ((TCP6, 60), (UDP_GSO, 48)):
        packet = struct.pack("!IHBB", 6 << 28, header - 40 + 250, 6, 64).ljust(header, b"h") + payload
        ((sent, segment),) = seal_packet(client, packet, Shape(kind, 100, header), 1000)
        receive(exit_, sent, segment)
        assert at_exit.runs.pop() == (packet, Run(Shape(kind, 100, header), 0, 3, 3))


def test_packets_share_a_buffer() -> None:
    client, exit_, _, at_exit = lanes()
    out, place = memoryview(bytearray(OUT_SIZE)), 0
    for number in range(5):
        packet = memoryview(bytearray(HEADROOM) + bytes((number,)) * 50)
        ((begin, end, segment),) = client.seal_super(
            packet, HEADROOM, len(packet), Shape(PLAIN, 0, 0), 999, out, place
        )
        assert (begin, end - begin) == (place, segment)
        place = end
    receive(exit_, bytes(out[:place]), 50 + SLICE_SIZE + OVERHEAD)
    assert at_exit.runs == [(bytes((number,)) * 50, WHOLE_PLAIN) for number in range(5)]


# --- torn ones ---


@given(st.data())
def test_loss_damage_and_order(data: st.DataObject) -> None:
    """Datagrams are lost, damaged, repeated and joined at will: what comes out is a part of what went in."""
    client, exit_, _, at_exit = lanes()
    packets: list[bytes] = []
    flight = []
    for _ in range(data.draw(st.integers(1, 4))):
        packet = tcp4(random.Random(len(packets)).randbytes(data.draw(st.integers(1, 900))))
        packets.append(packet)
        for sent, segment in seal_packet(client, packet, GSO, 500):
            flight += datagrams(sent, segment)
    kept = [one for one in flight if data.draw(st.integers(0, 5))]
    damaged = set()
    for number, one in enumerate(kept):
        if not data.draw(st.integers(0, 7)):
            damaged.add(one[:HEADER])
            at = data.draw(st.integers(HEADER, len(one) - 1))
            kept[number] = one[:at] + bytes((one[at] ^ 1,)) + one[at + 1 :]
    kept += kept[: data.draw(st.integers(0, 3))]
    while kept:
        train = [kept.pop(0)]
        while kept and len(kept[0]) <= len(train[0]) == len(train[-1]) and data.draw(st.booleans()):
            train.append(kept.pop(0))
        receive(exit_, b"".join(train), len(train[0]))
    seen: set[tuple[bytes, int]] = set()
    for part, run in at_exit.runs:
        (packet,) = (
            packet
            for packet in packets
            if packet[:40] == part[:40] and packet[40 + run.first * 100 :].startswith(part[40:])
        )
        assert len(part) - 40 == min(run.count * 100, len(packet) - 40 - run.first * 100)
        indices = {(packet, index) for index in range(run.first, run.first + run.count)}
        assert not seen & indices
        seen |= indices
    total = len({one[:HEADER] for one in flight})
    assert len(seen) <= total - len(damaged)
    assert set(dropped(exit_)) <= {"tag", "replay"}


@pytest.mark.parametrize("bad", range(10))
def test_one_damaged_slice_costs_one_slice(bad: int) -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(1).randbytes(950))
    ((sent, segment),) = seal_packet(client, packet, GSO, 1000)
    damaged = bytearray(sent)
    damaged[segment * bad + 40] ^= 0x80
    assert receive(exit_, bytes(damaged), segment) == len(sent) - (
        segment if bad < 9 else len(sent) % segment
    )
    assert dropped(exit_) == {"tag": 1}
    expected = [(0, bad), (bad + 1, 10)]
    assert at_exit.runs == [
        (packet[:40] + packet[40 + first * 100 : 40 + stop * 100], Run(GSO, first, stop - first, 10))
        for first, stop in expected
        if first < stop
    ]
    at_exit.runs.clear()
    receive(exit_, sent, segment)
    assert [run for _, run in at_exit.runs] == [Run(GSO, bad, 1, 10)]
    assert dropped(exit_) == {"tag": 1, "replay": 9}


def test_the_same_datagram_twice_in_one_receive() -> None:
    client, exit_, _, at_exit = lanes()
    one = message(client, bytes((KEEPALIVE,)))
    assert receive(exit_, one * 3, len(one)) == len(one)
    assert len(at_exit.messages) == 1
    assert dropped(exit_) == {"replay": 2}


def test_a_mixture_in_one_receive() -> None:
    """Two packets, a message, garbage, and a short datagram at the end, in the order in which they came."""
    client, exit_, _, at_exit = lanes()
    first, second = tcp4(bytes(300)), tcp4(b"\1" * 200)
    parts = [seal_packet(client, first, GSO, 500)[0][0]]
    parts.append(message(client, bytes((DATAGRAM,)).ljust(148, b"m")))
    parts.append(b"\1".ljust(177, b"g"))
    parts.append(seal_packet(client, second, GSO, 500)[0][0])
    parts.append(message(client, bytes((KEEPALIVE,))))
    receive(exit_, b"".join(parts), 177)
    assert [data for data, _ in at_exit.runs] == [first, second]
    assert [kind for kind, _, _ in at_exit.messages] == [DATAGRAM, KEEPALIVE]
    assert [size for _, _, size in at_exit.messages] == [177, 30]
    assert dropped(exit_) == {"unknown": 1}


def test_parts_of_split_packets_are_bounded() -> None:
    client, exit_, _, at_exit = lanes()
    for _ in range(100):
        for sent, segment in seal_packet(client, bytes(20_000), Shape(PLAIN, 0, 0), 1200):
            receive(exit_, sent[:-segment], segment)
    assembly = exit_._opener.assembly
    assert assembly._size <= ASSEMBLED_BYTES
    assert exit_.incomplete >= 90
    assert at_exit.runs == []
    exit_._opener.assembly.forget(EXIT_INDEX)
    assert (assembly._size, assembly._groups) == (0, {})


def test_lanes_that_share_a_room_do_not_mix_their_packets() -> None:
    """What one lane holds is handed on when another one needs the room."""
    packets = [tcp4(bytes([number]) * 400) for number in (1, 2)]
    ends = [lanes() for _ in packets]
    for packet, (client, exit_, _, _) in zip(packets, ends, strict=True):
        ((sent, segment),) = seal_packet(client, packet, GSO, 500)
        for piece in datagrams(sent, segment)[:2]:
            exit_.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)
    for _, exit_, _, _ in ends:
        exit_.flush()
    for packet, (_, _, _, at_exit) in zip(packets, ends, strict=True):
        assert at_exit.runs == [(packet[:240], Run(GSO, 0, 2, 4))]


@pytest.mark.parametrize("shape", [Shape(PLAIN, 0, 0), Shape(TCP4, 1400, 40)])
def test_parts_of_a_split_packet_in_any_order(shape: Shape) -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(3).randbytes(3000))
    ((sent, segment),) = seal_packet(client, packet, shape, 700)
    pieces = datagrams(sent, segment)
    for piece in [*pieces[2:], *pieces[:2]]:
        assert at_exit.runs == []
        receive(exit_, piece)
    assert at_exit.runs == [(packet, Run(shape, 0, len(pieces), len(pieces)))]
    assert exit_._opener.assembly._size == 0


@pytest.mark.parametrize("second", [part(PLAIN, 1, 3, 0, 0, b"y"), part(NEEDS_CSUM, 1, 2, 0, 0, b"y")])
def test_parts_that_do_not_agree(second: bytes) -> None:
    _, exit_, _, at_exit = lanes()
    receive(exit_, forged(part(PLAIN, 0, 2, 0, 0, b"x"), 5))
    receive(exit_, forged(second, 6))
    assert at_exit.runs == []
    assert exit_.incomplete == 1


# --- slices that come one by one ---


def feed(lane: Lane, piece: bytes) -> None:
    """As `receive`, in the middle of a wake-up."""
    assert lane.open_batch(memoryview(bytearray(piece)), len(piece), len(piece), 0.0)


def test_slices_that_come_one_by_one_are_put_together() -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(5).randbytes(950))
    ((sent, segment),) = seal_packet(client, packet, GSO, 700)
    for piece in datagrams(sent, segment):
        feed(exit_, piece)
    assert at_exit.runs == [(packet, Run(GSO, 0, 10, 10))]  # the last slice ends it
    exit_.flush()
    assert len(at_exit.runs) == 1


@pytest.mark.parametrize("lost", range(10))
def test_a_lost_slice_parts_what_is_put_together(lost: int) -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(6).randbytes(950))
    ((sent, segment),) = seal_packet(client, packet, GSO, 700)
    pieces = datagrams(sent, segment)
    for piece in pieces[:lost] + pieces[lost + 1 :]:
        feed(exit_, piece)
    exit_.flush()
    headers, payload = packet[:40], packet[40:]
    runs = [(0, lost), (lost + 1, 10 - lost - 1)]
    assert at_exit.runs == [
        (headers + payload[first * 100 : (first + count) * 100], Run(GSO, first, count, 10))
        for first, count in runs
        if count
    ]


def test_another_packet_ends_what_is_put_together() -> None:
    client, exit_, _, at_exit = lanes()
    first, second, plain = tcp4(bytes(300)), tcp4(b"x" * 300), tcp4(b"plain")
    pieces = []
    for packet in (first, second):
        ((sent, segment),) = seal_packet(client, packet, GSO, 700)
        pieces += datagrams(sent, segment)[:2]
    ((sent, segment),) = seal_packet(client, plain, Shape(PLAIN, 0, 0), 700)
    for piece in [*pieces, sent]:
        feed(exit_, piece)
    assert at_exit.runs == [
        (first[:240], Run(GSO, 0, 2, 3)),
        (second[:240], Run(GSO, 0, 2, 3)),
        (plain, WHOLE_PLAIN),
    ]


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_whatever_the_order_nothing_is_lost_or_doubled(order: list[int], flushed: set[int]) -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(7).randbytes(580))
    ((sent, segment),) = seal_packet(client, packet, GSO, 700)
    pieces = datagrams(sent, segment)
    for number in order:
        feed(exit_, pieces[number])
        if number in flushed:
            exit_.flush()
    exit_.flush()
    found = {}
    for data, run in at_exit.runs:
        assert data[:40] == packet[:40] and run.of == 6
        assert run.first not in found
        found[run.first] = data[40:]
        assert run.count == -(-len(data[40:]) // 100)
    assert b"".join(found[first] for first in sorted(found)) == packet[40:]


# --- what may overtake ---


def test_an_express_packet_is_marked_in_clear_and_arrives_as_any_other() -> None:
    client, exit_, _, at_exit = lanes()
    first, second = tcp4(b"bulk" * 20), tcp4(b"")
    ((slow, _),) = seal_packet(client, first, Shape(NEEDS_CSUM, 0, 0), 700)
    ((fast, _),) = seal_packet(client, second, Shape(NEEDS_CSUM | EXPRESS, 0, 0), 700)
    assert (slow[0], fast[0]) == (KIND, EXPRESS_KIND)
    receive(exit_, fast)
    receive(exit_, slow)
    run = Run(Shape(NEEDS_CSUM, 0, 0), 0, 1, 1)
    assert at_exit.runs == [(second, run), (first, run)]


def test_a_train_overtaken_by_an_express_packet() -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(random.Random(8).randbytes(950))
    ((sent, segment),) = seal_packet(client, packet, GSO, 700)
    ((fast, _),) = seal_packet(client, tcp4(b""), Shape(EXPRESS, 0, 0), 700)
    receive(exit_, fast)
    receive(exit_, sent, segment)
    assert at_exit.runs[1:] == [(packet, Run(GSO, 0, 10, 10))]


def test_a_train_of_express_packets() -> None:
    client, exit_, _, at_exit = lanes()
    packets = [tcp4(bytes((number,))) for number in range(5)]
    sent = b"".join(seal_packet(client, packet, Shape(EXPRESS, 0, 0), 700)[0][0] for packet in packets)
    receive(exit_, sent, len(sent) // 5)
    assert at_exit.runs == [(packet, WHOLE_PLAIN) for packet in packets]


def test_the_mark_is_authentic() -> None:
    client, exit_, _, at_exit = lanes()
    ((fast, _),) = seal_packet(client, tcp4(b""), Shape(EXPRESS, 0, 0), 700)
    receive(exit_, bytes((KIND,)) + fast[1:])
    assert (at_exit.runs, exit_.drops.tag) == ([], 1)


def test_what_must_be_cut_is_not_express() -> None:
    client, exit_, _, at_exit = lanes()
    packet = tcp4(b"x" * 1000)
    ((sent, segment),) = seal_packet(client, packet, Shape(EXPRESS, 0, 0), 700)
    assert sent[0] == sent[segment] == KIND
    receive(exit_, sent, segment)
    assert at_exit.runs == [(packet, Run(Shape(PLAIN, 0, 0), 0, 2, 2))]


# --- packets that need more than one send ---


def test_a_packet_in_two_sends_arrives_in_one_piece() -> None:
    client, exit_, _, at_exit = lanes()
    shape = Shape(NEEDS_CSUM | TCP4, 1_360, 40)
    packet = tcp4(random.Random(9).randbytes(48 * 1_360 - 700))
    sends = seal_packet(client, packet, shape, 1_472)
    assert len(sends) == 2
    for sent, segment in sends:
        assert exit_.open_batch(memoryview(bytearray(sent)), len(sent), segment, 0.0)
    assert at_exit.runs == [(packet, Run(shape, 0, 48, 48))]


# --- nonsense from a peer that has the keys ---


@pytest.mark.parametrize(
    ("plaintext", "cause"),
    [
        (bytes((SLICE,)), "malformed"),
        (part(PLAIN, 0, 1, 0, 0, b""), "malformed"),
        (part(PLAIN, 0, 0, 0, 0, b"x"), "malformed"),
        (part(PLAIN, 3, 3, 0, 0, b"x"), "malformed"),
        (part(PLAIN, 0, 1, 5, 0, b"x"), "malformed"),
        (part(PLAIN, 0, 1, 0, 1, b"xy"), "malformed"),
        (part(0x08, 0, 1, 0, 0, b"x"), "malformed"),
        (part(TCP4, 0, 1, 0, 40, tcp4(b"xy")), "malformed"),
        (part(TCP4, 0, 1, 1, 39, tcp4(b"xy")), "malformed"),
        (part(TCP4, 0, 1, 100, 42, tcp4(b"xy")), "malformed"),
        (part(TCP4, 0, 1, 100, 0xFFFF, tcp4(b"xy")), "malformed"),
        (part(TCP4, 0, 1, 100, 40, tcp4(b"xy") + b"z"), "disagreement"),
        (part(TCP4, 0, 1, 100, 40, tcp4(b"xy")[:-1]), "disagreement"),
        (part(TCP4, 0, 1, 100, 40, b"\x65" + tcp4(b"xy")[1:]), "disagreement"),
        (part(TCP6, 0, 1, 100, 60, tcp4(b"xy", 60)), "disagreement"),
    ],
)
def test_nonsense_is_counted(plaintext: bytes, cause: str) -> None:
    _, exit_, _, at_exit = lanes()
    assert receive(exit_, forged(plaintext, 5)) == len(plaintext) + OVERHEAD
    assert dropped(exit_) == {cause: 1}
    assert at_exit.runs == []


def test_a_slice_whose_packet_began_before_the_first_counter_is_no_whole_packet() -> None:
    _, exit_, _, at_exit = lanes()
    plaintexts = [part(PLAIN, 7, 9, 0, 0, bytes(20)), part(PLAIN, 0, 1, 0, 0, bytes(20))]
    train = [forged(plaintext, counter) for counter, plaintext in enumerate(plaintexts, 1)]
    receive(exit_, b"".join(train), len(train[0]))
    assert at_exit.runs == [(bytes(20), WHOLE_PLAIN)]


def test_slices_that_disagree() -> None:
    _, exit_, _, at_exit = lanes()
    packet = tcp4(bytes(200))
    train = [
        forged(part(TCP4, 0, 3, 100, 40, packet[:40] + bytes(100)), 5),
        forged(part(TCP4, 1, 2, 100, 40, packet[:40] + bytes(100)), 6),
    ]
    receive(exit_, b"".join(train), len(train[0]))
    assert dropped(exit_) == {"disagreement": 2}
    assert at_exit.runs == []


@given(
    st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=80)), max_size=12),
    st.integers(1, 120),
)
def test_any_plaintext_with_any_counter(plaintexts: list[tuple[int, bytes]], segment: int) -> None:
    _, exit_, _, at_exit = lanes()
    data = b""
    for counter, plaintext in plaintexts:
        if len(plaintext) % 2:
            plaintext = bytes((SLICE, plaintext[0] & 0x07)) + plaintext
        data += forged(plaintext.ljust(segment)[:segment], counter)
    receive(exit_, data, segment + OVERHEAD)
    for packet, run in at_exit.runs:
        assert packet
        assert 0 <= run.first < run.first + run.count <= run.of


@given(st.binary(max_size=300), st.integers(-1, 400))
def test_any_bytes_on_the_port(data: bytes, segment: int) -> None:
    _, exit_, _, at_exit = lanes()
    assert exit_.open_batch(memoryview(bytearray(data)), len(data), segment, 0.0) == 0
    assert not exit_.advanced
    assert (at_exit.runs, at_exit.messages) == ([], [])


def test_every_bit_is_authentic() -> None:
    client, exit_, _, at_exit = lanes()
    sealed = message(client, bytes((KEEPALIVE,)))
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        assert receive(exit_, bytes(damaged)) == 0
    for size in range(len(sealed)):
        assert receive(exit_, sealed[:size]) == 0
    assert at_exit.messages == []
    receive(exit_, sealed)
    assert at_exit.messages == [(KEEPALIVE, b"", OVERHEAD + 1)]
    assert len(sealed) == HEADER + 1 + TAG


# --- epochs ---


def secrets(number: int) -> EpochSecrets:
    return EpochSecrets(*(bytes((number, label)) * 16 for label in range(6)))


class Side:
    """A lane that draws 1, 2, 3 ... as indices."""

    def __init__(self, dialler: bool) -> None:
        numbers = count(1)
        self.sink = Recorder()
        self.lane = Lane(dialler, lambda size: next(numbers).to_bytes(size), self.sink)

    def install(self, number: int, keys: int, now: float = 0.0) -> int:
        return self.lane.install(Cipher.AES_256_GCM, number, secrets(keys), now)


def meet(client: Side, exit_: Side) -> None:
    """The first epoch on both sides."""
    client_index, exit_index = client.install(0, 0), exit_.install(0, 0)
    exit_.lane.announced(0, client_index, 0.0)
    client.lane.announced(0, exit_index, 0.0)


def test_rotation_loses_nothing() -> None:
    client, exit_ = Side(True), Side(False)
    assert not client.lane.ready
    with pytest.raises(LocalError):
        message(client.lane, b"x")
    meet(client, exit_)
    assert client.lane.ready
    assert not exit_.lane.ready  # nothing came yet
    assert receive(exit_.lane, message(client.lane, b"x"))
    assert exit_.lane.ready
    for number in range(1, 5):
        now = number * 100.0
        index = exit_.install(number, number, now)
        late = message(client.lane, b"late")
        exit_.lane.announced(number, client.install(number, number, now), now)
        assert message(client.lane, b"a")[1:5] == (number).to_bytes(4)  # not announced yet: the old one
        client.lane.announced(number, index, now)
        assert client.lane.spent == 0
        new = message(client.lane, b"new")
        assert client.lane.spent == 1
        assert new[1:5] == index.to_bytes(4)
        assert receive(client.lane, message(exit_.lane, b"old keys"), now=now)
        assert message(exit_.lane, b"-")[1:5] == number.to_bytes(4)
        assert receive(exit_.lane, new, now=now)
        assert exit_.lane.advanced
        assert message(exit_.lane, b"-")[1:5] == (number + 1).to_bytes(4)
        assert receive(exit_.lane, late, now=now + 1)
        assert not exit_.lane.advanced
        for side in (client, exit_):
            assert side.lane.deadline() == now + LINGER
            side.lane.expire(now + LINGER - 1)
            assert set(side.lane.indices) == {number, number + 1}
            side.lane.expire(now + LINGER)
            assert set(side.lane.indices) == {number + 1}
            assert side.lane.dropped == [number]
            side.lane.dropped.clear()
            assert side.lane.deadline() == inf
        assert not receive(exit_.lane, late, now=now + LINGER)


def test_a_new_carrier() -> None:
    """Its epoch 0 is another one; what the old carrier announced does not count for it."""
    client, exit_ = Side(True), Side(False)
    meet(client, exit_)
    receive(exit_.lane, message(client.lane, b"x"))
    client.install(0, 9)
    assert receive(exit_.lane, message(client.lane, b"old"))
    client_index = 2
    exit_index = exit_.install(0, 9)
    assert receive(client.lane, message(exit_.lane, b"old"))
    client.lane.announced(0, exit_index, 5.0)
    exit_.lane.announced(0, client_index, 5.0)
    assert receive(exit_.lane, message(client.lane, b"new"))
    assert receive(client.lane, message(exit_.lane, b"new"))
    assert client.sink.messages[-1][1] == b"ew"
    assert client.lane.deadline() == 5.0 + LINGER


def test_many_dials_without_a_datagram_keep_few_keys() -> None:
    exit_ = Side(False)
    client = Side(True)
    meet(client, exit_)
    receive(exit_.lane, message(client.lane, b"x"))
    for keys in range(1, 20):
        exit_.install(0, keys)
    assert set(exit_.lane.indices) == {1, 18, 19, 20}
    assert len(exit_.lane.indices) == MAX_EPOCHS
    assert exit_.lane.dropped == list(range(2, 18))
    assert exit_.lane.ready


def test_announcements() -> None:
    side = Side(True)
    side.lane.announced(0, 7, 0.0)  # before any key is known: ignored
    side.install(0, 0)
    side.lane.announced(3, 7, 0.0)
    assert not side.lane.ready
    side.lane.announced(0, 7, 0.0)
    side.lane.announced(0, 7, 0.0)
    for index in (8, 0):
        with pytest.raises(PeerError) as caught:
            side.lane.announced(0, index, 0.0)
        assert caught.value.reason is CloseReason.PROTOCOL
    with pytest.raises(LocalError):
        side.install(2, 2)


def test_indices_are_neither_zero_nor_taken() -> None:
    draws = iter([0, 5, 6, 6, 7])
    lane = Lane(True, lambda size: next(draws).to_bytes(size), Recorder(), taken={5})
    assert lane.install(Cipher.AES_256_GCM, 0, secrets(0), 0.0) == 6
    assert lane.install(Cipher.AES_256_GCM, 0, secrets(1), 0.0) == 7


def test_a_key_is_never_used_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_SEALED", 2)
    client, *_ = lanes()
    message(client, b"x")
    message(client, b"x")
    assert not client.ready
    assert client.spent == 2
    with pytest.raises(LocalError):
        message(client, b"x")
    assert seal_packet(client, b"packet", Shape(PLAIN, 0, 0), 500) == []


def test_replies_come_back() -> None:
    client, exit_, at_client, _ = lanes()
    receive(exit_, message(client, b"x"))
    reply = message(exit_, b"\x07")
    assert reply[1:5] == CLIENT_INDEX.to_bytes(4)
    assert receive(client, reply)
    assert not receive(exit_, reply)
    assert at_client.messages == [(KEEPALIVE, b"", 30)]
