"""Sessions that the exit has asked to leave: their streams run out on the paths they have, beside the new session.

    GOAWAY -> no new streams -> the last stream has ended, and the exit has all that was sent -> closed
                             -> the last path is lost, or it took too long                    -> closed, streams reset

A session that is left is not resumed: the process behind it is going.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..base.faults import contained
from ..carriers.carrier import Carrier
from ..carriers.lane.packet_link import PacketLink
from ..errors import CloseReason, PeerError
from ..session.session import Session
from ..session.session_events import Refused
from ..session.status import Totals
from ..session.streams import Stream

_log = logging.getLogger(__name__)

MOST_LEAVING: Final = 8
"""Sessions that run out at the same time; one more ends the oldest."""
LEAVING_SECONDS: Final = 600.0
"""An exit ends what has not run out after its own grace; this is for one that does not."""


class LeavingSession:
    """One session that runs out, and the owner of its carriers. `lost` gets its streams when the last one is lost
    before they have ended; `ended` is called once, after the end."""

    def __init__(
        self,
        session: Session,
        packet_link: PacketLink,
        carriers: Sequence[Carrier],
        refused: Refused,
        lost: Callable[[list[Stream]], None],
        ended: Callable[[LeavingSession], None],
    ) -> None:
        self.session = session
        self._packet_link = packet_link
        self._carriers = list(carriers)
        self._lost = lost
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._expiry = self._loop.call_later(LEAVING_SECONDS, self.end)
        session.events.refused = refused
        session.events.goaway = session.events.proven = _known
        session.events.idle = self._look_soon
        packet_link.retire()
        for carrier in carriers:
            carrier.pass_to(self)
        for stream in list(session.streams.values()):
            with contained("keeps a stream from ending that is kept for later"):
                stream.handler.session_left()
        self._look_soon()

    def _look_soon(self) -> None:
        """End it if it has run out; later, since the session is at work now."""
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self.session.idle:
            self.end()

    def end(self) -> None:
        """Close it now; streams that are left are reset."""
        for carrier in self._carriers[:]:
            carrier.close(CloseReason.NORMAL)

    def fail(self, error: PeerError) -> None:
        """The peer did something wrong in a slow key exchange."""
        for carrier in self._carriers[:]:
            carrier.fail(error)

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        self._carriers.remove(carrier)
        if self._carriers:
            return
        self._expiry.cancel()
        session = self.session
        session.events.idle = _known
        if session.streams:
            _log.warning(
                "the session that was left ends with %d streams: %s", len(session.streams), error or "closed"
            )
            with contained("keeps requests of a lost session from the next one"):
                self._lost(list(session.streams.values()))
        with contained("leaves the streams of a session that has ended"):
            session.close(CloseReason.NORMAL)
        # Behind the session, which says its end by it.
        with contained("leaves a datagram lane behind"):
            self._packet_link.close()
        self._ended(self)


class LeavingSessions:
    """Those of one client, the oldest first. `totals` gets the counts of each that has ended; `refused` and `lost` are
    called as by Session.on_refused and LeavingSession."""

    def __init__(self, totals: Totals, refused: Refused, lost: Callable[[list[Stream]], None]) -> None:
        self._totals = totals
        self._refused = refused
        self._lost = lost
        self._leaving: dict[bytes, LeavingSession] = {}
        self._none = asyncio.Event()
        self._none.set()

    async def ended(self) -> None:
        """Return when there is none."""
        await self._none.wait()

    def __len__(self) -> int:
        return len(self._leaving)

    def __iter__(self) -> Iterator[Session]:
        return (leaving.session for leaving in self._leaving.values())

    def add(self, session: Session, packet_link: PacketLink, carriers: Sequence[Carrier]) -> None:
        """Let `session` run out."""
        for oldest in list(self._leaving.values())[: max(0, len(self._leaving) + 1 - MOST_LEAVING)]:
            oldest.end()
        self._none.clear()
        self._leaving[session.session_id] = LeavingSession(
            session, packet_link, carriers, self._refused, self._lost, self._end
        )

    def fail(self, session_id: bytes, error: PeerError) -> None:
        """See LeavingSession.fail; harmless if it has ended."""
        leaving = self._leaving.get(session_id)
        if leaving is not None:
            leaving.fail(error)

    def close(self) -> None:
        """End all."""
        for leaving in list(self._leaving.values()):
            leaving.end()

    def stream(self, id: int) -> Stream | None:
        return next((session.streams[id] for session in self if id in session.streams), None)

    def refused(self) -> Counter[Any]:
        """How many of their streams were refused, by reason."""
        return sum((session.table.refused for session in self), Counter[Any]())

    def _end(self, leaving: LeavingSession) -> None:
        del self._leaving[leaving.session.session_id]
        if not self._leaving:
            self._none.set()
        self._totals.add(leaving.session)


def _known() -> None:
    """That it is being left, or has ended."""
