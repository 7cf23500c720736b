"""Invariant: no datagram makes the lane raise; what it hands on lies within its buffer and its bounds; no counter is
told twice."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.crypto.primitives import Cipher, new_aead
    from cryprq_proxy.lane.layout import (
        FRAMES,
        KIND,
        SLICE,
        STREAM,
        STREAM_ASK,
        STREAM_HEADER,
        STREAM_OVERHEAD,
    )
    from cryprq_proxy.lane.path import LEAST
    from cryprq_proxy.lane.path import Path as LanePath
    from cryprq_proxy.lane.slices import ASSEMBLED_BYTES, HEADROOM, Run
    from tests.vectors.make_lane import CLIENT_INDEX, EPOCH, EXIT_INDEX, lanes

AEAD = new_aead(Cipher.AES_256_GCM, EPOCH.client_lane)
CEILING = 1472


class Sink:
    """Checks what it gets, overwrites what it may, and passes messages to a path."""

    def __init__(self, path: LanePath) -> None:
        self.path = path
        self.now = 0.0
        self.told: set[int] = set()

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        if not HEADROOM <= start < end <= len(buffer):
            raise RuntimeError("a run outside of the buffer")
        if not 0 <= run.first < run.first + run.count <= run.of:
            raise RuntimeError(f"{run} is not possible")
        buffer[start - HEADROOM : end] = b"\xee" * (end - start + HEADROOM)

    def message(self, kind: int, body: memoryview, size: int) -> None:
        self.path.message(kind, body, size, ("client", 1), self.now)

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
        if not 0 <= start < end <= len(buffer) or offset < 0:
            raise RuntimeError("bytes of a stream outside of the buffer")
        self.opened(first, first + count - 1)

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        self.opened(counter, counter)

    def opened(self, first: int, last: int) -> None:
        counters = set(range(first, last + 1))
        if not counters or counters & self.told:
            raise RuntimeError("a counter is told twice")
        self.told |= counters


def fuzz(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    path = LanePath(False, CEILING, lambda size: bytes(range(size)), 0.0)
    sink = Sink(path)
    _, lane, _, _ = lanes()
    opener = lane._opener
    opener._sink = opener._packets._sink = opener._streams._sink = sink
    counter = 0
    while provider.remaining_bytes():
        segment = provider.ConsumeIntInRange(28, 200)
        train = b""
        for _ in range(provider.ConsumeIntInRange(1, 8)):
            index = provider.PickValueInList([EXIT_INDEX] * 7 + [CLIENT_INDEX])
            counter += provider.PickValueInList([1, 1, 1, 1, 1, 0, -1, 3, 9000])
            head = struct.pack("!BIQ", KIND, index, max(counter, 0))
            plaintext = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 60))
            shape = provider.ConsumeIntInRange(0, 3)
            if shape == 1:
                plaintext = bytes((SLICE,)) + plaintext
            elif shape > 1:
                kind = provider.PickValueInList([STREAM, STREAM, STREAM_ASK, FRAMES])
                place = provider.ConsumeIntInRange(0, 9)
                each = max(segment - STREAM_OVERHEAD, 1)
                offset = provider.PickValueInList([place * each, provider.ConsumeIntInRange(0, 2**64 - 1)])
                plaintext = STREAM_HEADER.pack(kind, place, 7, offset) + plaintext
            plaintext = plaintext.ljust(max(segment - 29, 1), b"\x45")[: max(segment - 29, 1)]
            one = bytearray(head + AEAD.encrypt(head[1:], plaintext, head))
            if not provider.ConsumeIntInRange(0, 7):
                one[provider.ConsumeIntInRange(0, len(one) - 1)] ^= 1
            train += one
        size = provider.ConsumeIntInRange(0, len(train))
        heard = lane.open_batch(memoryview(bytearray(train)), size, segment, sink.now)
        if provider.ConsumeBool():
            lane.flush()
        if heard > size:
            raise RuntimeError("more was heard than came")
        if heard:
            path.received_from(("client", provider.ConsumeIntInRange(1, 2)), heard, lane.advanced, sink.now)
        sink.now += provider.ConsumeFloatInRange(0.0, 10.0)
        if path.deadline() <= sink.now:
            path.tick(sink.now)
        path.outgoing.clear()
        if not LEAST <= path.size <= CEILING or lane._opener.assembly._size > ASSEMBLED_BYTES:
            raise RuntimeError("a bound does not hold")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
