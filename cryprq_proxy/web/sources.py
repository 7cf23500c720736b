"""What the pages show and change, as functions that the owner of the server passes in (service/client.py).

This package knows neither the client nor its rules.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..status import OpenConnection, StatusSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All are called in the event loop. `pac` and `streams` are to answer within milliseconds."""

    status: StatusSource
    streams: Callable[[], Sequence[OpenConnection]]
    """The open streams, newest first, at most 1000."""
    pac: Callable[[], str]
    """The PAC file. Raises CryprqError if there can be none."""
    close: Callable[[str], bool]
    """Ends the stream of that id; False if there is none."""
    choose_exit: Callable[[str], None]
    """Takes the exit of that name for new streams; "auto": by priority and health again. Raises CryprqError."""
    reload: Callable[[], Awaitable[Mapping[str, Any]]]
    """Reads rules and lists again. Raises CryprqError if they stay as they were."""
