"""The configuration: TOML decoded strictly into typed, frozen structs, with flags laid over it.

The structs below are the whole list of keys: a field's annotation holds its type, its range and the words for the
person who got it wrong. Files and flags pass through the same annotations, so that both mean the same and fail alike:

    client.toml: listen: expected a string like "127.0.0.1:1080", got an integer
    --wait-for-link: expected a number of seconds from 0 to 3600, got -1

Relative paths in a file start at the directory of that file. Secrets are kept in types that do not show them, or in
files that are read when they are needed. The examples in configs/ list every key with its default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Struct

from ..address import Destination, parse_host_port
from ..base.log import LogFormat, LogLevel
from ..base.paths import config_dir, default_control_socket, default_identity, exposed, read_text
from ..carriers.dial.dial import Upstream
from ..crypto.identity import PeerId
from ..errors import ConfigError
from ..exit.egress import EgressPolicy
from ..fronts.credentials import Credentials
from ..rules.syntax import Action, Rule
from ..session.rotation import RotationLimits
from ..session.session import SessionLimits
from .authorized import read_peers
from .decode import Text, choice, count, decode_file, decode_flags, path, seconds, size, switch
from .exits import PEER, ExitChoice, ExitTable, exit_choices
from .rules import ACTION, DEFAULT, RuleTable, check_exits, to_rules
from .tun import ExitTun, Lane, Tun
from .urls import PeerUrl, parse_listen_or_off, parse_public, parse_upstream, parse_web_path

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PSK_SIZE: Final = 32
TOKEN_SIZE: Final = 16
_HEX: Final = re.compile("[0-9A-Fa-f]+")

type ProviderChoice = Literal["auto", "cryptography", "pure"]


def _is_loopback(address: Destination) -> bool:
    if address.is_ip:
        return ip_address(address.host).is_loopback
    return address.host == "localhost"


# --- the keys ---

DEFAULT_ADMIN: Final = Destination("127.0.0.1", 1081)
_ADMIN: Final = Text(parse_listen_or_off, 'a string like "127.0.0.1:1081", or "off"')
_METRICS: Final = Text(parse_listen_or_off, 'a string like "127.0.0.1:9108", or "off"')
_LISTEN: Final = Text(parse_host_port, 'a string like "127.0.0.1:1080"')
_UPSTREAM: Final = Text(parse_upstream, 'a string like "socks5://127.0.0.1:9050"')
_USER: Final = Text(Credentials.parse, 'a string like "NAME:PASSWORD"')
_EXIT_LISTEN: Final = Text(parse_host_port, 'a string like "0.0.0.0:4433", or a list of such', many=True)
_PEERS: Final = Text(PeerId.parse, "a list of peer ids", many=True)
_RULES: Final = Text(str, 'a list of strings like "10.0.0.0/8", "*.example.com" or ":25"', many=True)


class Rotation(Struct, frozen=True, kw_only=True):
    """When the link's keys are changed: whichever comes first. More than the default is not safe."""

    interval: Annotated[float, seconds(0.1, 86_400)] = 300.0
    records: Annotated[int, count(16, 1 << 22)] = 1 << 22
    bytes: Annotated[int, size(64 * KIB, 1 << 38)] = 1 << 38

    def limits(self) -> RotationLimits:
        return RotationLimits(interval=self.interval, records=self.records, bytes=self.bytes)


class ClientLimits(Struct, frozen=True, kw_only=True):
    """`retained_bytes` and the round-trip time bound the throughput; the pool is shared by all streams."""

    retained_bytes: Annotated[int, size(64 * KIB, GIB)] = 16 * MIB
    window_pool: Annotated[int, size(64 * KIB, GIB)] = 32 * MIB
    max_connections: Annotated[int, count(1, 1_000_000)] = 16_384


