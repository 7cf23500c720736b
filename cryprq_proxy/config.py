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
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct

from .address import AddressError, Destination, parse_host_port
from .crypto.identity import PeerId
from .decode import Text, choice, count, decode_file, decode_flags, path, seconds, size, switch
from .errors import ConfigError
from .fronts.credentials import Credentials
from .log import LogFormat, LogLevel
from .places import config_dir, default_control_socket, default_identity, exposed, read_text
from .roles.egress import EgressPolicy
from .session.rotation import RotationLimits
from .session.session import SessionLimits
from .system_config import ExitTun, Lane, Tun

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PSK_SIZE: Final = 32
_HEX: Final = re.compile("[0-9A-Fa-f]+")

type ProviderChoice = Literal["auto", "cryptography", "pure"]


# --- values that a person writes as a string ---


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """An exit: who it must prove to be, and where it listens."""

    peer_id: PeerId
    address: Destination


@dataclass(frozen=True, slots=True)
class Upstream:
    """A SOCKS5 proxy to dial the exit through; user and password (RFC 1929) are both there or both None."""

    address: Destination
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_peer_url(text: str) -> PeerAddress:
    """Read "cryprq://PEERID@HOST:PORT". Raises ConfigError."""
    scheme, separator, rest = text.partition("://")
    peer, at, where = rest.removesuffix("/").partition("@")
    if scheme.lower() != "cryprq" or not separator or not at:
        raise ConfigError(f"expected cryprq://PEERID@HOST:PORT, got {text[:100]!a}")
    try:
        return PeerAddress(PeerId.parse(peer), _endpoint(where))
    except AddressError as error:
        raise ConfigError(str(error)) from None


def parse_upstream(text: str) -> Upstream:
    """Read "socks5://[USER:PASSWORD@]HOST:PORT", both parts percent-encoded where needed. Raises ConfigError.

    Names are always left to the proxy, so "socks5h" means the same.
    """
    scheme, separator, rest = text.partition("://")
    login, at, where = rest.removesuffix("/").rpartition("@")
    user, colon, password = login.partition(":")
    try:
        if scheme.lower() not in ("socks5", "socks5h") or not separator or (at and not colon):
            raise AddressError("no address of a SOCKS5 proxy")
        address = _endpoint(where)
    except AddressError:
        # Nothing of the text is shown: where a part is missing, another part may be the password.
        raise ConfigError("expected socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT") from None
    return Upstream(address, _login_part(user), _login_part(password)) if at else Upstream(address)


def _login_part(quoted: str) -> str:
    try:
        part = unquote_to_bytes(quoted)
        if 1 <= len(part) <= 255:
            return part.decode("utf-8")
    except UnicodeError:
        pass
    raise ConfigError("user and password of a SOCKS5 proxy have 1 to 255 bytes of UTF-8 each (RFC 1929)")


def _endpoint(text: str) -> Destination:
    address = parse_host_port(text)
    if address.port == 0:
        raise AddressError(f"expected a port from 1 to 65535 in {text!a}, got 0")
    return address


def _is_loopback(address: Destination) -> bool:
    if address.is_ip:
        return ip_address(address.host).is_loopback
    return address.host == "localhost"


# --- the keys ---

_PEER: Final = Text(parse_peer_url, 'a string like "cryprq://PEERID@exit.example:4433"')
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

    peer: Annotated[PeerAddress, _PEER]
    identity: Annotated[Path, path()] = msgspec.field(default_factory=default_identity)
    psk_file: Annotated[Path | None, path()] = None
    listen: Annotated[Destination, _LISTEN] = Destination("127.0.0.1", 1080)
    user: Annotated[Credentials | None, _USER] = None
    user_file: Annotated[Path | None, path()] = None
    upstream: Annotated[Upstream | None, _UPSTREAM] = None
    wait_for_link: Annotated[float, seconds(0, 3600)] = 10.0
    negotiation_timeout: Annotated[float, seconds(0.1, 600)] = 10.0
    via: Annotated[bool, switch()] = False
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
    """Where clients may go; roles/egress.py gives the meaning of the lists and of their entries."""

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


class ExitConfig(Struct, frozen=True, kw_only=True):
    """Everything that `cryprq-proxy exit` runs with."""

    identity: Annotated[Path, path()] = msgspec.field(default_factory=default_identity)
    listen: Annotated[tuple[Destination, ...], _EXIT_LISTEN] = (Destination("0.0.0.0", 4433),)
    allow: Annotated[tuple[PeerId, ...], _PEERS] = ()
    authorized: Annotated[Path | None, path()] = None
    psk_file: Annotated[Path | None, path()] = None
    allow_private: Annotated[bool, switch()] = False
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

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("listen is empty: name at least one address")

    def authorised_peers(self) -> frozenset[PeerId]:
        """Who is let in: `allow` and what stands in the file `authorized` at this moment. Raises ConfigError."""
        listed = frozenset[PeerId]() if self.authorized is None else read_authorized(self.authorized)
        return listed.union(self.allow)

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
    values |= given
    if "peer" not in values:
        raise ConfigError(
            f'no exit is named: give --peer cryprq://PEERID@HOST:PORT, or write peer = "cryprq://..." into {source}'
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


def read_authorized(file: Path) -> frozenset[PeerId]:
    """The peer ids of a file: one a line, then perhaps a space and a remark; # begins a comment. Raises ConfigError."""
    text, _ = read_text(file, "the list of authorized peers")
    peers = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if words:
            try:
                peers.add(PeerId.parse(words[0]))
            except ConfigError as error:
                raise ConfigError(f"{file}: line {number}: {error}") from None
    return frozenset(peers)
