"""All relays of a role, or its HTTP connections, and a look at those that hear of nothing.

asyncio watches a socket only for reading and writing. A relay whose stream takes nothing does neither, so it does not
hear that its application has died. The same holds for an HTTP request that waits for its origin, and for an application
whose target is being connected. In regular looks, some in one turn of the loop, the kernel is asked about each of them
that hears of nothing (base/far_end.py), and in every sixth about all. What ends one:

    the connection has failed, and nothing moves                       -> a later look
    the application has gone, and nobody takes what it has sent        -> after a time
    the other machine acknowledges nothing                             -> a look
    nothing moves, in either direction, for the configured idle time   -> a look

The first look at a relay also tells the kernel to ask its other end whether it is there: most do not live as long, and
that takes four system calls.

How long each of them may wait is its Patience. An application on this machine that has only ended its half is there: it
waits for an answer. One on another machine cannot be told from one that has gone, so it waits for a short time only.
What an application has sent through a relay before it closed is still passed on, as long as somebody takes it; a
request whose answer nobody can get any more is given up at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Final, Protocol

from ..base.far_end import FarEnd, Holder, has_unread, holder_of, look_at
from ..base.faults import report_fault
from ..base.sockets import keep_alive
from ..errors import StreamReason

LOOK_SECONDS: Final = 10.0
GONE_SECONDS: Final = 60.0
PROMPT_LOOK_SECONDS: Final = 1.0
ENDED_SECONDS: Final = 3.0
"""For the answer to begin or go on, where it is unknown whether an application that sends no more still reads."""
LOOKS_AT_ALL: Final = 6
"""Every so many looks all relays are looked at. Those that wait for their socket miss only a silent machine, and
thousands of quiet ones are to cost nothing."""
RELAYS_A_TURN: Final = 64
"""Looked at in one turn of the loop, at 2 to 50 us each."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a relay may stay that hears of nothing and in which nothing moves, in seconds."""

    look: float
    """Between two looks."""
    over: float
    """Its connection has failed."""
    gone: float = inf
    """Its application has closed: on this machine no program holds the other end, or the connection has failed after
    the application had ended its half."""
    ended: float = inf
    """Its application has ended its half, and nobody knows whether it has closed."""


APPLICATIONS: Final = Patience(look=LOOK_SECONDS, over=PROMPT_LOOK_SECONDS, gone=GONE_SECONDS)
TARGETS: Final = Patience(look=LOOK_SECONDS, over=PROMPT_LOOK_SECONDS)
"""A target that has sent all and has gone is no reason to end a stream: the application may read slowly."""
REQUESTS: Final = Patience(look=PROMPT_LOOK_SECONDS, over=0.0, gone=0.0, ended=ENDED_SECONDS)
"""Applications that wait for the answer to an HTTP request."""
EARLY: Final = Patience(look=PROMPT_LOOK_SECONDS, over=0.0, gone=GONE_SECONDS)
"""Applications that have sent data for a target that is being connected."""
SILENT: Final = Patience(look=PROMPT_LOOK_SECONDS, over=0.0, gone=0.0)
"""Applications that ended their half while the target was being connected, and have sent nothing."""


class Relaying(Protocol):
    """What has a socket and a stream, and moves bytes between the two; see relay.Relay for the calls."""

    @property
    def sock(self) -> socket.socket: ...
    @property
    def unwatched(self) -> bool: ...
    def progress(self) -> int: ...
    def abort(self, reason: StreamReason) -> None: ...


@dataclass(slots=True)
class _Still:
    """A relay in which nothing has moved since the moment `since`. `ended`: the other end has sent its FIN."""

    progress: int
    since: float
    ended: bool = False


class Relays[R: Relaying]:
    """`idle_timeout` in seconds; 0: none."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, patience: Patience, *, idle_timeout: float = 0.0
    ) -> None:
        self._loop = loop
        self._patience = patience
        self.take_idle_timeout(idle_timeout)
        self._relays: set[R] = set()
        self._still: dict[R, _Still] = {}
        self._new: set[R] = set()
        """Those that no look has come to yet."""
        self._looks = False
        self._number = 0

    def take_idle_timeout(self, seconds: float) -> None:
        """From the next look on."""
        self._idle = seconds or inf
        self._seconds = min(self._patience.look, self._idle)

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._relays))

    def add(self, relay: R) -> None:
        self._relays.add(relay)
        self._new.add(relay)
        if not self._looks:
            self._looks = True
            self._loop.call_later(self._seconds, self._look)

    def discard(self, relay: R) -> None:
        if relay in self._relays:
            self._relays.remove(relay)
            self._new.discard(relay)
            self._still.pop(relay, None)

    # --- the look --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._relays:
            self._number += 1
            self._look_on(iter(self), self._idle < inf or self._number % LOOKS_AT_ALL == 0)
        else:
            self._looks = False

    def _look_on(self, rest: Iterator[R], at_all: bool) -> None:
        now, looked = self._loop.time(), 0
        for relay in islice(rest, RELAYS_A_TURN):
            looked += 1
            if relay in self._new:
                self._new.discard(relay)
                with suppress(OSError):
                    keep_alive(relay.sock)
            if (at_all or relay.unwatched) and relay in self._relays:
                try:
                    self.look_at(relay, now)
                except Exception as error:  # noqa: BLE001  the look at the others goes on
                    report_fault("keeps a relay from being looked at", error)
                    self.discard(relay)
        if looked == RELAYS_A_TURN:
            self._loop.call_soon(self._look_on, rest, at_all)
        else:
            self._loop.call_later(self._seconds, self._look)

    def look_at(self, relay: R, now: float) -> None:
        """End `relay` if it has to end."""
        end, unwatched = look_at(relay.sock), relay.unwatched
        still, progress = self._still.get(relay), relay.progress()
        if end is FarEnd.SILENT:
            relay.abort(StreamReason.TIMED_OUT)
        elif not unwatched and self._idle == inf:
            # The events of the socket tell the rest.
            if still is not None and not still.ended:
                del self._still[relay]
        else:
            if still is None:
                still = self._still[relay] = _Still(progress, now)
            still.ended |= end is FarEnd.ENDED
            if still.progress != progress:
                still.progress, still.since = progress, now
                return
            waited = now - still.since
            if waited >= self._idle:
                relay.abort(StreamReason.TIMED_OUT)
            elif unwatched and waited >= self._seconds_for(relay, still, end):
                relay.abort(StreamReason.CONNECTION_RESET)

    def _seconds_for(self, relay: R, still: _Still, end: FarEnd) -> float:
        """How long a relay may wait that hears of nothing and in which nothing moves."""
        patience = self._patience
        if end is FarEnd.OVER:
            return patience.gone if still.ended else patience.over
        if patience.gone == inf or (end is FarEnd.THERE and not has_unread(relay.sock)):
            return inf
        holder = holder_of(relay.sock)
        if holder is Holder.NOBODY:
            return patience.gone
        return patience.ended if still.ended and holder is Holder.UNKNOWN else inf
