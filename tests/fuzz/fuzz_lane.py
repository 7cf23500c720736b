"""Invariant: no datagram makes the lane raise, and what it hands on lies within its buffer and its bounds."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.crypto.primitives import Cipher, new_aead
    from cryprq_proxy.lane.layout import KIND, SLICE
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

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        if not HEADROOM <= start < end <= len(buffer):
            raise RuntimeError("a run outside of the buffer")
        if not 0 <= run.first < run.first + run.count <= run.of:
            raise RuntimeError(f"{run} is not possible")
        buffer[start - HEADROOM : end] = b"\xee" * (end - start + HEADROOM)

    def message(self, kind: int, body: memoryview, size: int) -> None:
        self.path.message(kind, body, size, ("client", 1), self.now)


def fuzz(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    path = LanePath(False, CEILING, lambda size: bytes(range(size)), 0.0)
    sink = Sink(path)
    _, lane, _, _ = lanes()
    lane._opener._sink = sink
    counter = 0
    while provider.remaining_bytes():
        segment = provider.ConsumeIntInRange(28, 200)
        train = b""
        for _ in range(provider.ConsumeIntInRange(1, 8)):
            index = provider.PickValueInList([EXIT_INDEX] * 7 + [CLIENT_INDEX])
            counter += provider.PickValueInList([1, 1, 1, 1, 1, 0, -1, 3, 9000])
            head = struct.pack("!BIQ", KIND, index, max(counter, 0))
            plaintext = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 60))
            if provider.ConsumeBool():
                plaintext = bytes((SLICE,)) + plaintext
            plaintext = plaintext.ljust(max(segment - 29, 1), b"\x45")[: max(segment - 29, 1)]
            one = bytearray(head + AEAD.encrypt(head[1:], plaintext, head))
            if not provider.ConsumeIntInRange(0, 7):
                one[provider.ConsumeIntInRange(0, len(one) - 1)] ^= 1
            train += one
        size = provider.ConsumeIntInRange(0, len(train))
        heard = lane.open_batch(memoryview(bytearray(train)), size, segment, sink.now)
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
