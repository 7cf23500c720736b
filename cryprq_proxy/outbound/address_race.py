"""A race of the addresses of one name: happy eyeballs (RFC 8305). The first that answers is the connection.

    AddressRace      starts the attempts, `attempt_delay` seconds apart, and ends all but the winner
    ConnectLiteral   what connects one of them: `connect_literal` (dialer.py)
    Done             how an attempt, and the race, report their end
    SocketRoom       whether the race may hold one more socket

The resolver asks for both families at once and answers when it has both, or a moment after the first one. RFC 8305's
resolution delay (section 3) is therefore not needed here.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, zip_longest
from typing import Final, Protocol

from ..base.faults import report_fault
from ..errors import StreamReason
from ..session.turns import ATTEMPT_WORK, JUDGE_WORK, TurnBudget
from .socket_group import SocketLoop, Timer

ATTEMPT_DELAY: Final = 0.25
"""Seconds between the starts of two attempts: RFC 8305 section 5."""
MAX_ADDRESSES: Final = 32
"""Addresses of one name that are tried at most."""
MAX_RUNNING: Final = 8
"""Attempts for one name at the same time."""
ATTEMPT_PATIENCE: Final = MAX_RUNNING * ATTEMPT_DELAY
"""Seconds that an attempt has before another one may take its place; then its SYN was sent twice."""

_TELLING: Final = (
    StreamReason.CONNECTION_REFUSED,
    StreamReason.TIMED_OUT,
    StreamReason.HOST_UNREACHABLE,
    StreamReason.NETWORK_UNREACHABLE,
    StreamReason.EXHAUSTED,
    StreamReason.GENERAL,
    StreamReason.NOT_ALLOWED,
)
"""If all addresses fail, the first of these reasons that occurred is reported: it says most about the target. A missing
IPv6 at the exit must not hide a refusal on IPv4. NOT_ALLOWED is reported if there is no other."""


class Cancellable(Protocol):
    def cancel(self) -> object:
        """End it, close its sockets and never call `done`. Does nothing after `done` was called."""


class SocketRoom(Protocol):
    """Whether a race may hold one more socket beside its first one."""

    def more(self) -> bool:
        """Count one more, if there is room."""

    def less(self) -> None:
        """Give one of them back."""


class EnoughRoom:
    """A SocketRoom without a bound of its own."""

    def more(self) -> bool:
        return True

    def less(self) -> None:
        """Nothing is counted."""


ENOUGH_ROOM: Final = EnoughRoom()


type Done = Callable[[socket.socket | None, StreamReason | None], None]
"""Called once, with a reason or with a connected non-blocking socket, which the callee then owns."""


type ConnectLiteral = Callable[[SocketLoop, str, int, Done, float], Cancellable]
"""The signature of `connect_literal`; tests pass their own."""


class AttemptOver:
    """An attempt that has ended."""

    __slots__ = ()

    def cancel(self) -> None:
        pass


OVER: Final = AttemptOver()


def interleave(addresses: Iterable[str]) -> list[str]:
    """IPv6 and IPv4 alternating, IPv6 first, each in its order and once (RFC 8305 section 4)."""
    unique = dict.fromkeys(addresses)
    v6 = [ip for ip in unique if ":" in ip]
    v4 = [ip for ip in unique if ":" not in ip]
    return [ip for ip in chain.from_iterable(zip_longest(v6, v4)) if ip is not None]


class AddressRace:
    """Connects to the literal of `addresses` that answers first. The attempts start `attempt_delay` seconds apart.

    `allowed(ip)` is asked right before each attempt. `done` may be called before the race is made. At most MAX_RUNNING
    attempts run, and fewer where `room` has no more: then the next one takes the place of the oldest, once that one has
    had ATTEMPT_PATIENCE seconds.

    A peer chooses names whose addresses all fail at once, so each address is work of `turn`. When that is used up, the
    race goes on in a later turn of the loop.
    """

    __slots__ = (
        "_allowed", "_connect", "_counted", "_deadline", "_delay", "_done", "_late", "_loop", "_number", "_port",
        "_reasons", "_room", "_running", "_started", "_timer", "_turn", "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        loop: SocketLoop,
        addresses: Iterable[str],
        port: int,
        allowed: Callable[[str], bool],
        done: Done,
        timeout: float,
        attempt_delay: float,
        connect: ConnectLiteral,
        turn: TurnBudget,
        room: SocketRoom = ENOUGH_ROOM,
    ) -> None:
        self._loop = loop
        self._waiting = deque(interleave(addresses)[:MAX_ADDRESSES])
        self._port = port
        self._allowed = allowed
        self._done = done
        self._deadline = loop.time() + timeout
        self._delay = attempt_delay
        self._connect = connect
        self._number = 0
        self._turn = turn
        self._late = False
        """Whether it waits for a later turn."""
        self._room = room
        self._counted = 0
        """Sockets beside the first one."""
        self._running: dict[int, Cancellable] = {}
        """By number, the oldest first."""
        self._started: dict[int, float] = {}
        self._reasons: set[StreamReason] = set()
        self._timer: Timer | None = None
        self._advance()

    def _advance(self) -> None:
        """Start the next attempt, or end the race if there is none left and none runs."""
        try:
            self._try_next()
        except Exception as error:  # noqa: BLE001  whoever waits for this race would wait for ever
            report_fault("ends an attempt to connect", error)
            self.cancel()
            self._done(None, StreamReason.GENERAL)

    def _try_next(self) -> None:
        self._stop_timer()
        turn = self._turn
        while self._waiting:
            if self._late:
                return
            if turn.left <= 0:
                self._late = True
                turn.wait(self._go_on)
                return
            left = self._deadline - self._loop.time()
            if left <= 0:
                self._reasons.add(StreamReason.TIMED_OUT)
                self._waiting.clear()
                break
            ip = self._waiting[0]
            turn.spend(JUDGE_WORK)
            if self._allowed(ip):
                if not self._running or self._has_room():
                    turn.spend(ATTEMPT_WORK)
                    self._start(self._waiting.popleft(), left)
                return
            self._waiting.popleft()
            self._reasons.add(StreamReason.NOT_ALLOWED)
        if not self._running:
            self._done(None, next((r for r in _TELLING if r in self._reasons), StreamReason.GENERAL))

    def _go_on(self) -> None:
        self._late = False
        # The race may have ended meanwhile. Many of those cost something too.
        self._turn.spend(1)
        if self._waiting:
            self._advance()

    def _has_room(self) -> bool:
        """Make room for one attempt beside those that run; else come back when the oldest may be replaced."""
        if len(self._running) < MAX_RUNNING and self._room.more():
            self._counted += 1
            return True
        oldest = next(iter(self._running))
        left = self._started[oldest] + ATTEMPT_PATIENCE - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._advance)
            return False
        self._running.pop(oldest).cancel()
        self._reasons.add(StreamReason.TIMED_OUT)
        return True

    def _give_room_back(self) -> None:
        """Of the sockets that are not open any more."""
        while self._counted > max(len(self._running) - 1, 0):
            self._counted -= 1
            self._room.less()

    def cancel(self) -> None:
        self._stop_timer()
        self._waiting.clear()
        while self._running:
            self._running.popitem()[1].cancel()
        self._give_room_back()

    def _start(self, ip: str, left: float) -> None:
        number = self._number = self._number + 1
        self._running[number] = OVER  # in case it ends before `connect` returns
        self._started[number] = self._loop.time()
        attempt = self._connect(self._loop, ip, self._port, partial(self._ended, number), left)
        if number in self._running:
            self._running[number] = attempt
            if self._waiting:
                self._timer = self._loop.call_later(self._delay, self._advance)

    def _ended(self, number: int, sock: socket.socket | None, reason: StreamReason | None) -> None:
        del self._running[number]
        self._give_room_back()
        if sock is None:
            self._reasons.add(reason or StreamReason.GENERAL)
            self._advance()
        else:
            self.cancel()
            self._done(sock, None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
