"""The sending side of a lane and its epochs: frozen datagrams, whole packets on paths of any size, changes of keys."""

from __future__ import annotations

import json
import random
import struct
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
    EXPRESS_KIND,
    HEADER,
    KEEPALIVE,
    KIND,
    MAX_TRAIN,
    OVERHEAD,
    STREAM,
    STREAM_ASK,
)
from cryprq_proxy.lane.sealed_train import MAX_SEND
from cryprq_proxy.lane.sealing import LINGER, MAX_EPOCHS, OUT_SIZE, Lane
from cryprq_proxy.lane.slices import (
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
from tests.support.lanes import GSO, WHOLE_PLAIN, datagrams, dropped, message, receive
from tests.vectors.make_lane import CLIENT_INDEX, FROZEN, Recorder, lanes, make, seal_packet, tcp4

CIPHERS = pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)


# --- bytes ---


@pytest.mark.parametrize("vector", json.loads(FROZEN.read_text()), ids=lambda vector: vector["cipher"])
def test_frozen_datagrams(vector: dict[str, Any]) -> None:
    """Each datagram opens with nothing but the key and this layout; the exit gets what was sent."""
    aead = new_aead(Cipher[vector["cipher"]], bytes.fromhex(vector["key"]))
    _, exit_, _, at_exit = lanes(Cipher[vector["cipher"]])
    counter = 0
    for entry in vector["sent"]:
        pieces = [bytes.fromhex(text) for text in entry["datagrams"]]
        payloads: list[bytes] = []
        for number, piece in enumerate(pieces):
            assert piece[:HEADER] == struct.pack("!BIQ", 1, vector["index"], counter)
            plain = aead.decrypt(piece[1:13], piece[13:], piece[:13])
            counter += 1
            if "message" in entry:
                assert plain.hex() == entry["message"]
                continue
            if "stream" in entry:
                asks = entry["ask"] and number == len(pieces) - 1
                place = entry["offset"] + sum(map(len, payloads))
                kind = STREAM_ASK if asks else STREAM
                assert plain[:14] == struct.pack("!BBIQ", kind, number, entry["stream"], place)
                payloads.append(plain[14:])
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
        elif "stream" in entry:
            assert b"".join(payloads).hex() == entry["bytes"]
            told = (entry["stream"], entry["offset"], b"".join(payloads), counter - len(pieces), len(pieces))
            assert at_exit.streams.pop() == (*told, entry["ask"])
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


def test_an_announcement_before_its_secrets_are_known() -> None:
    """The exit's LANE frame took another path than its REKEY_ANSWER."""
    client, exit_ = Side(True), Side(False)
    meet(client, exit_)
    receive(exit_.lane, message(client.lane, b"x"))
    exit_index = exit_.install(1, 1)
    for _ in range(2):
        client.lane.announced(1, exit_index, 4.0)
    assert receive(exit_.lane, message(client.lane, b"old"))
    exit_.lane.announced(1, client.install(1, 1, 5.0), 5.0)
    new = message(client.lane, b"new")
    assert new[1:5] == exit_index.to_bytes(4)
    assert receive(exit_.lane, new) and receive(client.lane, message(exit_.lane, b"new"))
    assert client.lane.deadline() == 5.0 + LINGER
    client.install(2, 2, 6.0)
    assert message(client.lane, b"x")[1:5] == exit_index.to_bytes(4), "it was for one epoch"


def test_an_exit_that_was_told_early_waits_for_a_datagram_all_the_same() -> None:
    client, exit_ = Side(True), Side(False)
    meet(client, exit_)
    receive(exit_.lane, message(client.lane, b"x"))
    exit_.lane.announced(1, 77, 0.0)
    exit_.install(1, 1)
    assert receive(client.lane, message(exit_.lane, b"old"))


def test_a_copy_of_an_announcement_that_is_over() -> None:
    client, exit_ = Side(True), Side(False)
    meet(client, exit_)
    index = exit_.install(1, 1)
    client.install(1, 1)
    client.lane.announced(1, index, 0.0)
    for number in (0, 1):
        client.lane.announced(number, number + 1, 0.0)
    client.lane.expire(LINGER)
    client.lane.announced(0, 1, LINGER)
    assert message(client.lane, b"x")[1:5] == index.to_bytes(4)


def test_many_epochs_without_a_datagram_keep_few_keys() -> None:
    exit_ = Side(False)
    client = Side(True)
    meet(client, exit_)
    receive(exit_.lane, message(client.lane, b"x"))
    for keys in range(1, 20):
        exit_.install(keys, keys)
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
    side.lane.announced(1, 9, 0.0)
    side.lane.announced(2, 7, 0.0)  # not the next one: ignored
    for number, index in ((0, 8), (0, 0), (1, 8), (1, 0)):
        with pytest.raises(PeerError) as caught:
            side.lane.announced(number, index, 0.0)
        assert caught.value.reason is CloseReason.PROTOCOL
    for number in (0, 2):
        with pytest.raises(LocalError):
            side.install(number, 2)
    side.install(1, 1)
    assert message(side.lane, b"x")[1:5] == (9).to_bytes(4)
    with pytest.raises(PeerError):
        side.lane.announced(1, 10, 0.0)


def test_indices_are_neither_zero_nor_taken() -> None:
    draws = iter([0, 5, 6, 6, 7])
    lane = Lane(True, lambda size: next(draws).to_bytes(size), Recorder(), taken={5})
    assert lane.install(Cipher.AES_256_GCM, 0, secrets(0), 0.0) == 6
    assert lane.install(Cipher.AES_256_GCM, 1, secrets(1), 0.0) == 7


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
