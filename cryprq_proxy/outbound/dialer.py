"""From a destination to a connected socket: resolve, ask the policy, race the addresses.

    connect_target   a literal by `connect_literal`, a name by `dial` in a task of its own
    connect_literal  one literal, by callback: no task, no future
    dial             all of it for a task: resolves if need be, then races
    AddressRace      happy eyeballs (RFC 8305) over literals, each by `connect_literal`
    Resolver         names to literals (resolving/)

The policy judges each literal right before the connection to that literal starts. Nothing here connects to a
name, so a name that resolves differently a moment later (DNS rebinding) does no harm.

The resolver asks for both families at once and answers when it has both, or a moment after the first one. RFC 8305's
resolution delay (section 3) is therefore not needed here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Final, Protocol

from ..address import Destination
from ..base.descriptors import EXHAUSTED, SHORTAGE
from ..base.faults import report_fault
from ..base.sockets import CONNECT_TIMEOUT, bound_unsent, keep_alive, prepare
from ..base.tasks import spawn
from ..errors import StreamReason, StreamRefused
from .resolving.resolver import Resolver
from .socket_group import SocketLoop, Timer

_log = logging.getLogger(__name__)

ATTEMPT_DELAY: Final = 0.25
"""Seconds between the starts of two attempts: RFC 8305 section 5."""
MAX_ADDRESSES: Final = 32
"""Addresses of one name that are tried at most."""
MAX_RUNNING: Final = 8
"""Attempts for one name at the same time."""
ATTEMPT_PATIENCE: Final = MAX_RUNNING * ATTEMPT_DELAY
"""Seconds that an attempt has before another one may take its place; then its SYN was sent twice."""

CONNECT_REASONS: Final[dict[int, StreamReason]] = {
    errno.ECONNREFUSED: StreamReason.CONNECTION_REFUSED,
    errno.ECONNRESET: StreamReason.CONNECTION_REFUSED,
    errno.ETIMEDOUT: StreamReason.TIMED_OUT,
    errno.EHOSTUNREACH: StreamReason.HOST_UNREACHABLE,
    errno.EHOSTDOWN: StreamReason.HOST_UNREACHABLE,
    errno.ENOPROTOOPT: StreamReason.HOST_UNREACHABLE,  # Linux: ICMP says that the host has no TCP
    errno.ENETUNREACH: StreamReason.NETWORK_UNREACHABLE,
    errno.ENETDOWN: StreamReason.NETWORK_UNREACHABLE,
    errno.ENONET: StreamReason.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: StreamReason.NETWORK_UNREACHABLE,  # no source address, as without IPv6
    errno.EAFNOSUPPORT: StreamReason.NETWORK_UNREACHABLE,
    errno.EACCES: StreamReason.NOT_ALLOWED,  # the exit's own packet filter
    errno.EPERM: StreamReason.NOT_ALLOWED,
    **dict.fromkeys(EXHAUSTED, StreamReason.EXHAUSTED),
}

_CONNECTED: Final = frozenset({0, errno.EISCONN})
_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})
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


class TargetPolicy(Protocol):
    """Decides about targets: EgressPolicy at the exit, DirectPolicy for direct connections."""

    def check_name(self, name: str, port: int) -> bool:
        """Whether to resolve the name."""

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        """Whether to connect to this literal, which `name` resolved to."""


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


class _Over:
    """An attempt that has ended."""

    __slots__ = ()

    def cancel(self) -> None:
        pass


_OVER: Final = _Over()


def connect_target(
    loop: SocketLoop,
    destination: Destination,
    policy: TargetPolicy,
    resolver: Resolver,
    done: Done,
    timeout: float,
    room: SocketRoom = ENOUGH_ROOM,
) -> Cancellable:
    """Connect to `destination` within `timeout` seconds, if the policy allows it. `room` is for several addresses.

    A literal, the usual case, takes no task. `done` may be called before this returns.
    """
    host, port = destination
    if not destination.is_ip:
        return spawn(_dial_for(loop, destination, policy, resolver, done, timeout, room), "dial")
    if policy.check_address(host, port):
        return connect_literal(loop, host, port, done, timeout)
    done(None, StreamReason.NOT_ALLOWED)
    return _OVER


async def _dial_for(
    loop: SocketLoop,
    destination: Destination,
    policy: TargetPolicy,
    resolver: Resolver,
    done: Done,
    timeout: float,
    room: SocketRoom,
) -> None:
    try:
        sock = await dial(destination, policy, resolver=resolver, timeout=timeout, room=room, sockets=loop)
    except StreamRefused as refusal:
        done(None, refusal.reason)
    except Exception:
        # A bug here must not leave the application waiting.
        done(None, StreamReason.GENERAL)
        raise
    else:
        done(sock, None)


def connect_literal(
    loop: SocketLoop, ip: str, port: int, done: Done, timeout: float = CONNECT_TIMEOUT, /
) -> Cancellable:
    """Connect to one IP literal within `timeout` seconds.

    The caller has asked `EgressPolicy.check_address` about `ip` and `port`, so `ip` is a literal: a name would be
    resolved here. `done` may be called before this returns, with a connection or with a refusal.
    """
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in EXHAUSTED:
            SHORTAGE.note(error)
        done(None, _reason(error.errno))
        return _OVER
    try:
        prepare(sock, ip)
        keep_alive(sock)
        bound_unsent(sock)
        code = sock.connect_ex((ip, port))
        if code == errno.EINPROGRESS:
            # Targets on this host are connected by now, but Linux says so only at a second call. The call takes
            # 4 us and saves 25 us in the selector.
            code = sock.connect_ex((ip, port))
    except OSError as error:
        code = error.errno or errno.EINVAL
    if code in _IN_PROGRESS:
        return _Connecting(loop, sock, done, timeout)
    if code in _CONNECTED:
        done(sock, None)
    else:
        sock.close()
        done(None, _reason(code))
    return _OVER


def _reason(code: int | None) -> StreamReason:
    return CONNECT_REASONS.get(code or 0, StreamReason.GENERAL)


class _Connecting:
    """A connection in progress: owns the socket until `done` or `cancel`."""

    __slots__ = ("_done", "_loop", "_sock", "_timer")

    def __init__(self, loop: SocketLoop, sock: socket.socket, done: Done, timeout: float) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._done = done
        loop.add_writer(sock.fileno(), self._writable)
        self._timer = loop.call_later(timeout, self._timed_out)

    def cancel(self) -> None:
        sock = self._release()
        if sock is not None:
            sock.close()

    def _writable(self) -> None:
        sock = self._release()
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._done(None, _reason(code))
        else:
            self._done(sock, None)

    def _timed_out(self) -> None:
        sock = self._release()
        if sock is not None:
            sock.close()
            self._done(None, StreamReason.TIMED_OUT)

    def _release(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_writer(sock.fileno())
            self._timer.cancel()
        return sock


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
    """

    __slots__ = (
        "_allowed", "_connect", "_counted", "_deadline", "_delay", "_done", "_loop", "_number", "_port",
        "_reasons", "_room", "_running", "_started", "_timer", "_waiting",
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
        connect: ConnectLiteral = connect_literal,
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
        while self._waiting:
            left = self._deadline - self._loop.time()
            if left <= 0:
                self._reasons.add(StreamReason.TIMED_OUT)
                self._waiting.clear()
                break
            ip = self._waiting[0]
            if self._allowed(ip):
                if not self._running or self._has_room():
                    self._start(self._waiting.popleft(), left)
                return
            self._waiting.popleft()
            self._reasons.add(StreamReason.NOT_ALLOWED)
        if not self._running:
            self._done(None, next((r for r in _TELLING if r in self._reasons), StreamReason.GENERAL))

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
        self._running[number] = _OVER  # in case it ends before `connect` returns
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


async def dial(
    destination: Destination,
    policy: TargetPolicy,
    *,
    resolver: Resolver,
    timeout: float = CONNECT_TIMEOUT,
    attempt_delay: float = ATTEMPT_DELAY,
    connect: ConnectLiteral = connect_literal,
    room: SocketRoom = ENOUGH_ROOM,
    sockets: SocketLoop | None = None,
) -> socket.socket:
    """A TCP connection to `destination`: connected, non-blocking, without Nagle's delay.

    Raises `StreamRefused`: NOT_ALLOWED if the policy forbids the name or each of its addresses, the error of
    the resolver (NAME_TIMED_OUT also if it takes all the time), or the most telling reason of the addresses. Cancelling
    leaves no socket behind. `connect` takes the place of `connect_literal`, and `sockets` that of the loop.
    """
    loop = asyncio.get_running_loop()
    host, port = destination
    deadline = loop.time() + timeout
    name = None
    addresses: Sequence[str] = (host,)
    if not destination.is_ip:
        name = host
        if not policy.check_name(name, port):
            raise StreamRefused(StreamReason.NOT_ALLOWED)
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await resolver.resolve(name)
        except TimeoutError:
            raise StreamRefused(StreamReason.NAME_TIMED_OUT) from None
    outcome: asyncio.Future[socket.socket] = loop.create_future()
    race = AddressRace(
        sockets or loop,
        addresses,
        port,
        lambda ip: policy.check_address(ip, port, name),
        partial(_settle, outcome),
        deadline - loop.time(),
        attempt_delay,
        connect,
        room,
    )
    try:
        return await outcome
    except asyncio.CancelledError:
        race.cancel()
        # The future may already hold the connected socket when the cancellation comes.
        if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
            outcome.result().close()
        raise


def _settle(
    outcome: asyncio.Future[socket.socket], sock: socket.socket | None, reason: StreamReason | None
) -> None:
    if outcome.done():  # cancelled, and the task has not run since
        if sock is not None:
            sock.close()
    elif sock is not None:
        outcome.set_result(sock)
    else:
        outcome.set_exception(StreamRefused(reason or StreamReason.GENERAL))
