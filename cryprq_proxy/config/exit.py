"""The exit's configuration, exit.toml: its keys with their defaults. client.py explains the form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Struct

from ..address import Destination
from ..base.file_access import exists
from ..base.paths import config_dir, default_control_socket
from ..base.sockets import CONNECT_TIMEOUT
from ..crypto.identity import PeerId
from ..errors import ConfigError
from ..exit.egress_policy import EgressPolicy
from ..exit.settings import ExitBounds
from ..rules.ranges import IPNetwork
from ..session.session import RESUME_SECONDS, SessionLimits
from .authorized import WHAT as LIST
from .authorized import PeersFile, RepeatedPeer, read_peers, repeated_peers
from .both_roles import GIB, KIB, MIB, LaneTable, LinkLimits, RoleConfig, is_loopback
from .decode import Text, build, count, decode_file, path, read_source, seconds, size, switch, with_flags
from .faults import refuse
from .secret_files import read_psk, read_token
from .tun import ExitTunTable, parse_prefix
from .urls import parse_advertise, parse_exit_listen, parse_listen_or_off, parse_public, parse_web_path

_METRICS: Final = Text(parse_listen_or_off, 'a string like "127.0.0.1:9108", a port, or "off"', integers=True)
_WEBSOCKET: Final = Text(
    parse_listen_or_off, 'a string like "127.0.0.1:8443", a port, or "off"', integers=True
)
_ADVERTISE: Final = Text(parse_advertise, 'a string like "203.0.113.7:4433"')
_LISTEN: Final = Text(
    parse_exit_listen, 'a string like "0.0.0.0:4433", a port, or a list of such', many=True, integers=True
)
_PROXIES: Final = Text(parse_prefix, 'an address or prefix like "10.0.0.0/8", or a list of such', many=True)
_PEERS: Final = Text(PeerId.parse, "a list of peer ids", many=True)
_RULES: Final = Text(str, 'a list of strings like "10.0.0.0/8", "*.example.com" or ":25"', many=True)

MAX_PROXIES: Final = 256
"""Each is compared with the address of each new connection."""


class ListedPeers(NamedTuple):
    """The peers of an exit, each with its name in the file `authorized`, or ""."""

    allowed: dict[PeerId, str]
    revoked: dict[PeerId, str]
    """They are listed, and not let in."""
    repeated: tuple[RepeatedPeer, ...]


class ExitLaneTable(LaneTable, frozen=True, kw_only=True):
    """The exit's side of it."""

    enabled: Annotated[bool, switch()] = True


class EgressTable(Struct, frozen=True, kw_only=True):
    """The egress policy; exit/egress_policy.py explains the lists and their entries."""

    allow: Annotated[tuple[str, ...], _RULES] = ()
    deny: Annotated[tuple[str, ...], _RULES] = ()
    only: Annotated[tuple[str, ...], _RULES] = ()

    def __post_init__(self) -> None:
        try:
            EgressPolicy(allow=self.allow, deny=self.deny, only=self.only)
        except ConfigError as error:
            raise ConfigError(f"egress.{error}") from None


class ExitLimitsTable(LinkLimits, frozen=True, kw_only=True):
    """Rates and times are per second or in seconds; `handshakes_per_minute` is per IPv4 address or IPv6 /64."""

    streams_per_peer: Annotated[int, count(1, 1_000_000)] = 16_384
    opens_per_second: Annotated[int, count(1, 1_000_000)] = 10_000
    handshakes_in_flight: Annotated[int, count(1, 65_536)] = 1024
    handshakes_per_minute: Annotated[int, count(1, 1_000_000)] = 60
    sessions_per_peer: Annotated[int, count(1, 65_536)] = 8
    detached_sessions_per_peer: Annotated[int, count(0, 65_536)] = 2
    resume_seconds: Annotated[float, seconds(0, 86_400)] = RESUME_SECONDS
    retained_total: Annotated[int, size(64 * KIB, 1024 * GIB)] = 256 * MIB
    window_total: Annotated[int, size(64 * KIB, 1024 * GIB)] = 512 * MIB
    connect_timeout: Annotated[float, seconds(0.1, 600)] = CONNECT_TIMEOUT


class WebSocketTable(Struct, frozen=True, kw_only=True):
    """The exit's second listener, for clients in networks that pass only HTTP."""

    listen: Annotated[Destination | None, _WEBSOCKET] = None
    path: Annotated[str, Text(parse_web_path, 'a string like "/cryprq"')] = "/cryprq"
    certificate: Annotated[Path | None, path()] = None
    key: Annotated[Path | None, path()] = None
    forwarded: Annotated[bool, switch()] = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("websocket.certificate and websocket.key belong together; give both or neither")


