"""Which files a configuration may name when root runs with it.

Files that are read through FileAccess are opened with the rights of the user whose configuration it is
(base/deputy.py), so a configuration may name them wherever they are. The files of the keys below are opened or made by
libraries and by parts that work as root. Of another user's configuration root takes none of them, and of its own only
those on whose path no other user decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Final

from msgspec import NODEFAULT, Struct, structs

from ..base.file_access import deputy_for
from ..base.owners import require_own
from ..errors import ConfigError

OPENED_BY_ROOT: Final = frozenset(
    {"control_socket", "certificate", "key", "ca", "lists", "blocklists", "state_dir"}
)

_SOCKET: Final = "control_socket"
"""process/control.py looks at the path that is used in the end."""
ASKED_AT: Final = frozenset({_SOCKET})
"""For commands that ask the running role, and open none of the others."""


def only_harmless[T: Struct](config: T, keys: Set[str] = OPENED_BY_ROOT) -> T:
    """Return `config`. As root, raises ConfigError if one of `keys` names a file that root would open itself, and
    another user owns the configuration or decides what the path leads to."""
    for key, value in _named(config):
        if key.rpartition(".")[2] not in keys:
            continue
        refuse_foreign(key)
        if key != _SOCKET:
            for path in value if isinstance(value, tuple) else (value,):
                require_own(Path(path), f"{key} names a file that root would open itself, but")
    return config


def refuse_foreign(key: str) -> None:
    """Raises ConfigError if this is root, and the configuration, in which `key` names a file, another user's."""
    if deputy_for(Path("/")) is not None:
        raise ConfigError(
            f"the configuration belongs to another user than root, and so root does not use the file that {key} "
            "names: run this as that user, or with a configuration in a directory of root"
        )


def _named(table: Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each such key that is set, with a path or several."""
    for field in structs.fields(table):
        value, name = getattr(table, field.name), f"{prefix}{field.name}"
        if isinstance(value, Struct):
            yield from _named(value, f"{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Struct):
            for row in value:
                yield from _named(row, f"{name}.")
        elif field.name in OPENED_BY_ROOT and value != _default(field):
            yield name, value


def _default(field: structs.FieldInfo) -> object:
    return field.default if field.default_factory is NODEFAULT else field.default_factory()
