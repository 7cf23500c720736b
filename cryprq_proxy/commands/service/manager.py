"""The service manager: systemd of the system or of a person, launchd of macOS, or none.

What a manager would do before it starts a unit (the user, directories of state and sockets) is done here too, so that
without one a single command line starts the service.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...base import package_data
from ...base.file_access import replace_file
from ...base.log import one_line
from ...errors import CryprqError, reason_of
from .move import NewOwner
from .units import LABEL, Start

SECONDS: Final = 90.0
"""Longest time of one call: a start waits until the service is ready."""
SYSUSERS: Path = Path("/etc/sysusers.d/cryprq.conf")
_RUNS_SYSTEMD: Final = Path("/run/systemd/system")
"""As sd_booted(3) looks."""


class Manager:
    """systemd, with `own` that of this person."""

    def __init__(self, *, own: bool = False) -> None:
        self.own = own
        self.control = "systemctl --user" if own else "systemctl"

    def runs(self) -> bool:
        if shutil.which("systemctl") is None:
            return False
        if not self.own:
            return _RUNS_SYSTEMD.is_dir()
        return Path(
            os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "systemd", "private"
        ).exists()

    def read_again(self) -> None:
        """Let it read the units. Raises CryprqError."""
        self._do("daemon-reload")

    def start(self, unit: str) -> None:
        """Start it now, anew if it runs, and at each boot from now on. Raises CryprqError."""
        self.enable(unit)
        self._do("restart", unit)

    def enable(self, unit: str) -> None:
        self._do("enable", unit)

    def stop(self, unit: str) -> None:
        """End it, and start it no more. Raises CryprqError."""
        self._do("disable", "--now", unit)

    def is_active(self, unit: str) -> bool:
        return self.runs() and self._call("is-active", unit).stdout.strip() in (
            "active",
            "activating",
            "reloading",
        )

    def describe(self, unit: str) -> str:
        """What it says of a unit, as "active, enabled: link up"; "" without a manager."""
        if not self.runs():
            return ""
        asked = ("ActiveState", "UnitFileState", "StatusText")
        told = self._call("show", "--property", ",".join(asked), unit).stdout
        found = dict(line.partition("=")[::2] for line in told.splitlines())
        state, enabled, text = (one_line(found.get(key, "")) for key in asked)
        return f"{state}, {enabled or 'not enabled'}{': ' if text else ''}{text}"

    def _do(self, *words: str) -> None:
        done = self._call(*words)
        if done.returncode != 0:
            unit = words[-1]
            why = one_line(done.stderr.strip().splitlines()[0] if done.stderr.strip() else "no reason given")
            see = "journalctl --user -u" if self.own else "journalctl -u"
            more = f"; `{see} {unit}` says more" if len(words) > 1 else ""
            raise CryprqError(f"`{self.control} {' '.join(words)}` failed: {why}{more}")

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return call([*self.control.split(), *words])


def call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool of the system. Raises CryprqError if it cannot be run or does not end."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except OSError as error:
        raise CryprqError(f"{command[0]} cannot be run: {reason_of(error)}") from None
    except subprocess.TimeoutExpired:
        raise CryprqError(f"`{shlex.join(command)}` did not end within {SECONDS:g} s") from None


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


def write(file: Path, text: str) -> None:
    """A file that all may read, in one step. Raises OSError."""
    handle = replace_file(file, text.encode())
    try:
        os.fchmod(handle, 0o644)
    finally:
        os.close(handle)


# --- macOS ---


def on_macos() -> bool:
    return sys.platform == "darwin"


def launchd(word: str, file: Path) -> None:
    """Tell launchd of the plist ("bootstrap"), or to forget it ("bootout"). Raises CryprqError."""
    domain = f"gui/{os.getuid()}"
    words = [word, domain, str(file)] if word == "bootstrap" else [word, f"{domain}/{LABEL}"]
    done = call(["launchctl", *words])
    if done.returncode != 0:
        raise CryprqError(f"`launchctl {shlex.join(words)}` failed: {one_line(done.stderr.strip())}")
