"""Lanes for tests: what one sends and what another one makes of it, and what a peer with the keys could forge."""

from __future__ import annotations

import struct
from dataclasses import asdict

from cryprq_proxy.crypto.primitives import Cipher, new_aead
from cryprq_proxy.lane.layout import KIND, SLICE
from cryprq_proxy.lane.sealing import OUT_SIZE, Lane
from cryprq_proxy.lane.slices import NEEDS_CSUM, PLAIN, SLICE_HEADER, TCP4, Run, Shape
from tests.vectors.make_lane import EPOCH, EXIT_INDEX

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


def seal_stream(
    lane: Lane, data: bytes, offset: int, size: int, *, stream: int = 7, ask: bool = False
) -> list[tuple[bytes, int]]:
    """The sends in which bytes of a stream leave, each with the size of its datagrams."""
    out = memoryview(bytearray(OUT_SIZE))
    sends, _, _ = lane.seal_stream(stream, offset, memoryview(data), 0, len(data), size, out, 0, ask)
    return [(bytes(out[begin:end]), segment) for begin, end, segment in sends]


def forged(plaintext: bytes, counter: int, index: int = EXIT_INDEX) -> bytes:
    """What a client with the right keys could send."""
    head = struct.pack("!BIQ", KIND, index, counter)
    return head + new_aead(Cipher.AES_256_GCM, EPOCH.client_lane).encrypt(head[1:], plaintext, head)


def part(flags: int, index: int, of: int, gso: int, header: int, rest: bytes) -> bytes:
    return SLICE_HEADER.pack(SLICE, flags, index, of, gso, header) + rest


def dropped(lane: Lane) -> dict[str, int]:
    return {cause: number for cause, number in asdict(lane.drops).items() if number}
