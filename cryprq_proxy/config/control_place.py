"""Where a role is asked: the one key `control_socket` of a configuration.

A command that asks what runs needs no more of the file: flags may have given what it lacks, as a client's exit, and
what was written into it since the start may be wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..base.paths import Role
from .decode import decode_table, parse_toml, read_source
from .foreign import refuse_foreign
from .whose import KINDS

_KEY: Final = "control_socket"


def named_socket(role: Role, file: Path | None) -> Path | None:
    """The control socket that the `file` names, or else the default file; None if neither does. Raises ConfigError for
    a file that cannot be read, and for root where it is another user's."""
    text, source, _ = read_source(file, f"{role}.toml")
    document = parse_toml(text, source)
    if _KEY not in document:
        return None
    refuse_foreign(_KEY)
    found: Path = decode_table(KINDS[role], {_KEY: document[_KEY]}, source)[_KEY]
    return found