class ClientConfig(Struct, frozen=True, kw_only=True):
    """Everything that `cryprq-proxy` runs with. Raises ConfigError for combinations that are not safe."""

    peer: Annotated[tuple[PeerUrl, ...], PEER] = ()
    identity: Annotated[Path, path()] = msgspec.field(default_factory=default_identity)
    psk_file: Annotated[Path | None, path()] = None
    listen: Annotated[Destination, _LISTEN] = Destination("127.0.0.1", 1080)
    user: Annotated[Credentials | None, _USER] = None
    user_file: Annotated[Path | None, path()] = None
    upstream: Annotated[Upstream | None, _UPSTREAM] = None
    ca: Annotated[Path | None, path()] = None
    exit: tuple[ExitTable, ...] = ()
    failback: Annotated[float, seconds(0, 86_400)] = 30.0
    wait_for_link: Annotated[float, seconds(0, 3600)] = 10.0
    negotiation_timeout: Annotated[float, seconds(0.1, 600)] = 10.0
    via: Annotated[bool, switch()] = False
    admin: Annotated[Destination | None, _ADMIN] = DEFAULT_ADMIN
    default: Annotated[Action, ACTION] = DEFAULT
    rule: tuple[RuleTable, ...] = ()
    keepalive: Annotated[float, seconds(0.1, 600)] = 10.0
    provider: Annotated[ProviderChoice, choice("auto", "cryptography", "pure")] = "auto"
    control_socket: Annotated[Path, path()] = msgspec.field(
        default_factory=lambda: default_control_socket("client")
    )
    log_level: Annotated[LogLevel, choice("debug", "info", "warning", "error")] = "info"
    log_format: Annotated[LogFormat, choice("text", "json")] = "text"
    rotation: Rotation = Rotation()
    limits: ClientLimits = ClientLimits()
    lane: Lane = Lane()
    tun: Tun = Tun()

    def __post_init__(self) -> None:
        if self.user is not None and self.user_file is not None:
            raise ConfigError("user and user_file exclude each other; keep one of them")
        if self.user is None and self.user_file is None and not _is_loopback(self.listen):
            raise ConfigError(
                f"listening on {self.listen} lets other machines in: add --user NAME:PASSWORD or user_file, "
                "or listen on 127.0.0.1"
            )
        check_exits(self.rules(), self.default, {exit.name for exit in self.exits()})

    def rules(self) -> tuple[Rule, ...]:
        """The rules, of which the lists are still to be read (rules/engine.py)."""
        return to_rules(self.rule)

    def exits(self) -> tuple[ExitChoice, ...]:
        """All exits, at least one. Raises ConfigError where two cannot be told apart."""
        return exit_choices(self.peer, self.exit, self.psk_file, self.ca)

    def credentials(self) -> Credentials | None:
        """What applications must present, read from `user_file` if that is set. Raises ConfigError."""
        return self.user if self.user_file is None else read_user(self.user_file)

    def session_limits(self) -> SessionLimits:
        return SessionLimits(
            retained=self.limits.retained_bytes,
            window_pool=self.limits.window_pool,
            streams=self.limits.max_connections,
            keepalive=self.keepalive,
            rotation=self.rotation.limits(),
        )


class Egress(Struct, frozen=True, kw_only=True):
    """Where clients may go; exit/egress.py gives the meaning of the lists and of their entries."""

    allow: Annotated[tuple[str, ...], _RULES] = ()
    deny: Annotated[tuple[str, ...], _RULES] = ()
    only: Annotated[tuple[str, ...], _RULES] = ()

    def __post_init__(self) -> None:
        try:
            EgressPolicy(allow=self.allow, deny=self.deny, only=self.only)
        except ConfigError as error:
            raise ConfigError(f"egress.{error}") from None


class ExitLimits(Struct, frozen=True, kw_only=True):
    """Rates and times are per second or in seconds; `handshakes_per_minute` is per IPv4 address or IPv6 /64."""

    streams_per_peer: Annotated[int, count(1, 1_000_000)] = 16_384
    opens_per_second: Annotated[int, count(1, 1_000_000)] = 10_000
    handshakes_in_flight: Annotated[int, count(1, 65_536)] = 64
    handshakes_per_minute: Annotated[int, count(1, 1_000_000)] = 60
    sessions_per_peer: Annotated[int, count(1, 65_536)] = 8
    detached_sessions_per_peer: Annotated[int, count(0, 65_536)] = 2
    resume_seconds: Annotated[float, seconds(0, 86_400)] = 300.0
    retained_bytes: Annotated[int, size(64 * KIB, GIB)] = 16 * MIB
    retained_total: Annotated[int, size(64 * KIB, 1024 * GIB)] = 256 * MIB
    window_pool: Annotated[int, size(64 * KIB, GIB)] = 32 * MIB
    connect_timeout: Annotated[float, seconds(0.1, 600)] = 10.0


