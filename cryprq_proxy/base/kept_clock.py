"""Whether something keeps the clock of this machine in step, as the kernel has been told: adjtimex(2).

Every NTP client tells it, also on a host whose containers share its clock.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_SIZE: Final = 512
"""Bytes, more than `struct timex` has on any system. All zeros ask and change nothing."""
_TIME_ERROR: Final = 5
"""The clock is not synchronised."""


def clock_is_kept() -> bool | None:
    """None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_SIZE))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
