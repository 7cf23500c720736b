"""Makes lane.json: datagrams of the lane under fixed keys: messages, packets in slices, and bytes of a stream.

The tests call the same functions and compare. Run as a script, this file writes the vectors anew.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.lane.joining import Room
from cryprq_proxy.lane.layout import KEEPALIVE, PROBE
from cryprq_proxy.lane.sealing import OUT_SIZE, Lane
from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, PLAIN, TCP4, Run, Shape

FROZEN = Path(__file__).with_name("lane.json")
EPOCH = EpochSecrets(
    records=bytes(32),
    client_lane=b"\3" * 32,
    exit_lane=b"\4" * 32,
    chain=bytes(32),
    resume=bytes(32),
    hash=bytes(32),
)
CLIENT_INDEX = 0x11223344
EXIT_INDEX = 0xA1B2C3D4
ROOM = Room()


class Recorder:
    """A sink that keeps copies of what it gets."""

    def __init__(self) -> None:
        self.runs: list[tuple[bytes, Run]] = []
        self.messages: list[tuple[int, bytes, int]] = []
        self.streams: list[tuple[int, int, bytes, int, int, bool]] = []
        self.all_frames: list[tuple[bytes, int, bool]] = []
        self.others: list[tuple[int, int]] = []

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self.runs.append((bytes(buffer[start:end]), run))
        buffer[start - HEADROOM : end] = b"\xee" * (end - start + HEADROOM)  # as its owner may

    def message(self, kind: int, body: memoryview, size: int) -> None:
        self.messages.append((kind, bytes(body), size))

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
        self.streams.append((stream, offset, bytes(buffer[start:end]), first, count, ask))
        buffer[start:end] = b"\xdd" * (end - start)

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        self.all_frames.append((bytes(body), counter, ask))

    def opened(self, first: int, last: int) -> None:
        self.others.append((first, last))


def tcp4(payload: bytes, header: int = 40) -> bytes:
    """A super-packet over IPv4: only the version and the length matter to the lane."""
    start = struct.pack("!BBHHH", 0x45, 0, header + len(payload), 7, 0x4000)
    return start + bytes(range(100, 100 + header - len(start))) + payload


def lanes(cipher: Cipher = Cipher.AES_256_GCM) -> tuple[Lane, Lane, Recorder, Recorder]:
    """A client's and an exit's lane with the first epoch installed and announced, and their sinks."""
    at_client, at_exit = Recorder(), Recorder()
    client = Lane(True, lambda size: CLIENT_INDEX.to_bytes(size), at_client, ROOM)
    exit_ = Lane(False, lambda size: EXIT_INDEX.to_bytes(size), at_exit, ROOM)
    client.install(cipher, 0, EPOCH, 0.0)
    exit_.install(cipher, 0, EPOCH, 0.0)
    client.announced(0, EXIT_INDEX, 0.0)
    exit_.announced(0, CLIENT_INDEX, 0.0)
    return client, exit_, at_client, at_exit


def seal_packet(lane: Lane, packet: bytes, shape: Shape, size: int) -> list[tuple[bytes, int]]:
    """The sends in which a packet leaves, each with the size of its datagrams."""
    raw = memoryview(bytearray(b"\xcc" * HEADROOM + packet))
    out = memoryview(bytearray(OUT_SIZE))
    sends = lane.seal_super(raw, HEADROOM, len(raw), shape, size, out)
    return [(bytes(out[begin:end]), segment) for begin, end, segment in sends]


def make() -> list[dict[str, Any]]:
    """For each cipher: what a client sends to an exit, in order."""
    vectors = []
    for cipher in Cipher:
        client, *_ = lanes(cipher)
        entries: list[dict[str, Any]] = []
        room = memoryview(bytearray(OUT_SIZE))
        for message in (bytes((KEEPALIVE,)), struct.pack("!BQ", PROBE, 7) + bytes(5)):
            end = client.seal(message, room, 0)
            entries.append({"message": message.hex(), "datagrams": [room[:end].hex()]})
        for packet, shape, size in (
            (tcp4(bytes(range(250))), Shape(NEEDS_CSUM | TCP4, 100, 40), 200),
            (tcp4(bytes(range(250))), Shape(NEEDS_CSUM | TCP4, 100, 40), 160),
            (tcp4(b"plain")[:45], Shape(PLAIN, 0, 0), 200),
            (tcp4(b"plain" * 30), Shape(PLAIN, 0, 0), 137),
        ):
            ((sent, segment),) = seal_packet(client, packet, shape, size)
            entries.append(
                {
                    "packet": packet.hex(),
                    "shape": list(shape),
                    "size": size,
                    "datagrams": [sent[at : at + segment].hex() for at in range(0, len(sent), segment)],
                }
            )
        for offset, length, size, ask in ((2**33, 250, 143, False), (2**33 + 100, 100, 200, True)):
            data = memoryview(bytes(range(250)))[:length]
            ((begin, end, segment),), _, _ = client.seal_stream(
                9, offset, data, 0, length, size, room, 0, ask
            )
            entries.append(
                {
                    "stream": 9,
                    "offset": offset,
                    "bytes": data.hex(),
                    "ask": ask,
                    "datagrams": [
                        room[at : min(at + segment, end)].hex() for at in range(begin, end, segment)
                    ],
                }
            )
        vectors.append(
            {"cipher": cipher.name, "key": EPOCH.client_lane.hex(), "index": EXIT_INDEX, "sent": entries}
        )
    return vectors


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(make(), indent=1) + "\n")
