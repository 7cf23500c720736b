"""What a session does with each kind of frame that names no stream: a table by kind, and one for those that are about
the path on which they come.

For those that name one see stream_receiver.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from ..address import Destination
from ..errors import CloseReason, PeerError
from . import wire
from .acknowledgements import AcknowledgedSession, receive_abandon, receive_ack
from .datagrams import BasePacketLink
from .path import SessionPath
from .stream_receiver import StreamReceiver
from .wire import LaneUse


class ActingSession(AcknowledgedSession, Protocol):
    """What the actions need of their session besides."""

    @property
    def dialler(self) -> bool: ...
    @property
    def packet_link(self) -> BasePacketLink: ...
    @property
    def receiver(self) -> StreamReceiver: ...
    def receive_prefer(self, serial: int, number: int, /) -> None: ...
    def receive_close(self, reason: CloseReason, /) -> None: ...
    def set_lane_use(self, use: LaneUse, /) -> None: ...


def _rotate(kind: int) -> Callable[[ActingSession, Any], None]:
    def act(session: ActingSession, value: tuple[int, int, bytes]) -> None:
        session.rotation.receive(kind, *value, session.now)

    return act


def _misplace(kind: int) -> Callable[[ActingSession, Any], None]:
    def act(session: ActingSession, value: Any) -> None:
        reason = CloseReason.REKEY if kind == wire.SWITCH else CloseReason.PROTOCOL
        raise PeerError(reason, f"the peer sent a {wire.Kind(kind).name} frame where none may be")

    return act


def _check_from_exit(session: ActingSession) -> None:
    if not session.dialler:
        raise PeerError(CloseReason.PROTOCOL, "the client sent a frame that only an exit may send")


def _receive_goaway(session: ActingSession) -> None:
    _check_from_exit(session)
    session.events.goaway()


def _receive_advertise(session: ActingSession, address: Destination) -> None:
    _check_from_exit(session)
    session.events.advertised(address)


def _receive_lane(session: ActingSession, epoch: int, index: int, use: LaneUse) -> None:
    """A client that announces its lane of an epoch has the secrets of that, as one that sends SWITCH has."""
    session.packet_link.announced(epoch, index)
    if not session.dialler:
        session.rotation.peer_switched(epoch, session.now)
        session.set_lane_use(use)


PATH_ACTIONS: Final[dict[int, Callable[[ActingSession, SessionPath, Any], None]]] = {
    wire.ACK: lambda session, path, value: receive_ack(session, path, *value),
    wire.PING: lambda _, path, token: path.ping_received(token),
    wire.PONG: lambda session, path, token: path.pong_received(token, session.now),
}
ACTIONS: Final[dict[int, Callable[[ActingSession, Any], None]]] = {
    wire.STREAMS: lambda session, count: session.receiver.receive_streams(count),
    wire.REKEY: _rotate(wire.REKEY),
    wire.REKEY_ANSWER: _rotate(wire.REKEY_ANSWER),
    wire.REKEY_PLEASE: lambda session, epoch: session.rotation.asked(epoch, session.now),
    wire.LANE: lambda session, value: _receive_lane(session, *value),
    wire.NETWORK: lambda session, value: session.packet_link.network_received(*value),
    wire.TAKEN: lambda session, value: session.packet_link.taken_received(*value),
    wire.GOAWAY: lambda session, _: _receive_goaway(session),
    wire.PREFER: lambda session, value: session.receive_prefer(*value),
    wire.ABANDON: lambda session, value: receive_abandon(session, *value),
    wire.SWITCH: _misplace(wire.SWITCH),
    wire.PACKET: lambda session, value: session.packet_link.packet_received(*value),
    wire.ADVERTISE: lambda session, address: _receive_advertise(session, address),
    wire.CLOSE: lambda session, reason: session.receive_close(reason),
    wire.ACCEPT: _misplace(wire.ACCEPT),
    wire.NO_SESSION: _misplace(wire.NO_SESSION),
    wire.JOINED: _misplace(wire.JOINED),
}
