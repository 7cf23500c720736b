"""One direction of a long line: what waits, for how long, what is lost, late, or not let through. No I/O, no clock.

A frame that is offered meets, in this order:

    black-out     nothing passes until it is over
    UDP           dropped where the line takes none, or where the bucket of the police is empty
    chance        lost, by a seed; the chance is asked for each frame that comes as far, so that the same seed and the
                  same frames give the same losses
    queue         frames leave one after the other at the line's rate; what finds the line full is dropped
    delay         begins when a frame has left; a frame chosen for reordering arrives `later` behind its turn

All of it can be changed while frames are under way (`obey`), for both directions at once. Those that are in the line
stay in order among themselves, except those that are late by choice.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT = 64 << 20
"""2.5 Gbit/s for 200 ms."""
# Where the type of an Ethernet frame is, the protocol of an IPv4 and the next header of an IPv6 packet in it.
ETHER_TYPE = 12
PROTOCOL_4 = 14 + 9
PROTOCOL_6 = 14 + 6
UDP = 17


def is_udp(frame: bytes, start: int = 0) -> bool:
    """Whether the Ethernet frame that begins at `start` holds UDP: without extension headers, as hosts send it."""
    kind = frame[start + ETHER_TYPE : start + ETHER_TYPE + 2]
    if kind == b"\x08\x00":
        return frame[start + PROTOCOL_4 : start + PROTOCOL_4 + 1] == bytes([UDP])
    return kind == b"\x86\xdd" and frame[start + PROTOCOL_6 : start + PROTOCOL_6 + 1] == bytes([UDP])


@dataclass
class Counters:
    """What one direction did, in frames."""

    forwarded: int = 0
    lost: int = 0
    """By chance."""
    overflowed: int = 0
    """Because the line was full."""
    late: int = 0
    """Forwarded behind their turn."""
    dark: int = 0
    """Dropped in a black-out."""
    udp_dropped: int = 0
    """Because UDP does not pass, or not so much of it."""


class Bucket:
    """A token bucket (RFC 2697, one rate): `rate` bit/s, and a burst in bytes that it begins with."""

    def __init__(self, rate: float, burst: int) -> None:
        """Raises ValueError."""
        if not 0 < rate < math.inf or burst < 1:
            raise ValueError("the police need a rate above 0 bit/s and a burst of at least 1 byte")
        self._bytes_per_second = rate / 8
        self._burst = self._tokens = float(burst)
        self._filled: float | None = None

    def takes(self, now: float, size: int) -> bool:
        """Whether `size` bytes may pass at `now`; if so, they have."""
        if self._filled is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._bytes_per_second)
        self._filled = now
        if size > self._tokens:
            return False
        self._tokens -= size
        return True


class Line:
    """One direction. Times are seconds of any clock that does not go back."""

    def __init__(
        self,
        delay: float,
        loss: float = 0.0,
        limit: int = LIMIT,
        seed: int = 0,
        rate: float = 0.0,
        *,
        reorder: float = 0.0,
        later: float = 0.0,
        header: int = 0,
    ) -> None:
        """`rate` is in bit/s, 0 for none; `reorder` the chance to come `later` seconds behind; `header` the bytes in
        front of each Ethernet frame. Raises ValueError."""
        self.counters = Counters()
        self._random = random.Random(seed).random
        self._header = header
        self._free = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._late: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._dark_until: float | None = None
        self._udp = True
        self._police: Bucket | None = None
        self._set(delay, loss, limit, rate, reorder, later)

    def _set(
        self, delay: float, loss: float, limit: float, rate: float, reorder: float, later: float
    ) -> None:
        if not all(map(math.isfinite, (delay, loss, limit, rate, reorder, later))):
            raise ValueError("what a line is told must be finite numbers")
        if delay < 0 or not 0 <= loss <= 1 or limit < 1 or rate < 0:
            raise ValueError(
                "delay is at least 0 s, loss from 0 to 1, the limit at least 1 byte, rate at least 0"
            )
        if not 0 <= reorder <= 1 or later < 0:
            raise ValueError("the chance of reordering is from 0 to 1, by at least 0 s")
        self._delay, self._loss, self._limit, self._rate = delay, loss, int(limit), rate
        self._reorder, self._later = reorder, later
        self._seconds_per_byte = 8 / rate if rate else 0.0

    # What passes

    def offer(self, now: float, frames: Sequence[bytes]) -> None:
        """Frames that came at `now`, which is not before any earlier one."""
        if self._dark_until is not None:
            if now < self._dark_until:
                self.counters.dark += len(frames)
                return
            self._dark_until = None
        if self._police is not None or not self._udp:
            frames = self._policed(now, frames)
        free = max(now, self._free)
        for frame in frames:
            if self._loss and self._random() < self._loss:
                self.counters.lost += 1
            elif self._held + len(frame) > self._limit:
                self.counters.overflowed += 1
            else:
                self._held += len(frame)
                free += len(frame) * self._seconds_per_byte
                if self._reorder and self._random() < self._reorder:
                    self.counters.late += 1
                    self._late.append((free + self._delay + self._later, frame))
                else:
                    self._waiting.append((free + self._delay, frame))
        self._free = free

    def _policed(self, now: float, frames: Sequence[bytes]) -> list[bytes]:
        passed = [frame for frame in frames if not is_udp(frame, self._header) or self._passes(now, frame)]
        self.counters.udp_dropped += len(frames) - len(passed)
        return passed

    def _passes(self, now: float, datagram: bytes) -> bool:
        if self._police is None:
            return self._udp
        return self._udp and self._police.takes(now, len(datagram) - self._header)

    def due(self, now: float) -> list[bytes]:
        """Takes out what has waited long enough, in the order of its times."""
        waiting, late, out = self._waiting, self._late, []
        while waiting and waiting[0][0] <= now:
            while late and late[0][0] <= waiting[0][0]:
                out.append(late.popleft()[1])
            out.append(waiting.popleft()[1])
        while late and late[0][0] <= now:
            out.append(late.popleft()[1])
        self._held -= sum(map(len, out))
        self.counters.forwarded += len(out)
        return out

    @property
    def next(self) -> float | None:
        """When the next frame is due; None if none waits."""
        return min((queue[0][0] for queue in (self._waiting, self._late) if queue), default=None)

    # What can be changed

    def obey(self, now: float, command: str) -> None:
        """Does what one line of the delay line's input says. Raises ValueError with a sentence.

        blackout SECONDS, udp on, udp off, police BIT/S BURST, police off, delay SECONDS, loss CHANCE, rate BIT/S,
        limit BYTES, reorder CHANCE SECONDS
        """
        match command.split():
            case ["blackout", seconds]:
                self._dark_until = now + self._seconds(seconds)
            case ["udp", ("on" | "off") as state]:
                self._udp = state == "on"
            case ["police", "off"]:
                self._police = None
            case ["police", rate, burst]:
                self._police = Bucket(float(rate), int(burst))
            case [("delay" | "loss" | "rate" | "limit" | "reorder") as key, *values]:
                self._change(key, values)
            case _:
                raise ValueError(f"{command!r} is no command of the delay line")

    @staticmethod
    def _seconds(text: str) -> float:
        seconds = float(text)
        if not 0 <= seconds < math.inf:
            raise ValueError("a black-out takes a number of seconds, at least 0")
        return seconds

    def _change(self, key: str, values: Sequence[str]) -> None:
        names = ("reorder", "later") if key == "reorder" else (key,)
        if len(values) != len(names):
            raise ValueError(f"{key} takes {len(names)} value{'s' * (len(names) > 1)}")
        now: dict[str, float] = {
            "delay": self._delay,
            "loss": self._loss,
            "limit": self._limit,
            "rate": self._rate,
            "reorder": self._reorder,
            "later": self._later,
        }
        now.update(zip(names, map(float, values), strict=True))
        self._set(**now)
