"""When a client signs because its short handshakes find no answer. No clock and no I/O.

no connection came about                          says nothing: after an outage nobody need sign
one did, and ended before the second flight       counts
a path has joined, or a session begun             the count begins anew

Somebody on the path may let no short handshake pass; without a signature the session would then wait until its time is
over. But an exit that does not keep up answers nobody either, and signatures would keep it busy. So they are few, and
become fewer each time that one has changed nothing.
"""

from __future__ import annotations

from typing import Final

FIRST_UNANSWERED: Final = 3
MOST_UNANSWERED: Final = 24
"""Short handshakes in a row without an answer before a signed one; each time twice as many, up to this."""


class UnansweredTickets:
    """Counts them for one session."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._allowed = self._left = FIRST_UNANSWERED

    def one_more(self) -> bool:
        """A short handshake found no answer. Whether a signed one is to follow."""
        self._left -= 1
        if self._left:
            return False
        self._allowed = self._left = min(2 * self._allowed, MOST_UNANSWERED)
        return True
