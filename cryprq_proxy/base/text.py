"""Words for people: why the system or the peer refused something, and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
SHORT_ID: Final = 12
"""Characters of a peer id in a table of several: enough to tell peers apart by eye."""


def reason_of(error: OSError) -> str:
    """Why the system refused, as the end of a sentence: "connection refused", "no such file or directory".

    Never empty and never "None", also for errors without a number and for those of getaddrinfo and of TLS.
    """
    # The numbers of gaierror and SSLError are not the system's. What asyncio raises has the address in its text.
    if error.errno and error.errno > 0 and type(error).__module__ == "builtins":
        text = os.strerror(error.errno)
    else:
        unnamed = "timed out" if isinstance(error, TimeoutError) else "no reason given"
        texts = (error.strerror, *error.args, unnamed)
        text = next(text for text in texts if isinstance(text, str) and text)
    return text[:1].lower() + text[1:]


def words_of(reason: Enum) -> str:
    """A CloseReason or a StreamReason in words: "connection refused", "shutting down"."""
    return reason.name.lower().replace("_", " ")


def nonzero(*counts: Mapping[str, int]) -> list[str]:
    """As "3 replay", for each cause that is not zero; causes of one name are added up."""
    total: dict[str, int] = {}
    for mapping in counts:
        for cause, count in mapping.items():
            total[cause] = total.get(cause, 0) + count
    return [f"{count} {cause.replace('_', ' ')}" for cause, count in total.items() if count]


def milliseconds(seconds: float | None) -> str:
    """A measured time; None and 0 mean that none was measured yet."""
    return f"{seconds * 1e3:.1f} ms" if seconds else "-"


def size(count: float) -> str:
    """A number of bytes, in the largest unit of which there is at least one."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """A time in its two largest units, like "2 h 5 min"."""
    if seconds is None or not 0 <= seconds < 1e15:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
