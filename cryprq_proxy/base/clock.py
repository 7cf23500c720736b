"""The clock for all lifetimes: of links, keys, leases and caches."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def clock() -> float:
        """Seconds since the machine started; suspend time counts too (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    clock = time.monotonic
