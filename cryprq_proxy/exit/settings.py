"""What an exit is told: its addresses, its bounds, and its second entrance for WebSocket."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..address import Destination
from ..carriers.lane.batch import UdpOffload
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


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """Counts, and times in seconds; `handshakes_per_minute` is per IPv4 address or IPv6 /64. `lane`: what the kernel's
    batching can do for the datagram lane; None: no lane. `websocket`: the second entrance, if there is one."""

    listen: tuple[Destination, ...]
    websocket: WebSocketSettings | None = None
    psk: bytes | None = field(default=None, repr=False)
    lane: UdpOffload | None = None
    limits: SessionLimits = field(default_factory=SessionLimits)
    retained_total: int = 256 << 20
    opens_per_second: float = 10_000
    handshakes_in_flight: int = 64
    handshakes_per_minute: float = 60
    sessions_per_peer: int = 8
    detached_sessions_per_peer: int = 2
    resume_seconds: float = 300.0
    connect_timeout: float = 10.0
