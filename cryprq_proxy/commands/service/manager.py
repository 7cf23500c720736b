"""What a manager does before it starts a unit: the user, and the directories of state and sockets. It is done here, so
that without a manager a single command line starts the service.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path

from ...base import package_data
from ...base.log import one_line
from ...base.systemd import call, write
from ...errors import CryprqError, reason_of
from .ownership import NewOwner
from .units import Start

SYSUSERS: Path = Path("/etc/sysusers.d/cryprq.conf")


# --- what a service needs ---


def owner_for(user: str) -> NewOwner:
    """The user of the service, made if it is missing. Raises CryprqError."""
    if user == "root":
        return NewOwner(0, 0)
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        _make_user(user)
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            raise CryprqError(
                f"the user {user} could not be made: make it with useradd --system {user}"
            ) from None
    return NewOwner(found.pw_uid, found.pw_gid)


def _make_user(user: str) -> None:
    """systemd's tool works without the manager too; elsewhere useradd makes the same."""
    if tool := shutil.which("systemd-sysusers"):
        try:
            SYSUSERS.parent.mkdir(exist_ok=True)
            _, _, line = package_data.read("cryprq.sysusers").rpartition("\nu ")
            write(SYSUSERS, f"u {line}")
        except OSError as error:
            raise CryprqError(f"{SYSUSERS} cannot be written: {reason_of(error)}") from None
        command = [tool, str(SYSUSERS)]
    else:
        command = ["useradd", "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/var/lib/cryprq", "--shell", "/usr/sbin/nologin", user]
    done = call(command)
    if done.returncode != 0:
        why = one_line(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given")
        raise CryprqError(f"the user {user} could not be made: {why}")


def prepare(start: Start, owner: NewOwner) -> None:
    """Make the directories that a manager would make. Raises CryprqError."""
    for directory in start.directories:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chown(directory, *owner, follow_symlinks=False)
        except OSError as error:
            raise CryprqError(f"{directory} cannot be made: {reason_of(error)}") from None


# --- macOS ---


def on_macos() -> bool:
    return sys.platform == "darwin"
