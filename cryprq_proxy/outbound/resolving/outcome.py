"""What a look-up ends with: addresses and how long they may be kept, or the reason for none."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...errors import StreamReason
from .fair_slots import FairSlots


class FoundAddresses(NamedTuple):
    """At least one literal, the best of its family first. `seconds`: how long they may be kept."""

    addresses: tuple[str, ...]
    seconds: float


type LookupResult = FoundAddresses | StreamReason
"""NAME_NOT_FOUND, NAME_FAILED, NAME_TIMED_OUT or EXHAUSTED, if there are no addresses."""


class NameSource(Protocol):
    """One of the two kinds of look-up."""

    slots: FairSlots
    """Each look-up has one while it runs."""
    cancellable: bool
    """Whether `look_up` ends at once, with its sockets, when it is cancelled. If not, it is never cancelled."""

    async def look_up(self, name: str) -> LookupResult:
        """Raises nothing but CancelledError."""

    def close(self) -> None:
        """No look-up begins any more."""
