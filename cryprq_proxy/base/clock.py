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


_CLOCK: Final = _which()


def clock() -> float:
    """Seconds since the machine started, or since another moment that stays the same."""
    return time.clock_gettime(_CLOCK)
