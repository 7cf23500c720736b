"""Slices that come one by one, put together again for as long as they follow each other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.joining import Joiner, Room
from cryprq_proxy.lane.sealing import Lane
from cryprq_proxy.lane.slices import HEADROOM, MAX_PACKET, PLAIN, Drops, Run, Shape
from tests.support.lanes import GSO, WHOLE_PLAIN, datagrams
from tests.vectors.make_lane import Recorder, lanes, seal_packet, tcp4


def test_no_packet_is_larger_than_ip_allows() -> None:
    """A train is longer than that, and a peer may say that all of it is one packet."""
    given: list[int] = []

    class Sink(Recorder):
        def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
            given.append(end - start)

    room = Room()
    joiner = Joiner(Sink(), room, Drops())
    for size in (MAX_PACKET, MAX_PACKET + 1):
        joiner.deliver(room.opened, HEADROOM, HEADROOM + size, Run(Shape(PLAIN, 0, 0), 0, 60, 60), (1, size))
    assert given == [MAX_PACKET]
    assert joiner.assembly.given_up == 1


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
