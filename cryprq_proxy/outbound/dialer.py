"""From a destination to a connected socket: resolve, ask the policy, race the addresses.

    connect_target   a literal by `connect_literal`, a name by `dial` in a task of its own
    connect_literal  one literal, by callback: no task, no future
    dial             all of it for a task: resolves if need be, then races
    AddressRace      the addresses of a name, each by `connect_literal` (address_race.py)
    Resolver         names to literals (resolving/)

The policy judges each literal right before the connection to that literal starts. Nothing here connects to a
name, so a name that resolves differently a moment later (DNS rebinding) does no harm.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

from ..address import Destination
from ..base.descriptors import EXHAUSTED, SHORTAGE
from ..base.sockets import CONNECT_TIMEOUT, bound_unsent, prepare
from ..base.tasks import spawn
from ..errors import StreamReason, StreamRefused
from ..session.turns import TurnBudget
from .address_race import (
    ATTEMPT_DELAY,
    ENOUGH_ROOM,
    OVER,
    AddressRace,
    Cancellable,
    ConnectLiteral,
    Done,
    SocketRoom,
)
from .resolving.resolver import Resolver
from .socket_group import SocketLoop

_log = logging.getLogger(__name__)

_ONLY_LINUX: Final[frozenset[int]] = frozenset({errno.ENONET} if sys.platform == "linux" else ())

CONNECT_REASONS: Final[dict[int, StreamReason]] = {
    errno.ECONNREFUSED: StreamReason.CONNECTION_REFUSED,
    errno.ECONNRESET: StreamReason.CONNECTION_REFUSED,
    errno.ETIMEDOUT: StreamReason.TIMED_OUT,
    errno.EHOSTUNREACH: StreamReason.HOST_UNREACHABLE,
    errno.EHOSTDOWN: StreamReason.HOST_UNREACHABLE,
    errno.ENOPROTOOPT: StreamReason.HOST_UNREACHABLE,  # Linux: ICMP says that the host has no TCP
    errno.ENETUNREACH: StreamReason.NETWORK_UNREACHABLE,
    errno.ENETDOWN: StreamReason.NETWORK_UNREACHABLE,
    **dict.fromkeys(_ONLY_LINUX, StreamReason.NETWORK_UNREACHABLE),
    errno.EADDRNOTAVAIL: StreamReason.NETWORK_UNREACHABLE,  # no source address, as without IPv6
    errno.EAFNOSUPPORT: StreamReason.NETWORK_UNREACHABLE,
    errno.EACCES: StreamReason.NOT_ALLOWED,  # the exit's own packet filter
    errno.EPERM: StreamReason.NOT_ALLOWED,
    **dict.fromkeys(EXHAUSTED, StreamReason.EXHAUSTED),
}

_CONNECTED: Final = frozenset({0, errno.EISCONN})
_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})


class TargetPolicy(Protocol):
    """Decides about targets: EgressPolicy at the exit, DirectPolicy for direct connections."""

    def check_name(self, name: str, port: int) -> bool:
        """Whether to resolve the name."""

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        """Whether to connect to this literal, which `name` resolved to."""


def connect_target(
    loop: SocketLoop,
    destination: Destination,
    policy: TargetPolicy,
    resolver: Resolver,
    done: Done,
    timeout: float,
    turn: TurnBudget,
    room: SocketRoom = ENOUGH_ROOM,
) -> Cancellable:
    """Connect to `destination` within `timeout` seconds, if the policy allows it. `turn` and `room` are for several
    addresses.

    A literal, the usual case, takes no task. `done` may be called before this returns.
    """
    host, port = destination
    if not destination.is_ip:
        return spawn(_dial_for(loop, destination, policy, resolver, done, timeout, turn, room), "dial")
    if policy.check_address(host, port):
        return connect_literal(loop, host, port, done, timeout)
    done(None, StreamReason.NOT_ALLOWED)
    return OVER


async def _dial_for(
    loop: SocketLoop,
    destination: Destination,
    policy: TargetPolicy,
    resolver: Resolver,
    done: Done,
    timeout: float,
    turn: TurnBudget,
    room: SocketRoom,
) -> None:
    try:
        sock = await dial(
            destination, policy, resolver=resolver, timeout=timeout, turn=turn, room=room, sockets=loop
        )
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
        return OVER
    try:
        prepare(sock, ip)
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
    return OVER


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


async def dial(
    destination: Destination,
    policy: TargetPolicy,
    *,
    resolver: Resolver,
    turn: TurnBudget,
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
        turn,
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