class WebSocket(Struct, frozen=True, kw_only=True):
    """The exit's second entrance, for networks where only HTTP passes."""

    listen: Annotated[Destination | None, _ADMIN] = None
    path: Annotated[str, Text(parse_web_path, 'a string like "/cryprq"')] = "/cryprq"
    certificate: Annotated[Path | None, path()] = None
    key: Annotated[Path | None, path()] = None
    forwarded: Annotated[bool, switch()] = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("websocket.certificate and websocket.key belong together; give both or neither")


class ExitConfig(Struct, frozen=True, kw_only=True):
    """Everything that `cryprq-proxy exit` runs with."""

    identity: Annotated[Path, path()] = msgspec.field(default_factory=default_identity)
    listen: Annotated[tuple[Destination, ...], _EXIT_LISTEN] = (Destination("0.0.0.0", 4433),)
    allow: Annotated[tuple[PeerId, ...], _PEERS] = ()
    authorized: Annotated[Path | None, path()] = None
    psk_file: Annotated[Path | None, path()] = None
    allow_private: Annotated[bool, switch()] = False
    public: Annotated[str, Text(parse_public, 'a string like "exit.example:4433"')] = ""
    metrics: Annotated[Destination | None, _METRICS] = None
    metrics_token_file: Annotated[Path | None, path()] = None
    shutdown_grace: Annotated[float, seconds(0, 3600)] = 30.0
    keepalive: Annotated[float, seconds(0.1, 600)] = 10.0
    provider: Annotated[ProviderChoice, choice("auto", "cryptography", "pure")] = "auto"
    control_socket: Annotated[Path, path()] = msgspec.field(
        default_factory=lambda: default_control_socket("exit")
    )
    log_level: Annotated[LogLevel, choice("debug", "info", "warning", "error")] = "info"
    log_format: Annotated[LogFormat, choice("text", "json")] = "text"
    egress: Egress = Egress()
    rotation: Rotation = Rotation()
    limits: ExitLimits = ExitLimits()
    lane: Lane = Lane()
    tun: ExitTun = ExitTun()
    websocket: WebSocket = WebSocket()

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("listen is empty: name at least one address")
        if self.metrics is not None and not _is_loopback(self.metrics) and self.metrics_token_file is None:
            raise ConfigError(
                f"metrics on {self.metrics} could be read by other machines: name a metrics_token_file, or listen on "
                "127.0.0.1"
            )

    def metrics_token(self) -> str | None:
        """What Prometheus must present. Raises ConfigError if the file cannot be read or holds too little."""
        return None if self.metrics_token_file is None else read_token(self.metrics_token_file)

    def authorized_peers(self) -> frozenset[PeerId]:
        """Who is let in: `allow` and what stands in the file `authorized` at this moment. Raises ConfigError."""
        return frozenset(self.named_peers())

    def named_peers(self) -> dict[PeerId, str]:
        """The same, each with its name in that file; empty for those who have none. Raises ConfigError."""
        listed = () if self.authorized is None else read_peers(self.authorized)
        return dict.fromkeys(self.allow, "") | {peer.peer_id: peer.name for peer in listed}

    def session_limits(self) -> SessionLimits:
        return SessionLimits(
            retained=self.limits.retained_bytes,
            window_pool=self.limits.window_pool,
            streams=self.limits.streams_per_peer,
            keepalive=self.keepalive,
            rotation=self.rotation.limits(),
        )


# --- reading ---


def load_client(file: Path | None = None, flags: Mapping[str, object] | None = None) -> ClientConfig:
    """The client's configuration from `file`, or from client.toml in the default directory if that exists.

    `flags` maps fields of ClientConfig to what the command line said, in the form that a file would hold; None and ()
    count as not given. Raises ConfigError.
    """
    return client_from(*_read(file, "client.toml"), flags or {})


def load_exit(file: Path | None = None, flags: Mapping[str, object] | None = None) -> ExitConfig:
    """As `load_client`, from exit.toml. Where `authorized` is not set, a file of that name beside it counts too."""
    text, source, _ = _read(file, "exit.toml")
    config = exit_from(text, source, flags or {})
    beside = source.with_name("authorized")
    if config.authorized is None and os.path.exists(beside):
        return msgspec.structs.replace(config, authorized=beside)
    return config


