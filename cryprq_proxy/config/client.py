"""The configuration: TOML decoded strictly into typed, frozen structs, with flags laid over it.

The structs here, in both_roles.py, exit.py and tun.py list all keys, and hold the only copy of their defaults. The
annotation of a field has its type, its range and the text of its errors. Files and flags use the same annotations, so
both mean the same and fail alike:

    client.toml: listen: expected a string like "127.0.0.1:1080", got an integer
    --wait-for-link: expected a number of seconds from 0 to 3600, got -1

Relative paths in a file start at the directory of that file. Secrets are in types that do not show them, or in
files that are read when needed. The examples in configs/ list every key with its default.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import msgspec

from ..address import Destination
from ..base.file_access import exists
from ..base.owners import foreign_home
from ..base.paths import callers_file, default_control_socket, exposed
from ..base.program import to_run
from ..carriers.dial.upstream import UpstreamProxy
from ..carriers.lane.settings import LaneSettings
from ..client.settings import ClientSettings, Connect, EndpointMemory
from ..errors import ConfigError
from ..fronts.credentials import Credentials
from ..rules.syntax import Rule, RuleAction
from ..session.session import SessionLimits
from ..session.wire import LaneUse
from .both_roles import LinkLimits, RoleConfig, is_loopback
from .decode import Text, build, choice, count, decode_file, path, read_source, seconds, switch, with_flags
from .exits import PEER, ExitChoice, ExitTable, exit_choices
from .faults import refuse, said_by
from .forwards import ForwardTable, check_forwards, parse_flags
from .rules import ACTION, DEFAULT, RuleTable, check_exits, to_rules
from .secret_files import read_user
from .tun import TunTable
from .urls import PeerUrl, parse_listen, parse_listen_or_off, parse_upstream

type CarrierChoice = Literal["auto", "tcp", "udp"]

NO_MEMORY: Final = EndpointMemory()
DEFAULT_LISTEN: Final = Destination("127.0.0.1", 1080)
DEFAULT_ADMIN: Final = Destination("127.0.0.1", 1081)
_ADMIN: Final = Text(parse_listen_or_off, 'a string like "127.0.0.1:1081", a port, or "off"', integers=True)
_LISTEN: Final = Text(parse_listen, 'a string like "127.0.0.1:1080", or a port', integers=True)
_UPSTREAM: Final = Text(parse_upstream, 'a string like "socks5://127.0.0.1:9050"')
_USER: Final = Text(Credentials.parse, 'a string like "NAME:PASSWORD"')


class ClientLimitsTable(LinkLimits, frozen=True, kw_only=True):
    """Limits of the client."""

    max_connections: Annotated[int, count(1, 1_000_000)] = 16_384


class ClientConfig(RoleConfig, frozen=True, kw_only=True):
    """All settings of the client. Raises ConfigError for unsafe combinations."""

    peer: Annotated[tuple[PeerUrl, ...], PEER] = ()
    listen: Annotated[Destination, _LISTEN] = DEFAULT_LISTEN
    user: Annotated[Credentials | None, _USER] = None
    user_file: Annotated[Path | None, path()] = None
    upstream: Annotated[UpstreamProxy | None, _UPSTREAM] = None
    ca: Annotated[Path | None, path()] = None
    exit: tuple[ExitTable, ...] = ()
    failback: Annotated[float, seconds(0, 86_400)] = 30.0
    wait_for_link: Annotated[float, seconds(0, 3600)] = 10.0
    carrier: Annotated[CarrierChoice, choice("auto", "tcp", "udp")] = "auto"
    connect: Annotated[Connect, choice("eager", "learned", "exact")] = "learned"
    negotiation_timeout: Annotated[float, seconds(0.1, 600)] = 10.0
    via: Annotated[bool, switch()] = False
    admin: Annotated[Destination | None, _ADMIN] = DEFAULT_ADMIN
    default: Annotated[RuleAction, ACTION] = DEFAULT
    rule: tuple[RuleTable, ...] = ()
    forward: tuple[ForwardTable, ...] = ()
    control_socket: Annotated[Path, path()] = msgspec.field(
        default_factory=lambda: default_control_socket("client")
    )
    limits: ClientLimitsTable = ClientLimitsTable()
    tun: TunTable = TunTable()

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """What is wrong with the values together."""
        if self.user is not None and self.user_file is not None:
            yield "user and user_file exclude each other; keep one of them"
        if self.user is None and self.user_file is None and not is_loopback(self.listen):
            yield (
                f"listening on {self.listen} lets other machines in: add --user NAME:PASSWORD or user_file, "
                "or listen on 127.0.0.1"
            )
        if self.carrier == "udp" and self.upstream is not None:
            yield 'carrier = "udp" needs UDP, which no upstream proxy passes on; leave out one of the two'
        yield from said_by(lambda: check_forwards(self.forward, (self.listen, self.admin)))
        try:
            names = {exit.name for exit in self.exits()}
        except ConfigError as error:
            yield str(error)
            return
        yield from said_by(lambda: check_exits(self.rules(), self.default, names))

    @property
    def has_lane(self) -> bool:
        """Whether the exit is asked for a datagram lane."""
        return self.carrier != "tcp" and self.upstream is None

    def rules(self) -> tuple[Rule, ...]:
        """The rules. rules/engine.py reads their lists later."""
        return to_rules(self.rule)

    def exits(self) -> tuple[ExitChoice, ...]:
        """All exits, at least one. Raises ConfigError if two have the same name or id."""
        return exit_choices(self.peer, self.exit, self.psk_file, self.ca)

    def credentials(self) -> Credentials | None:
        """The user and password for applications, from `user_file` if that is set. Raises ConfigError."""
        return self.user if self.user_file is None else read_user(self.user_file)

    def lane_settings(self) -> LaneSettings | None:
        """See LaneTable.settings: measures, so two results may differ; None without a lane."""
        return self.lane.settings() if self.has_lane else None

    def link_settings(
        self,
        exit: ExitChoice,
        lane: LaneSettings | None,
        memory: EndpointMemory = NO_MEMORY,
        mark: int = 0,
    ) -> ClientSettings:
        """Those of the link to one exit. Raises ConfigError if its pre-shared key cannot be read."""
        return ClientSettings(
            peer=exit.peer_id,
            name=exit.name,
            endpoints=exit.endpoints,
            psk=exit.psk(),
            upstream=self.upstream,
            wait_for_link=self.wait_for_link,
            connect=self.connect,
            lane=lane,
            lane_use=LaneUse[self.carrier.upper()],
            mark=mark,
            limits=self.session_limits(),
            # Of a single endpoint there is nothing to remember.
            memory=memory if len(exit.endpoints) > 1 else NO_MEMORY,
            ca=exit.ca,
        )

    def session_limits(self) -> SessionLimits:
        return self.limits_of_session(self.limits, self.limits.max_connections)


def load_client(
    file: Path | None = None, flags: Mapping[str, object] | None = None, *, kept: bool = False
) -> ClientConfig:
    """The client's configuration from `file`, or from client.toml in the default directory if that exists.

    `flags` maps fields of ClientConfig to values of the command line, in the form of the file; None and () count as not
    given. `kept`: the file was there before, so that it is what is missing. Raises ConfigError.
    """
    text, source, private = read_source(file, "client.toml")
    try:
        return client_from(text, source, private, flags or {})
    except ConfigError:
        if kept and not text.strip():
            what = "empty" if exists(source, "the configuration") else "gone"
            raise ConfigError(
                f"{source} is {what}; write it again, or run {to_run('join')} with an invite"
            ) from None
        raise


def client_from(text: str, source: Path, private: bool, flags: Mapping[str, object]) -> ClientConfig:
    """Decode the text of a client.toml. `private`: only its owner can read it, so it may hold secrets.

    `source` is its name, for errors and for relative paths. Raises ConfigError.
    """
    values = decode_file(ClientConfig, text, source)
    upstream: UpstreamProxy | None = values.get("upstream")
    if not private and ("user" in values or (upstream is not None and upstream.password is not None)):
        raise exposed(source, "the configuration")
    given = with_flags(ClientConfig, TunTable, values, {**flags, "forward": None})
    if forwards := flags.get("forward"):
        # As with ssh, besides those of the file.
        given["forward"] = (*values.get("forward", ()), *parse_flags(cast("tuple[str, ...]", forwards)))
    if "user" in given:
        values.pop("user_file", None)
    if "peer" in given:
        values.pop("exit", None)
    values |= given
    if not values.get("peer") and not values.get("exit"):
        if not text and (callers := callers_file("client.toml")) is not None:
            raise ConfigError(
                f"root has no configuration in {source.parent}; for yours, add: --config {shlex.quote(str(callers))}"
            )
        raise ConfigError(
            f'no exit is named: give --peer cryprq://PEERID@HOST:PORT, write peer = "cryprq://..." into {source}, '
            f"or run {to_run('join')} with an invite{'' if text else foreign_home()}"
        )
    return build(ClientConfig, values, text, source)
