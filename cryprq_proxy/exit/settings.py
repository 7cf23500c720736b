"""What an exit is told: its addresses, its bounds, and its second entrance for WebSocket."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from msgspec import Struct

from ..address import Destination
from ..carriers.lane.settings import LaneSettings
from ..session.session import SessionLimits


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """`certificate` and `key` are PEM files, None where a reverse proxy ends TLS. `forwarded`: connections from this
    machine are those of a reverse proxy, and the last entry of their X-Forwarded-For is the client's address."""

    listen: Destination
    path: str
    certificate: Path | None = None
    key: Path | None = None
    forwarded: bool = False


class ExitBounds(Struct, frozen=True, kw_only=True):
    """Counts, and times in seconds; `handshakes_per_minute` is per IPv4 address or IPv6 /64."""

    retained_total: int
    """Bytes that the sessions of all peers may keep until they are acknowledged."""
    window_total: int
    """Bytes by which the windows of all peers' streams may exceed the first one."""
    opens_per_second: int
    """New streams of one peer."""
    handshakes_in_flight: int
    """That have got the second flight and no verdict."""
    handshakes_per_minute: int
    """The same number is for each peer on the list: so many are not counted for its address."""
    sessions_per_peer: int
    """With a carrier."""
    detached_sessions_per_peer: int
    """Without one, for `resume_seconds` at most."""
    resume_seconds: float
    connect_timeout: float
    idle_timeout: float = 0.0
    """Of a stream to a target in which nothing moves; 0: none."""


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """`limits` bound one session, `bounds` what there is of them. `lane`: of the
    datagram lane; None: no lane. `websocket`: the second entrance, if there is one. `proxies`: the TCP proxies, whose
    connections begin with a PROXY header. `advertise`: where clients reach this exit, and no other one of its
    identity."""

    listen: tuple[Destination, ...]
    limits: SessionLimits
    bounds: ExitBounds
    websocket: WebSocketSettings | None = None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    psk: bytes | None = field(default=None, repr=False)
    lane: LaneSettings | None = None
    advertise: Destination | None = None
