"""The locations of files: the XDG directories and the control sockets. Reading of files, also of private ones.

The XDG Base Directory Specification says that a relative path in its variables counts as unset.

A file counts only if nobody but its reader and root can change it; where it holds a secret, nobody else may read it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Literal

from ..errors import ConfigError, reason_of
from .file_access import FileContent, access_for
from .owners import ROOT, others_can_write, user_name

type Role = Literal["client", "exit"]

ROLES: Final[tuple[Role, ...]] = ("client", "exit")
MAX_FILE: Final = 1 << 20
"""Largest size of a configuration file in bytes, far more than any needs."""
MAX_LIST: Final = 16 << 20
"""Largest size of a list of peers in bytes: 200,000 of them, each with a name."""


def config_dir() -> Path:
    """`$XDG_CONFIG_HOME/cryprq`, else `~/.config/cryprq`. Raises ConfigError if there is no home directory."""
    return _user_dir("XDG_CONFIG_HOME", ".config", "to look in: set XDG_CONFIG_HOME, or give --config")


def state_dir() -> Path:
    """`$XDG_STATE_HOME/cryprq`, else `~/.local/state/cryprq`: data that may be lost. Raises ConfigError if there is no
    home directory."""
    return _user_dir("XDG_STATE_HOME", ".local/state", "for the state: set XDG_STATE_HOME")


def _user_dir(variable: str, default: str, remedy: str) -> Path:
    try:
        return (_absolute(variable) or Path.home() / default) / "cryprq"
    except RuntimeError:
        raise ConfigError(f"there is no home directory {remedy}") from None


def default_identity() -> Path:
    """The identity file of both roles, unless the configuration names another."""
    return config_dir() / "identity"


def default_control_socket(role: Role) -> Path:
    """The socket in the user's runtime directory; if there is none of this user, in /run for root, else beside the
    configuration."""
    return _socket_dir() / f"{role}.sock"


def control_sockets() -> list[Path]:
    """The sockets at which a client or exit may listen: those of this user, then those of the system."""
    directories = dict.fromkeys((_socket_dir(), Path("/run/cryprq")))
    return [directory / f"{role}.sock" for directory in directories for role in ROLES]


def _socket_dir() -> Path:
    runtime = _absolute("XDG_RUNTIME_DIR")
    if runtime is not None and not (os.geteuid() == ROOT and _is_foreign(runtime)):
        return runtime / "cryprq"
    return Path("/run/cryprq") if os.geteuid() == ROOT else config_dir()


def _is_foreign(directory: Path) -> bool:
    """Whether it is another user's, as the runtime directory is that sudo has left in the environment."""
    try:
        return directory.stat().st_uid != ROOT
    except OSError:
        return False


def _absolute(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else None


def read_text(path: Path, what: str, *, private: bool = False, most: int = MAX_FILE) -> tuple[str, bool]:
    """The text of a file, without a byte order mark, and whether only its owner can read it. `what` names the file in
    errors.

    Raises ConfigError if the file cannot be read, has more than `most` bytes, is not UTF-8, if another user than this
    one and root could change it or, with `private`, if others can read it.
    """
    try:
        access = access_for(path, what)
        found = access.read(path, most + 1)
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {reason_of(error)}") from None
    except ValueError:
        raise ConfigError(f"the path of {what} is invalid") from None
    _check_unchangeable(found, path, what, access.uid)
    closed = _is_private(found)
    if private and not closed:
        raise exposed(path, what)
    if len(found.data) > most:
        raise ConfigError(f"{what} {path} is larger than {most >> 20} MiB")
    try:
        return found.data.decode("utf-8-sig"), closed
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path} is not text in UTF-8") from None


def exposed(path: Path, what: str) -> ConfigError:
    return ConfigError(f"others can read {what} {path}, which holds a secret; run: chmod 600 {path}")


def _check_unchangeable(found: FileContent, path: Path, what: str, reader: int) -> None:
    """Raise ConfigError unless it is a file that only the user `reader` and root can change."""
    if not stat.S_ISREG(found.mode):
        raise ConfigError(f"{what} {path} is not a regular file")
    if found.uid not in (ROOT, reader):
        owner, wanted = user_name(found.uid), user_name(reader)
        raise ConfigError(f"{what} {path} belongs to the user {owner}; run: chown {wanted} {path}")
    if others_can_write(found.mode, found.uid, found.gid):
        raise ConfigError(f"others can write {what} {path}; run: chmod go-w {path}")


def _is_private(found: FileContent) -> bool:
    """Whether neither others nor a group except root's have access. systemd gives credentials to a service with an ACL,
    and the mask of the ACL looks like a permission of root's group."""
    return not found.mode & 0o007 and (not found.mode & 0o070 or found.gid == 0)
