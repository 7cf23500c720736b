"""The keys that client.toml and exit.toml have in common, with their defaults."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Struct

from ..address import Destination
from ..base.log import LogFormat, LogLevel
from ..base.paths import default_identity
from ..carriers.lane.offload_check import check_offload
from ..carriers.lane.settings import LaneSettings, MakeControl
from ..recovery.bbr import Bbr
from ..recovery.cubic import Cubic
from ..session.key_limits import RotationLimits
from ..session.session import SessionLimits
from .decode import choice, count, path, seconds, size

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

type ProviderChoice = Literal["auto", "cryptography", "pure"]
type AutoOrOff = Literal["auto", "off"]
type CongestionChoice = Literal["bbr", "cubic"]

_CONTROLS: Final[dict[CongestionChoice, MakeControl]] = {"bbr": Bbr, "cubic": Cubic}


class RotationTable(Struct, frozen=True, kw_only=True):
    """When the link's keys rotate: at the first of these limits. More than the default is not safe."""

    interval: Annotated[float, seconds(0.1, 86_400)] = 300.0
    records: Annotated[int, count(16, 1 << 22)] = 1 << 22
    bytes: Annotated[int, size(64 * KIB, 1 << 38)] = 1 << 38

    def limits(self) -> RotationLimits:
        return RotationLimits(interval=self.interval, records=self.records, bytes=self.bytes)


class LaneTable(Struct, frozen=True, kw_only=True):
    """The datagram lane beside the link."""

    offload: Annotated[AutoOrOff, choice("auto", "off")] = "auto"
    congestion: Annotated[CongestionChoice, choice("bbr", "cubic")] = "bbr"

    def settings(self) -> LaneSettings:
        """See check_offload: takes a few milliseconds."""
        return LaneSettings(check_offload(self.offload), _CONTROLS[self.congestion])


class LinkLimits(Struct, frozen=True, kw_only=True):
    """`retained_bytes`, and half of `window_pool`, bound what one stream moves in a round trip. All streams share the
    pool. A connection in which nothing moves for `idle_timeout` ends; 0: none does."""

    retained_bytes: Annotated[int, size(64 * KIB, GIB)] = 40 * MIB
    window_pool: Annotated[int, size(64 * KIB, GIB)] = 64 * MIB
    idle_timeout: Annotated[float, seconds(0, 7 * 86_400)] = 0.0


class RoleConfig(Struct, frozen=True, kw_only=True):
    """The settings of both roles."""

    identity: Annotated[Path, path()] = msgspec.field(default_factory=default_identity)
    psk_file: Annotated[Path | None, path()] = None
    keepalive: Annotated[float, seconds(0.1, 600)] = 10.0
    provider: Annotated[ProviderChoice, choice("auto", "cryptography", "pure")] = "auto"
    log_level: Annotated[LogLevel, choice("debug", "info", "warning", "error")] = "info"
    log_format: Annotated[LogFormat, choice("text", "json")] = "text"
    rotation: RotationTable = RotationTable()
    lane: LaneTable = LaneTable()

    def limits_of_session(self, limits: LinkLimits, streams: int) -> SessionLimits:
        """The limits of one session with at most `streams` streams."""
        return SessionLimits(
            retained=limits.retained_bytes,
            window_pool=limits.window_pool,
            streams=streams,
            keepalive=self.keepalive,
            rotation=self.rotation.limits(),
        )


def is_loopback(address: Destination) -> bool:
    """Whether only this machine can connect to `address`."""
    if address.is_ip:
        return ip_address(address.host).is_loopback
    return address.host == "localhost"