def authorized_file(file: Path | None, config: ExitConfig) -> Path:
    """Where peers that come with an invite are written down: `authorized`, else the file of that name beside `file`,
    which `load_exit` was given. It may not exist yet; the next `load_exit` finds it."""
    source = config_dir() / "exit.toml" if file is None else file
    return source.with_name("authorized") if config.authorized is None else config.authorized


def client_from(text: str, source: Path, private: bool, flags: Mapping[str, object]) -> ClientConfig:
    """Decode the text of a client.toml. `private` says that only its owner can read it, so that it may hold secrets.

    `source` is its name, for errors and for relative paths. Raises ConfigError.
    """
    values = decode_file(ClientConfig, text, source)
    upstream: Upstream | None = values.get("upstream")
    if not private and ("user" in values or (upstream is not None and upstream.password is not None)):
        raise exposed(source, "the configuration")
    given = _decoded(ClientConfig, Tun, values, flags)
    if "user" in given:
        values.pop("user_file", None)
    if "peer" in given:
        values.pop("exit", None)
    values |= given
    if not values.get("peer") and not values.get("exit"):
        raise ConfigError(
            f'no exit is named: give --peer cryprq://PEERID@HOST:PORT, write peer = "cryprq://..." into {source}, '
            "or run cryprq-proxy join with an invite"
        )
    return _build(ClientConfig, values, text, source)


def exit_from(text: str, source: Path, flags: Mapping[str, object]) -> ExitConfig:
    """Decode the text of an exit.toml. Raises ConfigError."""
    values = decode_file(ExitConfig, text, source)
    values |= _decoded(ExitConfig, ExitTun, values, flags)
    return _build(ExitConfig, values, text, source)


def _decoded(
    kind: type[Struct], tun: type[Struct], values: Mapping[str, Any], flags: Mapping[str, object]
) -> dict[str, Any]:
    """The values that flags give; those called "tun.KEY" belong to that section, over what the file has there."""
    inner = {key[4:]: value for key, value in flags.items() if key.startswith("tun.")}
    given = decode_flags(kind, {key: value for key, value in flags.items() if not key.startswith("tun.")})
    section = decode_flags(tun, inner)
    if section:
        given["tun"] = msgspec.structs.replace(values.get("tun", tun()), **section)
    return given


def _read(file: Path | None, name: str) -> tuple[str, Path, bool]:
    """Text, path and privacy of the configuration; no text if it is the default one and does not exist."""
    source = config_dir() / name if file is None else file
    if file is None and not os.path.exists(source):
        return "", source, True
    text, private = read_text(source, "the configuration")
    return text, source, private


def _build[T: Struct](kind: type[T], values: Mapping[str, Any], text: str, source: Path) -> T:
    try:
        return kind(**values)
    except ConfigError as error:
        raise (ConfigError(f"{source}: {error}") if text else error) from None


def read_user(file: Path) -> Credentials:
    """NAME:PASSWORD from the first line of a file that only its owner can read. Raises ConfigError."""
    text, _ = read_text(file, "the user file", private=True)
    try:
        return Credentials.parse(text.removesuffix("\n").removesuffix("\r"))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read_token(file: Path) -> str:
    """A token, 16 or more printable characters, from the first line of a file that only its owner can read. Raises
    ConfigError."""
    text, _ = read_text(file, "the token file", private=True)
    token = text.split("\n", 1)[0].strip()
    if len(token) >= TOKEN_SIZE and token.isascii() and token.isprintable() and " " not in token:
        return token
    raise ConfigError(
        f"{file}: expected at least {TOKEN_SIZE} characters, as made by: openssl rand -hex {TOKEN_SIZE}"
    )


def read_psk(file: Path) -> bytes:
    """The pre-shared key, 32 bytes, from 64 hexadecimal digits in a file that only its owner can read.

    Raises ConfigError.
    """
    text, _ = read_text(file, "the key file", private=True)
    digits = text.strip()
    if len(digits) == 2 * PSK_SIZE and _HEX.fullmatch(digits):
        return bytes.fromhex(digits)
    raise ConfigError(
        f"{file}: expected {2 * PSK_SIZE} hexadecimal digits, as made by: openssl rand -hex {PSK_SIZE}"
    )
