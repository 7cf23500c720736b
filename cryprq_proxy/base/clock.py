"""The clock for all lifetimes: of links, keys, leases and caches. The time in which the machine sleeps counts too."""

from __future__ import annotations

import sys
import time
from typing import Final


def _which() -> int:
    """Of clock_gettime(2): CLOCK_MONOTONIC of Linux stands still in a suspend, and so does time.monotonic of macOS
    (mach_absolute_time). CLOCK_MONOTONIC_RAW of macOS does not (mach_continuous_time), other than that of Linux."""
    if sys.platform == "linux":
        return time.CLOCK_BOOTTIME
    return time.CLOCK_MONOTONIC_RAW if sys.platform == "darwin" else time.CLOCK_MONOTONIC


CLOCK: Final = _which()
"""Its number in clock_gettime(2), for another process that is to run by it."""


def clock() -> float:
    """Seconds since the machine started, or since another moment that stays the same."""
    return time.clock_gettime(CLOCK)


def filter_clock() -> float:
    """That by which the packet filter of this system closes what is open for a time: in a sleep the timers of Linux's
    stand still, and what closes that of macOS counts it too."""
    return clock() if sys.platform == "darwin" else time.monotonic()
