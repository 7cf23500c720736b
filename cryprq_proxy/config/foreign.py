"""What the configuration of another user may not name when root runs with it.

Files that are read through FileAccess are opened with that user's rights (base/deputy.py), so a configuration may name
them wherever they are. The files of the keys below are opened or made by libraries and by parts that work as root: of
another user's configuration root takes none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import NODEFAULT, Struct, structs

from ..base.file_access import deputy_for
from ..errors import ConfigError

OPENED_BY_ROOT: Final = frozenset(
    {"control_socket", "certificate", "key", "ca", "lists", "blocklists", "state_dir"}
)


def only_harmless[T: Struct](config: T) -> T:
    """Return `config`. Raises ConfigError if it is another user's, and names a file that root would open itself."""
    if deputy_for(Path("/")) is not None and (key := next(_named(config), "")):
        raise ConfigError(
            f"the configuration belongs to another user than root, and so root does not use the file that {key} names: "
            "run this as that user, or with a configuration in a directory of root"
        )
    return config


def _named(table: Struct, prefix: str = "") -> Iterator[str]:
    for field in structs.fields(table):
        value, name = getattr(table, field.name), f"{prefix}{field.name}"
        if isinstance(value, Struct):
            yield from _named(value, f"{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Struct):
            for row in value:
                yield from _named(row, f"{name}.")
        elif field.name in OPENED_BY_ROOT and value != _default(field):
            yield name


def _default(field: structs.FieldInfo) -> object:
    return field.default if field.default_factory is NODEFAULT else field.default_factory()