class ExitConfig(RoleConfig, frozen=True, kw_only=True):
    """All settings of the exit."""

    listen: Annotated[tuple[Destination, ...], _LISTEN] = (Destination("0.0.0.0", 4433),)
    proxy_protocol: Annotated[tuple[IPNetwork, ...], _PROXIES] = ()
    allow: Annotated[tuple[PeerId, ...], _PEERS] = ()
    authorized: Annotated[Path | None, path()] = None
    allow_private: Annotated[bool, switch()] = False
    public: Annotated[str, Text(parse_public, 'a string like "exit.example:4433"')] = ""
    advertise: Annotated[Destination | None, _ADVERTISE] = None
    metrics: Annotated[Destination | None, _METRICS] = None
    metrics_token_file: Annotated[Path | None, path()] = None
    shutdown_grace: Annotated[float, seconds(0, 3600)] = 30.0
    control_socket: Annotated[Path, path()] = msgspec.field(
        default_factory=lambda: default_control_socket("exit")
    )
    egress: EgressTable = EgressTable()
    limits: ExitLimitsTable = ExitLimitsTable()
    tun: ExitTunTable = ExitTunTable()
    lane: ExitLaneTable = ExitLaneTable()
    websocket: WebSocketTable = WebSocketTable()

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """What is wrong with the values together."""
        if not self.listen:
            yield "listen is empty: name at least one address"
        if len(self.proxy_protocol) > MAX_PROXIES:
            yield f"proxy_protocol has {len(self.proxy_protocol)} entries, more than {MAX_PROXIES}"
        if self.metrics is not None and not is_loopback(self.metrics) and self.metrics_token_file is None:
            yield (
                f"metrics on {self.metrics} could be read by other machines: name a metrics_token_file, or listen on "
                "127.0.0.1"
            )

    def psk(self) -> bytes | None:
        """The pre-shared key, if there is one. Raises ConfigError if its file cannot be read."""
        return None if self.psk_file is None else read_psk(self.psk_file)

    def metrics_token(self) -> str | None:
        """The token that Prometheus must send. Raises ConfigError if the file is unreadable or the token too short."""
        return None if self.metrics_token_file is None else read_token(self.metrics_token_file)

    def peers(self, file: Path | None = None) -> ListedPeers:
        """The peers of `allow` and of the file `authorized`, read now. `file` is where that list would be if there is
        none (`authorized_file`): the peers that were revoked there stay out without it too. Raises ConfigError."""
        by_line = {} if self.authorized is None else read_peers(self.authorized)
        names = dict.fromkeys(self.allow, "") | {peer.peer_id: peer.name for peer in by_line.values()}
        place = self.authorized or file
        revoked = () if place is None else PeersFile(place).revoked()
        out = {peer: names.pop(peer) for peer, _ in revoked if peer in names}
        return ListedPeers(names, out, repeated_peers(by_line))

    def session_limits(self) -> SessionLimits:
        return self.limits_of_session(self.limits, self.limits.streams_per_peer)

    def bounds(self) -> ExitBounds:
        return msgspec.convert(self.limits, ExitBounds, from_attributes=True)


def load_exit(file: Path | None = None, flags: Mapping[str, object] | None = None) -> ExitConfig:
    """As `load_client`, from exit.toml. If `authorized` is not set, the file of that name beside it counts."""
    text, source, _ = read_source(file, "exit.toml")
    config = exit_from(text, source, flags or {})
    beside = source.with_name("authorized")
    if config.authorized is None and exists(beside, LIST):
        return msgspec.structs.replace(config, authorized=beside)
    return config


def authorized_file(file: Path | None, config: ExitConfig) -> Path:
    """The file to which an invite adds a peer: `authorized`, else the file of that name in the directory of `file`.

    `file` is the argument of `load_exit`. The result may not exist yet; the next `load_exit` finds it."""
    source = config_dir() / "exit.toml" if file is None else file
    return source.with_name("authorized") if config.authorized is None else config.authorized


def exit_from(text: str, source: Path, flags: Mapping[str, object]) -> ExitConfig:
    """Decode the text of an exit.toml. Raises ConfigError."""
    values = decode_file(ExitConfig, text, source)
    values |= with_flags(ExitConfig, ExitTunTable, values, flags)
    return build(ExitConfig, values, text, source)
