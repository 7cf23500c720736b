"""Packets whose slices come in more than one datagram, put together within bounds."""

from __future__ import annotations

import random

import pytest

from cryprq_proxy.lane.slices import (
    ASSEMBLED_BYTES,
    ASSEMBLED_GROUPS,
    MAX_VIEWS,
    NEEDS_CSUM,
    PLAIN,
    TCP4,
    Rows,
    Run,
    Shape,
)
from tests.support.lanes import datagrams, forged, part, receive
from tests.vectors.make_lane import EXIT_INDEX, lanes, seal_packet, tcp4


@pytest.mark.parametrize("size", [3_000, 20_000])
def test_parts_of_split_packets_are_bounded(size: int) -> None:
    client, exit_, _, at_exit = lanes()
    for _ in range(100):
        for sent, segment in seal_packet(client, bytes(size), Shape(PLAIN, 0, 0), 1200):
            receive(exit_, sent[:-segment], segment)
    assembly = exit_._opener.assembly
    assert 0 < len(assembly._groups) <= ASSEMBLED_GROUPS
    assert assembly._size <= ASSEMBLED_BYTES
    assert exit_.incomplete >= 90
    assert at_exit.runs == []
    exit_._opener.assembly.forget(EXIT_INDEX)
    assert (assembly._size, assembly._groups) == (0, {})


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


def test_views_that_are_kept_are_bounded() -> None:
    rows, buffer = Rows(), memoryview(bytearray(range(250)) * 4)
    most = 0
    for size in range(1, 400):
        views = rows.row(buffer, 0, 1, size, 255)
        assert len(views) == 255
        assert views[254] == buffer[254 : 254 + size]
        most = max(most, sum(len(kept) for _, kept in rows._rows.values()))
    assert MAX_VIEWS - 255 < most <= MAX_VIEWS
    kept = rows.row(buffer, 0, 10, 10, 2)
    assert rows.row(buffer, 0, 10, 10, 3) is kept
    assert [bytes(view) for view in kept] == [bytes(range(at, at + 10)) for at in (0, 10, 20)]
