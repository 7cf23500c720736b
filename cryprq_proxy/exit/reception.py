"""Visitors of the exit: the stages that each one passes between its first byte and its carrier.

    strangers, upgrading -> first flight is there -> a token of its prefix -> it opens
                         -> waiting -> its turn -> signature, second flight
                         -> answered -> third flight, signatures -> `admit` (exit.py)

Silence costs nothing that is scarce: strangers wait in a lobby. A visitor with a valid first flight waits for the
thread that signs, where each network has its turn, and then in a second lobby, until its third flight comes. What has
begun is finished first: while steps wait for the thread, no further handshake begins.

Each prefix has tokens. To open a first flight costs one, and so does a connection that ends without one. A peer on the
list gets its token back, as long as the tokens of the peer itself last, and nobody else does. Without a token no first
flight of the prefix is opened: it waits for one among the strangers, if an earlier handshake may still give one back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Self

from ..base.clock import clock
from ..base.tasks import spawn
from ..carriers.admission import frame_flight, read_flight
from ..carriers.pipe import Pipe
from ..crypto.exit_handshake import ExitHandshake
from ..crypto.identity import PeerId
from ..crypto.payloads import Pattern, version_mismatch
from ..errors import HandshakeError, PeerError
from .fair_queue import FairQueue
from .handshake_thread import HandshakeThread
from .limits import TokenBucket, TokenBuckets
from .lobby import Guest, Lobby
from .prefixes import Prefixes, prefixes_of
from .unopened_flights import UnopenedFlights

_log = logging.getLogger(__name__)

MAX_STRANGERS: Final = 4096
MAX_UPGRADING: Final = 512
"""A connection in TLS or HTTP takes much more memory than a silent one."""
MAX_WAITING: Final = 1024
SWEEP_SECONDS: Final = 0.25
"""How often it is looked whose time is over."""
VERSIONS_LOGGED: Final = 5
VERSION_SECONDS: Final = 60.0
"""Log lines about clients of another version at once, and seconds until the next one."""
SWEPT: Final = 64
"""Visitors of one room that are dismissed in one turn of the loop, and first flights that are opened in it because time
has brought tokens."""

type Admit = Callable[[Pipe, str, ExitHandshake, bytes], Awaitable[PeerId | None]]
"""Judges a client by its third flight, which is read already if it is signed; the text is its IP address. Returns its
peer id if that is on the list. Raises PeerError."""


@dataclass(frozen=True, slots=True)
class RoomSizes:
    """How many visitors each room holds; all together take at most half of the process's descriptors."""

    strangers: int
    upgrading: int
    waiting: int
    answered: int

    @classmethod
    def of(cls, descriptors: int, handshakes: int) -> Self:
        """For so many descriptors and handshakes in flight."""
        return cls(
            max(1, min(MAX_STRANGERS, descriptors // 4)),
            max(1, min(MAX_UPGRADING, descriptors // 16)),
            max(1, min(MAX_WAITING, descriptors // 16)),
            max(1, min(handshakes, descriptors // 8)),
        )


class Visitor(Guest):
    """A connection without a verdict. `end` closes it, whatever its stage; `room` is where it waits. `charged`: whether
    it has cost a token of its prefix."""

    __slots__ = ("charged", "end", "handshake", "host", "over", "pipe", "room")

    pipe: Pipe
    handshake: ExitHandshake
    over: asyncio.Future[None]
    """Done when it has its carrier or its end. These three: since its first flight opened."""

    def __init__(self, host: str, prefixes: Prefixes, end: Callable[[], object]) -> None:
        super().__init__(prefixes)
        self.host = host
        self.end = end
        self.room: Lobby[Visitor] | FairQueue[Visitor] | None = None
        self.charged = False


class Reception:
    """`arrive`, `offer`, `opened`, and `close` in the end. `per_minute`: tokens of a prefix, and of a peer."""

    def __init__(
        self,
        thread: HandshakeThread,
        sizes: RoomSizes,
        per_minute: float,
        admit: Admit,
        chance: random.Random,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._admit = admit
        self._prefixes = TokenBuckets(per_minute / 60, per_minute)
        self._peers = TokenBuckets(per_minute / 60, per_minute)
        self.strangers: Lobby[Visitor] = Lobby(sizes.strangers, chance)
        self.upgrading: Lobby[Visitor] = Lobby(sizes.upgrading, chance)
        """In TLS or HTTP, before there is a WebSocket."""
        self._unopened: UnopenedFlights[Visitor] = UnopenedFlights()
        """Of visitors in these two."""
        self.waiting: FairQueue[Visitor] = FairQueue(sizes.waiting)
        self.answered: Lobby[Visitor] = Lobby(sizes.answered, chance)
        self._rooms = (self.strangers, self.upgrading, self.waiting, self.answered)
        self._versions_logged = TokenBucket(1 / VERSION_SECONDS, VERSIONS_LOGGED, clock())
        self._timer: asyncio.TimerHandle | None = None
        self.failed: Counter[str] = Counter()
        """Connections that ended before their peer proved who it is, by cause."""

    def take_limits(self, sizes: RoomSizes, per_minute: float) -> None:
        """For who comes from now on. Of the rooms, only that of handshakes in flight has another size."""
        self.answered.take_capacity(sizes.answered)
        for buckets in (self._prefixes, self._peers):
            buckets.take_rate(per_minute / 60, per_minute)

    def refuses(self, prefixes: Prefixes) -> bool:
        """Whether a connection from there is pointless now: there is no token, and none may come back."""
        narrowest = prefixes[0]
        may = self._prefixes.would_allow(narrowest, clock())
        return not may and not self.answered.holds(narrowest) and not self.waiting.holds(prefixes)

    # --- strangers ---

    def arrive(self, visitor: Visitor, room: Lobby[Visitor]) -> None:
        """Let `visitor` wait in `room` until `opened` or `lost`. When it loses its place or its time is over,
        its `end` is called, perhaps at once."""
        visitor.room = room
        victim = room.enter(visitor, clock())
        if victim is not None:
            self._dismiss(victim, "too_many", room)
        self._watch_time()

    def move(self, visitor: Visitor, room: Lobby[Visitor]) -> None:
        """A waiting stranger goes on to another lobby, where its time begins anew."""
        if visitor.room is not None:
            visitor.room.leave(visitor)
        self.arrive(visitor, room)

    def rename(self, visitor: Visitor, host: str) -> None:
        """The address that counts for a waiting stranger has become known."""
        visitor.host = host
        if isinstance(visitor.room, Lobby):
            visitor.room.rename(visitor, prefixes_of(host))

    def lost(self, visitor: Visitor, why: str = "the other side ended the connection") -> None:
        """A stranger ended without a valid first flight; harmless if it is no longer one."""
        room = visitor.room
        if room is not None:
            _log.debug("a handshake from %s failed: %s", visitor.host, why)
            room.leave(visitor)
            self._dismiss(visitor, "no_handshake", room)

    def refuse(self, visitor: Visitor) -> None:
        """End a waiting stranger from where no more handshakes may begin now; it costs no token."""
        if visitor.room is not None:
            visitor.room.leave(visitor)
            visitor.room = None
            self.failed["too_many"] += 1
            visitor.end()

    def offer(self, visitor: Visitor, opening: Callable[[], None]) -> None:
        """A waiting stranger has sent its first flight: call `opening` for a token of its prefix, now or later, which
        ends with `opened` or `lost`. Harmless if the stranger has lost its place."""
        if visitor.room is None:
            return
        narrowest = visitor.prefixes[0]
        if narrowest not in self._unopened and self._prefixes.allow(narrowest, clock()):
            visitor.charged = True
            opening()
        elif self.refuses(visitor.prefixes):
            self.refuse(visitor)
        else:
            self._unopened.add(visitor, opening)

    def _open_some(self, prefix: bytes, limit: int) -> int:
        """Open first flights that wait for tokens of `prefix`, one for each; at most `limit`. Returns how many."""
        for number in range(limit):
            if prefix not in self._unopened or not self._prefixes.allow(prefix, clock()):
                return number
            visitor, opening = self._unopened.pop(prefix)
            visitor.charged = True
            opening()
        return limit

    def opened(self, visitor: Visitor, pipe: Pipe, handshake: ExitHandshake) -> asyncio.Future[None]:
        """A stranger's first flight is valid. The future is done when it has its carrier or its end."""
        if visitor.room is not None:
            visitor.room.leave(visitor)
        visitor.pipe, visitor.handshake = pipe, handshake
        visitor.over = self._loop.create_future()
        visitor.end = partial(_close, visitor)
        visitor.room = self.waiting
        victim = self.waiting.enter(visitor, clock())
        if victim is not None:
            self._dismiss(victim, "too_many", self.waiting)
        self._serve()
        self._watch_time()
        return visitor.over

    # --- handshakes ---

    def _serve(self, *_: object) -> None:
        """Begin handshakes while the thread is free."""
        while self._thread.free and (visitor := self.waiting.next()) is not None:
            if visitor.pipe.ended:
                self._dismiss(visitor, "no_handshake", self.waiting)
            else:
                self._begin(visitor)

    def _begin(self, visitor: Visitor) -> None:
        signed = self._thread.submit(visitor.handshake.write_second)
        signed.add_done_callback(self._serve)
        visitor.room = self.answered
        victim = self.answered.enter(visitor, clock())
        if victim is not visitor:
            task = spawn(self._finish(visitor, signed), "handshake")
            task.add_done_callback(partial(self._finished, visitor))
            visitor.end = task.cancel
        if victim is not None:
            self._dismiss(victim, "too_many", self.answered)

    async def _finish(self, visitor: Visitor, signed: asyncio.Future[bytes]) -> None:
        """A handshake from its second flight to the verdict."""
        pipe, handshake = visitor.pipe, visitor.handshake
        try:
            await pipe.write(frame_flight(await signed))
            if handshake.outdated is not None:
                self._refuse_version(visitor.host, handshake.outdated)
            third = await read_flight(pipe, handshake.third_size)
            if handshake.pattern is Pattern.SIGNED:
                await self._thread.submit(handshake.read_third, third)
            listed = await self._admit(pipe, visitor.host, handshake, third)
        except PeerError as error:
            _log.debug("a handshake from %s failed: %s", visitor.host, error)
            self.failed["no_handshake"] += 1
            pipe.close()
            return
        if listed is not None and self._peers.allow(listed.raw, clock()):
            self._prefixes.give_back(visitor.prefixes[0])
            self._open_some(visitor.prefixes[0], 1)

    def _refuse_version(self, host: str, version: int) -> NoReturn:
        """The client speaks another version, and has been told which this exit speaks. Raises HandshakeError."""
        text = version_mismatch(version, "client", "exit")
        if self._versions_logged.allow(clock()):
            _log.warning("a client at %s was refused: %s", host, text)
        raise HandshakeError(text)

    def _finished(self, visitor: Visitor, task: asyncio.Task[None]) -> None:
        if visitor.room is not None:
            visitor.room.leave(visitor)
            visitor.room = None
        if task.cancelled() or task.exception() is not None:
            _close(visitor)
        elif not visitor.over.done():
            visitor.over.set_result(None)
        self._serve()

    # --- time and end ---

    def _dismiss(self, visitor: Visitor, cause: str, room: Lobby[Visitor] | FairQueue[Visitor]) -> None:
        """End a visitor that has left its `room`."""
        visitor.room = None
        self.failed[cause] += 1
        waited = self._unopened.discard(visitor)
        if (room is self.strangers or room is self.upgrading) and not waited and not visitor.charged:
            for narrowest in visitor.prefixes[:1]:
                self._prefixes.allow(narrowest, clock())
        visitor.end()

    def _watch_time(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Dismiss the visitors whose time is over; sweep again as long as there are visitors."""
        self._timer = None
        now, pause = clock(), SWEEP_SECONDS
        try:
            for room in self._rooms:
                expired = room.expired(now, SWEPT)
                for visitor in expired:
                    _log.debug("a handshake from %s was not finished in time", visitor.host)
                    self._dismiss(visitor, "too_slow", room)
                if len(expired) == SWEPT:
                    pause = 0.0
            left = SWEPT
            for prefix in self._unopened.prefixes():
                left -= self._open_some(prefix, left)
            if not left:
                pause = 0.0
            self._serve()
        finally:
            if any(self._rooms):
                self._timer = self._loop.call_later(pause, self._sweep)

    def close(self) -> None:
        """End all visitors."""
        for room in self._rooms:
            for visitor in room:
                self._unopened.discard(visitor)
                room.leave(visitor)
                visitor.room = None
                visitor.end()


def _close(visitor: Visitor) -> None:
    """End a visitor whose first flight has opened."""
    visitor.pipe.close()
    if not visitor.over.done():
        visitor.over.set_result(None)
