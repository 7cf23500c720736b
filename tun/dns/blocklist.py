"""Names that a person does not want: the files and single names of the configuration, asked by wire form.

Files are read and kept by cryprq_proxy/rules/lists.py, which knows their formats; here all of them are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryprq_proxy.base.file_access import open_list
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules import lists
from cryprq_proxy.rules.lists import ListedNames

from .names import to_host


def blocks(names: ListedNames, name: bytes) -> bool:
    """Whether `name` (lower-case wire form) is blocked. An allowed domain above it wins over every list."""
    return len(names) > 0 and names.mask(to_host(name)) != 0


def load(paths: Sequence[Path] = (), block: Iterable[str] = (), allow: Iterable[str] = ()) -> ListedNames:
    """Read all files; takes a second or two per million lines, so not on the event loop.

    Broken lines are in `problems`. Raises `ConfigError` for a file that cannot be read, for too many names and for a
    broken name in `block` or `allow`.
    """
    names = ListedNames()
    for listed, allowed in ((block, False), (allow, True)):
        for name in listed:
            try:
                names.add(name, 0, allowed=allowed)
            except ValueError as error:
                raise ConfigError(f"{error}; write it like example.com") from None
    lists.read_files(names, paths, opener=open_list)
    names.seal([1] * max(len(paths), 1))
    return names
