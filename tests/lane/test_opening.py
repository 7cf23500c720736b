"""What comes in: torn and mixed trains, and that nonsense is counted and dropped."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.layout import DATAGRAM, HEADER, KEEPALIVE, KIND, OVERHEAD, SLICE, TAG
from cryprq_proxy.lane.slices import EXPRESS, PLAIN, TCP4, TCP6, Run, Shape
from tests.support.lanes import GSO, WHOLE_PLAIN, datagrams, dropped, forged, message, part, receive
from tests.vectors.make_lane import lanes, seal_packet, tcp4


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
    for found, run in at_exit.runs:
        (packet,) = (
            packet
            for packet in packets
            if packet[:40] == found[:40] and packet[40 + run.first * 100 :].startswith(found[40:])
        )
        assert len(found) - 40 == min(run.count * 100, len(packet) - 40 - run.first * 100)
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
