"""With what a role was started: the file of its configuration and its flags, for commands that ask it (`started`).

A command reads the same configuration by them, whatever a person has given on the command line or named with --config.
Flags may hold a password: they go to whoever may use the control socket, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from ..base.log import one_line
from ..base.paths import Role
from ..errors import CryprqError
from .control import query

STARTED: Final = "started"
"""The command of the control socket."""
_FILES: Final = frozenset({"identity", "authorized"})
"""The flags that name a file."""


class Started(Struct, frozen=True, kw_only=True):
    """`file` is absolute and need not exist. `flags`: those that were given, in the form in which config/ takes them;
    files in them are absolute too."""

    role: Role
    file: str
    flags: dict[str, bool | int | float | str | tuple[str, ...]]

    @classmethod
    def of(cls, role: Role, file: Path, flags: Mapping[str, object]) -> Started:
        """`file` and the files in `flags` start at the working directory."""
        given = {
            name: _absolute(str(value)) if name in _FILES else value
            for name, value in flags.items()
            if value is not None and value != ()
        }
        return msgspec.convert({"role": role, "file": _absolute(str(file)), "flags": given}, cls)

    def __repr__(self) -> str:
        return f"Started({self.role}, {self.file})"

    @property
    def options(self) -> str:
        """The flags without their values and without those of the log, as "--listen and --tun"; empty without any."""
        names = [name.removesuffix(".enabled").removeprefix("tun.") for name in self.flags]
        options = sorted(f"--{name.replace('_', '-')}" for name in names if not name.startswith("log_"))
        return one_line(" and ".join(filter(None, (", ".join(options[:-1]), *options[-1:]))))

    async def tell(self, _: str) -> dict[str, object]:
        """The action of the control socket."""
        return structs.asdict(self)


def query_started(path: Path) -> Started:
    """With what the process at the control socket `path` was started. Raises as `query`."""
    told = query(path, STARTED)
    try:
        return msgspec.convert(told, Started)
    except msgspec.ValidationError:
        raise CryprqError(f"the cryprq-proxy at {path} has another version, restart it") from None


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))
