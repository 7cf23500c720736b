"""For which role a configuration is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from ..base.paths import ROLES, Role
from ..errors import ConfigError
from .client import ClientConfig
from .decode import decode_table, parse_toml, read_source
from .exit import ExitConfig

KINDS: Final[dict[Role, type[Struct]]] = {"client": ClientConfig, "exit": ExitConfig}


def role_of(file: Path) -> Role:
    """By its name, if that is the one of the default files; else the role for which fewer of its keys and values are
    wrong. Where these are equally many, or it cannot be read, the role that its name has in it; the client's, if none.
    """
    for role in ROLES:
        if file.name == f"{role}.toml":
            return role
    named = sorted(ROLES, key=lambda role: role not in file.name)
    return min(named, key=lambda role: _wrong(file, role))


def _wrong(file: Path, role: Role) -> int:
    """How many keys and values are wrong for this role. What files they name is not looked at."""
    errors: list[ConfigError] = []
    try:
        text, source, _ = read_source(file, f"{role}.toml")
        decode_table(KINDS[role], parse_toml(text, source), source, errors=errors)
    except ConfigError as error:
        errors.append(error)
    return len(errors)
