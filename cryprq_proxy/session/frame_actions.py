"""What a session does with each kind of frame that names no stream: a table by kind.

For those that name one see stream_table.py.
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


class ActingSession(AcknowledgedSession, Protocol):
    """What the actions need of their session besides."""

    @property
    def dialler(self) -> bool: ...
    @property
    def packet_link(self) -> BasePacketLink: ...
    def receive_prefer(self, serial: int, number: int, /) -> None: ...
    def receive_close(self, reason: CloseReason, /) -> None: ...


def _rotate(kind: int) -> Callable[[ActingSession, SessionPath, Any], None]:
    def act(session: ActingSession, path: SessionPath, value: Any) -> None:
        epoch, message = (value, b"") if kind == wire.REKEY_PLEASE else value
        session.rotation.receive(kind, epoch, message, session.now)

    return act


def _misplace(kind: int) -> Callable[[ActingSession, SessionPath, Any], None]:
    def act(session: ActingSession, path: SessionPath, value: Any) -> None:
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


ACTIONS: Final[dict[int, Callable[[ActingSession, SessionPath, Any], None]]] = {
    wire.STREAMS: lambda session, _, count: session.table.receive_streams(count),
    wire.REKEY: _rotate(wire.REKEY),
    wire.REKEY_ANSWER: _rotate(wire.REKEY_ANSWER),
    wire.REKEY_PLEASE: _rotate(wire.REKEY_PLEASE),
    wire.LANE: lambda session, _, value: session.packet_link.announced(*value),
    wire.NETWORK: lambda session, _, value: session.packet_link.network_received(*value),
    wire.TAKEN: lambda session, _, value: session.packet_link.taken_received(*value),
    wire.GOAWAY: lambda session, _, __: _receive_goaway(session),
    wire.PREFER: lambda session, _, value: session.receive_prefer(*value),
    wire.ABANDON: lambda session, _, value: receive_abandon(session, *value),
    wire.ACK: lambda session, path, value: receive_ack(session, path, *value),
    wire.PING: lambda _, path, token: path.ping_received(token),
    wire.PONG: lambda session, path, token: path.pong_received(token, session.now),
    wire.SWITCH: _misplace(wire.SWITCH),
    wire.PACKET: lambda session, _, value: session.packet_link.packet_received(*value),
    wire.ADVERTISE: lambda session, _, address: _receive_advertise(session, address),
    wire.CLOSE: lambda session, _, reason: session.receive_close(reason),
    wire.ACCEPT: _misplace(wire.ACCEPT),
    wire.NO_SESSION: _misplace(wire.NO_SESSION),
    wire.JOINED: _misplace(wire.JOINED),
}
