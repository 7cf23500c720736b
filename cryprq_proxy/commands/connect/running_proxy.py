"""Which proxy a command asks: the one it is told, else the running client's, else the one that is configured.

The user and password are looked for only when the proxy asks for them. A running client cannot tell them, since it
keeps digests: they come from its flags and its files, as far as this user may read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...address import Destination, reachable
from ...base.paths import read_text
from ...config.client import DEFAULT_LISTEN
from ...config.urls import parse_listen
from ...errors import ConfigError, CryprqError
from ...fronts.credentials import Credentials
from ..desktop.environment import read_login
from ..running import find, listens


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where it listens, and where a command finds its NAME:PASSWORD."""

    address: Destination
    user_file: Path | None
    config: Path | None

    @classmethod
    def find(cls, told: str | None, user_file: Path | None, config: Path | None) -> Proxy:
        """Raises CryprqError."""
        if told is None:
            address = _found(config)
        else:
            try:
                address = parse_listen(told)
            except CryprqError as error:
                raise ConfigError(f"--proxy: {error}") from None
        return cls(reachable(address), user_file, config)

    def login(self) -> str:
        """The NAME:PASSWORD to present. Raises ConfigError if there is none, or its file cannot be read."""
        if self.user_file is not None:
            text, _ = read_text(self.user_file, "the user file", private=True)
            login = text.removesuffix("\n").removesuffix("\r")
            Credentials.parse(login)
            return login
        login = ""
        try:
            login = read_login(find("client", self.config))
        except ConfigError:
            if self.config is not None:
                raise
        if not login:
            raise ConfigError(
                f"the proxy at {self.address} asks for a user and a password, which the configuration does not have: "
                "name the file that has them with --user-file"
            )
        return login

    def unreachable(self, why: str) -> CryprqError:
        """The error of a proxy that does not answer; `why` says it in a few words."""
        return CryprqError(
            f"no proxy answers at {self.address} ({why}): start the client, or say with --proxy where it listens"
        )


def _found(config: Path | None) -> Destination:
    try:
        return listens(find("client", config)).proxy
    except ConfigError:
        if config is not None:
            raise
        # No file that this user may read says where: a service listens at the usual place.
        return DEFAULT_LISTEN
