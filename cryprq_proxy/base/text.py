"""Numbers in words, for people, and values as JSON; reasons in words are in errors.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import msgspec

from .log import one_line

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
SHORT_ID: Final = 8
"""Characters of a peer id beside a name: enough to find it on the list."""
MAX_SHOWN: Final = 64
"""Characters of a name that are shown."""


def counted(number: int, noun: str) -> str:
    """As "1 peer" or "2 peers"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nonzero(*counts: Mapping[str, int]) -> list[str]:
    """A text like "3 replay" for each cause with a count above 0; counts of the same cause are added."""
    total: dict[str, int] = {}
    for mapping in counts:
        for cause, count in mapping.items():
            total[cause] = total.get(cause, 0) + count
    return [f"{count} {cause.replace('_', ' ')}" for cause, count in total.items() if count]


def named(name: str, peer_id: str) -> str:
    """A peer for a person, as "laptop (ell5z3kq...)"; its whole id if it has no name.

    A name may hold anything, since a file has it: what a terminal would obey is escaped, and what is long is cut."""
    return f"{one_line(name[:MAX_SHOWN])} ({short_id(peer_id)})" if name else peer_id


def named_exit(name: str, peer_id: str, address: object) -> str:
    """An exit for a person, with where it is reached, as "home (192.0.2.7:4433)"; without a name a part of its id."""
    return f"{one_line(name[:MAX_SHOWN]) or short_id(peer_id)} ({address})"


def short_id(peer_id: str) -> str:
    return f"{peer_id[:SHORT_ID]}..."


def milliseconds(seconds: float | None) -> str:
    """A measured time in ms; "-" for None and 0, that is if there is no measurement yet."""
    return f"{seconds * 1e3:.1f} ms" if seconds else "-"


def size(count: float) -> str:
    """A number of bytes in the largest unit that gives at least 1."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """A time in its two largest units, for example "2 h 5 min"; "-" if it is unknown."""
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


def to_json(value: object) -> bytes:
    """JSON in UTF-8, also of structs. Text that is not Unicode (lone surrogates) is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value)).encode()
