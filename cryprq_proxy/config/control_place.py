"""Where a role is asked: the one key `control_socket` of a configuration, and which role the file is for.

A command that asks what runs needs no more of the file: flags may have given what it lacks, as a client's exit, and
what was written into it since the start may be wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from ..base.paths import ROLES, Role
from .client import ClientConfig
from .decode import decode_table, parse_toml, read_source
from .exit import ExitConfig
from .foreign import refuse_foreign

_KINDS: Final[dict[Role, type[Struct]]] = {"client": ClientConfig, "exit": ExitConfig}
_KEY: Final = "control_socket"


def named_socket(role: Role, file: Path | None) -> Path | None:
    """The control socket that the `file` names, or else the default file; None if neither does. Raises ConfigError for
    a file that cannot be read, and for root where it is another user's."""
    document, source = _read(role, file)
    if _KEY not in document:
        return None
    refuse_foreign(_KEY)
    found: Path = decode_table(_KINDS[role], {_KEY: document[_KEY]}, source)[_KEY]
    return found


def role_of(file: Path) -> Role:
    """For which role the file is, by the keys that it has; where they tell nothing, by its name. Raises ConfigError."""
    keys = _read("client", file)[0].keys()
    fitting = [role for role in ROLES if keys <= {field.name for field in structs.fields(_KINDS[role])}]
    if len(fitting) == 1:
        return fitting[0]
    return "exit" if "exit" in file.name else "client"


def _read(role: Role, file: Path | None) -> tuple[dict[str, Any], Path]:
    text, source, _ = read_source(file, f"{role}.toml")
    return parse_toml(text, source), source
