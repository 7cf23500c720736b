"""The locations of files: configuration, state and the control sockets. Reading of files, also of private ones.

    $XDG_CONFIG_HOME/cryprq where that is set; else root's are in /etc/cryprq, everybody else's in ~/.config/cryprq

Services are root's: what root says to the program without an option is said to them. The XDG Base Directory
Specification says that a relative path in its variables counts as unset.

A file counts only if nobody but its reader and root can change it; where it holds a secret, nobody else may read it.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Final, Literal

from ..errors import ConfigError, reason_of
from .file_access import FileContent, access_for
from .owners import ROOT, others_can_write, user_name

type Role = Literal["client", "exit"]

ROLES: Final[tuple[Role, ...]] = ("client", "exit")
ROOTS_CONFIG: Path = Path("/etc/cryprq")
ROOTS_STATE: Path = Path("/var/lib/cryprq")
ROOTS_RUNTIME: Path = Path("/var/run/cryprq" if sys.platform == "darwin" else "/run/cryprq")
"""On macOS nobody can make /run."""
MAX_FILE: Final = 1 << 20
"""Largest size of a configuration file in bytes, far more than any needs."""
MAX_LIST: Final = 16 << 20
"""Largest size of a list of peers in bytes: 200,000 of them, each with a name."""


def config_dir() -> Path:
    """`$XDG_CONFIG_HOME/cryprq`, else /etc/cryprq for root and `~/.config/cryprq` for others. Raises ConfigError if
    there is no home directory."""
    remedy = "to look in: set XDG_CONFIG_HOME, or give --config"
    return _place("XDG_CONFIG_HOME", ROOTS_CONFIG, ".config", remedy)


def state_dir() -> Path:
    """`$XDG_STATE_HOME/cryprq`, else /var/lib/cryprq for root and `~/.local/state/cryprq` for others: data that may be
    lost. Raises ConfigError if there is no home directory."""
    return _place("XDG_STATE_HOME", ROOTS_STATE, ".local/state", "for the state: set XDG_STATE_HOME")


def _place(variable: str, of_root: Path, in_home: str, remedy: str) -> Path:
    if (base := _absolute(variable)) is not None:
        return base / "cryprq"
    if os.geteuid() == ROOT:
        return of_root
    try:
        home = Path.home()
        # It would be another place in each directory.
        if not home.is_absolute():
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        return home / in_home / "cryprq"
    except (RuntimeError, KeyError):
        raise ConfigError(f"there is no home directory {remedy}") from None


def callers_file(*names: str) -> Path | None:
    """As root by sudo: the first of these files that the person who called it has in `~/.config/cryprq`. None without
    such a file or person, or where XDG_CONFIG_HOME decides."""
    if os.geteuid() != ROOT or config_dir() != ROOTS_CONFIG:
        return None
    try:
        caller = pwd.getpwnam(os.environ.get("SUDO_USER", ""))
    except (KeyError, ValueError):
        return None
    if caller.pw_uid == ROOT:
        return None
    directory = Path(caller.pw_dir) / ".config" / "cryprq"
    # Looked at, and not opened: whatever it leads to.
    return next((directory / name for name in names if os.path.lexists(directory / name)), None)


def default_identity() -> Path:
    """The identity file of both roles, unless the configuration names another."""
    return config_dir() / "identity"


def default_control_socket(role: Role) -> Path:
    """The socket in the user's runtime directory; if there is none of this user, in /run for root, else beside the
    configuration."""
    return _socket_dir() / f"{role}.sock"


def control_sockets() -> list[Path]:
    """The sockets at which a client or exit may listen: those of this user, then those of the system."""
    directories = dict.fromkeys((_socket_dir(), ROOTS_RUNTIME))
    return [directory / f"{role}.sock" for directory in directories for role in ROLES]


def _socket_dir() -> Path:
    runtime = _absolute("XDG_RUNTIME_DIR")
    if runtime is not None and not (os.geteuid() == ROOT and _is_foreign(runtime)):
        return runtime / "cryprq"
    return ROOTS_RUNTIME if os.geteuid() == ROOT else config_dir()


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
    except IsADirectoryError:
        raise ConfigError(f"{what} {path} is a directory: name a file") from None
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise ConfigError(
                f"{what} {path} is a link, which root does not follow in a directory of another user: put the file "
                "itself there"
            ) from None
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
