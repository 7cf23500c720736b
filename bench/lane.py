"""What sealing and opening cost the datagram lane, without sockets: microseconds for each datagram.

    .venv/bin/python bench/lane.py [--rounds 9]

Packets are a TCP super-packet of 40 segments, and small ones of 100 bytes; streams go in datagrams of 1,443 bytes, in
trains of 44 or each alone. "One by one": as datagrams arrive without UDP_GRO. The figure is the best of the rounds.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import count, run_to_end

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.lane.joining import Room
from cryprq_proxy.lane.sealing import OUT_SIZE, Lane
from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, PLAIN, TCP4, Run, Shape

SEGMENTS, SEGMENT, HEADERS = 40, 1400, 40
TRAIN, SIZE, PAYLOAD = 44, 1443, 1400
SMALL = 100
TIMES = 100
"""Trains in a round."""

type Train = tuple[bytes, int]
"""The datagrams of a send, and the size of each."""


class Nobody:
    """A sink that throws away what it gets."""

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """A packet."""

    def message(self, kind: int, body: memoryview, size: int) -> None:
        """A message."""

    def stream(
        self,
        stream: int,
        offset: int,
        buffer: memoryview,
        start: int,
        end: int,
        first: int,
        count: int,
        ask: bool,
    ) -> None:
        """Bytes of a stream."""

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        """Frames."""

    def opened(self, first: int, last: int) -> None:
        """Counters."""


class Ends:
    """A client's lane that seals and an exit's that opens."""

    def __init__(self) -> None:
        room = Room()
        epoch = EpochSecrets(*(bytes((number,)) * 32 for number in range(6)))
        self.client, self.exit = (
            Lane(dialler, lambda size: bytes(size - 1) + b"\1", Nobody(), room) for dialler in (True, False)
        )
        for lane in (self.client, self.exit):
            lane.install(Cipher.AES_256_GCM, 0, epoch, 0.0)
            lane.announced(0, 1, 0.0)
        self.out = memoryview(bytearray(OUT_SIZE))
        self.arrived = memoryview(bytearray(2 * 65_536))
        self.raw = memoryview(bytearray(HEADROOM + 65_535))
        self.slot = memoryview(bytearray(128 * 1024))

    def super_packet(self) -> Train:
        total = HEADERS + SEGMENTS * SEGMENT
        struct.pack_into("!BBH", self.raw, HEADROOM, 0x45, 0, total)
        shape = Shape(NEEDS_CSUM | TCP4, SEGMENT, HEADERS)
        ((begin, end, size),) = self.client.seal_super(
            self.raw, HEADROOM, HEADROOM + total, shape, 1500, self.out
        )
        return bytes(self.out[begin:end]), size

    def small_packets(self) -> Train:
        at = size = 0
        for _ in range(SEGMENTS):
            end = HEADROOM + SMALL
            ((_, at, size),) = self.client.seal_super(
                self.raw, HEADROOM, end, Shape(PLAIN, 0, 0), SIZE, self.out, at
            )
        return bytes(self.out[:at]), size

    def stretch(self) -> Train:
        ((begin, end, size),), *_ = self.client.seal_stream(
            1, 0, self.slot, 9, 9 + TRAIN * PAYLOAD, SIZE, self.out, 0, False
        )
        return bytes(self.out[begin:end]), size

    def requests(self) -> Train:
        for at in range(TRAIN):
            self.client.seal_stream(1, 0, self.slot, at, at + PAYLOAD, SIZE, self.out, 0, True)
        return b"", SIZE

    def open(self, size: int, segment: int) -> None:
        """Open what has arrived: `size` bytes."""
        self.exit.open_batch(self.arrived, size, segment, 0.0)
        self.exit.flush()

    def open_each(self, size: int, segment: int) -> None:
        for at in range(0, size, segment):
            self.exit.open_batch(self.arrived[at:], min(segment, size - at), segment, 0.0)
        self.exit.flush()


def sealing(seal: Callable[[], Train]) -> float:
    """Seconds for TIMES trains."""
    begin = time.perf_counter()
    for _ in range(TIMES):
        seal()
    return time.perf_counter() - begin


def opening(ends: Ends, seal: Callable[[], Train], take: Callable[[int, int], None]) -> float:
    """Seconds for TIMES trains, each in the same buffer as from a socket."""
    seconds = 0.0
    for data, segment in [seal() for _ in range(TIMES)]:
        ends.arrived[: len(data)] = data
        begin = time.perf_counter()
        take(len(data), segment)
        seconds += time.perf_counter() - begin
    return seconds


def run(rounds: int) -> None:
    ends = Ends()
    tests: list[tuple[str, int, Callable[[], float]]] = []
    for name, number, seal in (
        ("super-packet", SEGMENTS, ends.super_packet),
        ("small packets", SEGMENTS, ends.small_packets),
        ("stream, trains", TRAIN, ends.stretch),
    ):
        tests += [
            (f"{name}: seal", number, lambda seal=seal: sealing(seal)),  # type: ignore[misc]
            (f"{name}: open", number, lambda seal=seal: opening(ends, seal, ends.open)),  # type: ignore[misc]
            (f"{name}: open one by one", number, lambda seal=seal: opening(ends, seal, ends.open_each)),  # type: ignore[misc]
        ]
    tests.append(("stream, datagrams alone: seal", TRAIN, lambda: sealing(ends.requests)))
    for name, number, test in tests:
        best = min(test() for _ in range(rounds))
        print(f"{name:32}{best / TIMES / number * 1e6:8.2f} us")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=count, default=9)
    options = parser.parse_args()
    return run_to_end(lambda: run(options.rounds))


if __name__ == "__main__":
    sys.exit(main())
