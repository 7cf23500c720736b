"""Which test of bench/wan.py needs which line, and how much a line holds."""

from __future__ import annotations

from dataclasses import replace

from hosts import Wire
from line import LIMIT
from wan_changes import black_outs, blocks, forgotten, moves
from wan_tests import Test, cold_starts, pages, queues, requests, shared, streams

NAMES = (
    "page", "fresh", "kept", "streams", "long", "queue", "cold", "blackout", "udp", "address", "nat", "share",
)  # fmt: skip
SLOW_START = 5.0
"""Seconds in which a flow fills 500 Mbit/s at 300 ms: some fifteen round trips."""
LONG_RATE = 500e6
LONG = (0.150, 0.300)
"""Round trips in seconds."""
COLD = 0.100
DEEP = 4.0
"""The queue in bandwidth-delay products for what is said to be kept short."""


def limit_of(rate: float, delay: float, buffer: float) -> int:
    """What is under way in one direction, and a queue of so many bandwidth-delay products behind it, in bytes."""
    if not rate:
        return LIMIT
    return max(int(rate / 8 * delay * (1 + 2 * buffer)), 64 << 10)


def groups(wire: Wire, buffer: float, only: list[str], seconds: float) -> list[tuple[str, Wire, list[Test]]]:
    """The tests that are asked for, by the line that they need, with its name where it is not the common one."""

    def other(rate: float, delay: float, segments: bool, buffer: float = buffer) -> Wire:
        limit = limit_of(rate, delay, buffer)
        return replace(wire, rate=rate, delay=delay, limit=limit, segments=segments)

    common = {
        "page": pages(),
        "fresh": requests("fresh"),
        "kept": requests("kept-alive", "--kept"),
        "streams": streams(seconds, 2.0, 1, 8),
        "blackout": black_outs(),
        "udp": blocks(),
        "address": moves(),
        "nat": forgotten(),
        "share": shared(seconds),
    }
    found = [("", wire, [test for name in common if name in only for test in common[name]])]
    if "long" in only:
        for trip in LONG:
            # A frame for each segment would take most of a core at this rate.
            line = other(LONG_RATE, trip / 2, False)
            title = f"{LONG_RATE / 1e6:g} Mbit/s, {1000 * trip:g} ms: "
            found.append((title, line, streams(seconds, SLOW_START, 1)))
    if "queue" in only:
        line = other(wire.rate, wire.delay, True, DEEP)
        found.append((f"room for {DEEP:g} BDP: ", line, queues(seconds)))
    if "cold" in only:
        found.append((f"{1000 * COLD:g} ms: ", other(wire.rate, COLD / 2, wire.segments), cold_starts(COLD)))
    return [group for group in found if group[2]]
