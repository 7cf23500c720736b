"""The local forwards of a client: [[forward]] of client.toml, and -L of the command line.

[[forward]]
listen = "127.0.0.1:5432"
to = "db.internal:5432"
others = false                            whether other machines may use it, where `listen` lets them

-L [ADDRESS:]PORT:HOST:HOSTPORT           the same as ssh's, for this machine alone
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Struct

from ..address import AddressError, Destination, parse_host_port
from ..errors import ConfigError
from .both_roles import is_loopback
from .decode import Text, switch
from .urls import parse_listen

MAX_FORWARDS: Final = 64
"""Each is a listening socket."""
_HOST: Final = r"(\[[^\]]*\]|[^:\[\]]+)"
_FLAG: Final = re.compile(rf"(?:{_HOST}:)?([0-9]+):{_HOST}:([0-9]+)")


def _parse_port(text: str) -> Destination:
    return _with_port(parse_listen(text))


def _parse_target(text: str) -> Destination:
    return _with_port(parse_host_port(text))


def _with_port(address: Destination) -> Destination:
    if not address.port:
        raise AddressError("expected a port from 1 to 65535, got 0")
    return address


class ForwardTable(Struct, frozen=True, kw_only=True):
    """One [[forward]]."""

    listen: Annotated[
        Destination, Text(_parse_port, 'a string like "127.0.0.1:5432", or a port', integers=True)
    ]
    to: Annotated[Destination, Text(_parse_target, 'a string like "db.internal:5432"')]
    others: Annotated[bool, switch()] = False

    def __post_init__(self) -> None:
        if not self.others and not is_loopback(self.listen):
            raise ConfigError(
                f"listening on {self.listen} lets other machines use this forward, which asks nobody for a password: "
                "listen on 127.0.0.1, or write it as [[forward]] with others = true"
            )


def parse_flags(texts: Iterable[str]) -> tuple[ForwardTable, ...]:
    """The forwards of -L. Raises ConfigError."""
    return tuple(map(_parse_flag, texts))


def _parse_flag(text: str) -> ForwardTable:
    found = _FLAG.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"-L: expected [ADDRESS:]PORT:HOST:HOSTPORT, as in 5432:db.internal:5432, got {text[:100]!a}"
        )
    address, port, host, host_port = found.groups()
    try:
        return ForwardTable(
            listen=_parse_port(f"{address or '127.0.0.1'}:{port}"), to=_parse_target(f"{host}:{host_port}")
        )
    except (AddressError, ConfigError) as error:
        raise ConfigError(f"-L {text[:100]!a}: {error}") from None


def check_forwards(forwards: Iterable[ForwardTable], taken: Iterable[Destination | None]) -> None:
    """Raise ConfigError if there are too many, or two listen at one place, or one where something else does."""
    forwards = tuple(forwards)
    if len(forwards) > MAX_FORWARDS:
        raise ConfigError(f"there are {len(forwards)} forwards, more than {MAX_FORWARDS}")
    places = set(taken)
    for forward in forwards:
        if forward.listen in places:
            raise ConfigError(
                f"a forward listens on {forward.listen}, where the proxy, the dashboard or another forward does: give "
                "it another port"
            )
        places.add(forward.listen)
