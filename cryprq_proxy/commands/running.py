"""Which client or exit a command is about: the one that runs, and where none does, the files that one would read.

--config F given   the role that was started with F, with its flags; else F
not given          the role of this user, then that of the system; else the default file
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ..address import Destination, parse_host_port
from ..base.deputy import act_as_owner
from ..base.file_access import deputy_for
from ..base.paths import Role, config_dir, control_sockets
from ..config.client import ClientConfig, load_client
from ..config.control_place import named_socket
from ..config.exit import ExitConfig, load_exit
from ..config.foreign import ASKED_AT, only_harmless
from ..errors import ConfigError, CryprqError
from ..process.control import NotRunning, query_status
from ..process.started import Started, query_started
from ..status import ClientStatus
from .common import act_for


class Found(NamedTuple):
    """What a command is about. `file` may be missing; `socket` and `started` are None where nothing runs, and then
    `why` says so in a part of a sentence."""

    role: Role
    file: Path
    socket: Path | None = None
    started: Started | None = None
    why: str = ""

    @property
    def source(self) -> str:
        """Where an answer comes from that no running role has given: for a line on standard error."""
        return f"{self.why}; from {self.file}"

    def act(self) -> None:
        """As root, open its files from now on with the rights of the user that it runs as: what it says about them
        holds with those. Raises ConfigError."""
        if self.socket is not None:
            act_as_owner(self.socket.parent)

    def client(self) -> ClientConfig:
        """Its configuration, read again with its flags. Raises ConfigError."""
        return only_harmless(load_client(self.named, self.flags))

    def exit(self) -> ExitConfig:
        """As `client`, for a command that opens none of the files that root would open itself."""
        return only_harmless(load_exit(self.named, self.flags), ASKED_AT)

    @property
    def flags(self) -> dict[str, object]:
        return {} if self.started is None else dict(self.started.flags)

    @property
    def named(self) -> Path | None:
        """The default file may be missing, one that was named may not."""
        return None if self.file == default_file(self.role) else self.file


class Listens(NamedTuple):
    """Where a client listens: for applications, and with PAC file and dashboard, if it does."""

    proxy: Destination
    admin: Destination | None


def listens(about: Found) -> Listens:
    """Where the client listens that `about` has found, or would by its files. Raises CryprqError."""
    if about.socket is None:
        config = about.client()
        return Listens(config.listen, config.admin)
    status = query_status(about.socket)
    if not isinstance(status, ClientStatus) or not status.listen:
        raise CryprqError("the client is just starting, and listens nowhere yet; try again")
    admin = status.admin
    return Listens(
        parse_host_port(status.listen[0]),
        None if admin is None else parse_host_port(urlsplit(admin).netloc),
    )


def default_file(role: Role) -> Path:
    return config_dir() / f"{role}.toml"


def find(role: Role, config: Path | None) -> Found:
    """The running role that `config` means, or the files. Raises ConfigError."""
    act_for(config)
    wanted = None if config is None else os.path.realpath(config)
    silent: list[CryprqError] = []
    other = ""
    for socket in _sockets(role, config):
        try:
            started = query_started(socket)
        except NotRunning:
            continue
        except CryprqError as error:
            silent.append(error)
            continue
        if started.role != role:
            continue
        if wanted is None or os.path.realpath(started.file) == wanted:
            return Found(role, Path(started.file), socket, started)
        other = other or started.file
    file = default_file(role) if config is None else config
    if silent:
        why = str(silent[0])
    elif other:
        why = f"the {role} that runs was started with {other}"
    else:
        why = f"no {role} runs"
    return Found(role, file, why=why)


def _sockets(role: Role, config: Path | None) -> list[Path]:
    """That of the configuration, which may lack what flags have given, and those at the usual places."""
    usual = [path for path in control_sockets() if path.name == f"{role}.sock"]
    # Of another user's configuration root asks nowhere else.
    if deputy_for(Path("/")) is None:
        with contextlib.suppress(ConfigError):
            own = named_socket(role, config)
            return list(dict.fromkeys((*(() if own is None else (own,)), *usual)))
    return usual
