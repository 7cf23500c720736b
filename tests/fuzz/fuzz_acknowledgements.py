"""Invariant: a body decodes to what encodes to the same bytes, or to nothing; and no acknowledgement makes the sender's
half raise anything but PeerError (PROTOCOL), or settle a datagram twice."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import CloseReason, PeerError
    from cryprq_proxy.recovery.received import SENT_RANGES, AckFrame, decode, encode
    from cryprq_proxy.recovery.recovery import Recovery, Settled
    from tests.support.recovery import DATAGRAM, NotedControl, OpenPacer

TRAINS, COUNT = 6, 7


class Books:
    """What the owner of the cargo knows: each datagram is settled once at most."""

    def __init__(self) -> None:
        self.in_flight = {(train, at) for train in range(TRAINS) for at in range(COUNT)}

    def settle(self, settled: Settled[int]) -> None:
        for part in (*settled.acked, *settled.lost):
            for at in range(part.first, part.behind):
                if (part.cargo, at) not in self.in_flight:
                    raise RuntimeError(
                        f"datagram {at} of train {part.cargo} is settled twice, or was never sent"
                    )
                self.in_flight.remove((part.cargo, at))


def checked(body: bytes) -> AckFrame | None:
    frame = decode(body)
    if frame is not None:
        bounds = frame.bounds
        if bounds != sorted(set(bounds)) or not 2 <= len(bounds) <= 2 * SENT_RANGES or bounds[0] < 0:
            raise RuntimeError(f"{bounds} are no bounds")
        if encode(frame)[:8] + encode(frame)[12:] != body[:8] + body[12:]:  # a delay may be rounded
            raise RuntimeError(f"{encode(frame)!r} is not {body!r}")
    return frame


def fuzz(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    control, books = NotedControl(), Books()
    recovery = Recovery[int](control, OpenPacer(), 0.0, round_trip=0.1, chance=lambda: 0.0)
    counter, now = 0, 0.0
    for train in range(TRAINS):
        recovery.sent(counter, COUNT, DATAGRAM, COUNT * DATAGRAM, now, train)
        counter, now = counter + COUNT + train % 2, now + 0.01
    while provider.remaining_bytes():
        now += provider.ConsumeIntInRange(-100, 300) / 1_000
        if provider.ConsumeBool():
            frame = checked(provider.ConsumeBytes(provider.ConsumeIntInRange(0, 64)))
        else:
            bounds = sorted({provider.ConsumeIntInRange(0, counter + 1) for _ in range(6)})
            frame = AckFrame(bounds[: len(bounds) // 2 * 2] or [0, 1], 0.01, provider.ConsumeIntInRange(0, 9))
        try:
            if frame is not None:
                books.settle(recovery.acked(frame, counter, now))
        except PeerError as error:
            if error.reason is not CloseReason.PROTOCOL:
                raise
        books.settle(recovery.tick(now))
    if not 0 <= recovery.in_flight <= TRAINS * COUNT * DATAGRAM or recovery.deadline() != recovery.deadline():
        raise RuntimeError(
            f"{recovery.in_flight} bytes are in flight, the next deadline is {recovery.deadline()}"
        )
    if recovery.in_flight and recovery.deadline() == inf:
        raise RuntimeError("something is in flight and nobody waits for it")
    checked(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
