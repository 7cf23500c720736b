"""First flights that have come whole, and wait for a token of their prefix before they are opened.

One line for each prefix, in the order of arrival. The visitors stay in their lobby, which bounds their number and time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from .lobby import Guest


class UnopenedFlights[G: Guest]:
    """For each guest what opens its flight. A guest is counted for its narrowest prefix, which may not change here."""

    def __init__(self) -> None:
        self._lines: dict[bytes, OrderedDict[G, Callable[[], None]]] = {}

    def __contains__(self, prefix: bytes) -> bool:
        """Whether a flight of `prefix` waits."""
        return prefix in self._lines

    def prefixes(self) -> list[bytes]:
        """Those of which flights wait, that with the oldest line first."""
        return list(self._lines)

    def add(self, guest: G, opening: Callable[[], None]) -> None:
        self._lines.setdefault(guest.prefixes[0], OrderedDict())[guest] = opening

    def pop(self, prefix: bytes) -> tuple[G, Callable[[], None]]:
        """Remove the flight of `prefix` that has waited for longest; there is one."""
        line = self._lines[prefix]
        first = line.popitem(last=False)
        if not line:
            del self._lines[prefix]
        return first

    def discard(self, guest: G) -> bool:
        """Forget the flight of `guest`. Whether it waited here."""
        prefix = guest.prefixes[0] if guest.prefixes else b""
        line = self._lines.get(prefix)
        if line is None or line.pop(guest, None) is None:
            return False
        if not line:
            del self._lines[prefix]
        return True
