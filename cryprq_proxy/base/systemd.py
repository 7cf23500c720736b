"""systemd as this program uses it: whether it runs, and what it is told about a unit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import CryprqError, reason_of
from .file_access import replace_file
from .log import one_line

UNIT_DIRECTORY: Path = Path("/etc/systemd/system")
"""Where the administrator's units are (systemd.unit(5))."""
SECONDS: Final = 90.0
"""Longest time of one call: a start waits until the service is ready."""
_RUNS: Final = Path("/run/systemd/system")
"""There where systemd runs: sd_booted(3)."""
_MODE: Final = 0o644


class Systemd:
    """systemd of the system, with `own` that of this person."""

    def __init__(self, *, own: bool = False) -> None:
        self.own = own
        self.control = "systemctl --user" if own else "systemctl"

    def runs(self) -> bool:
        """Whether it is there, and its services would see this process's network: not in another namespace."""
        if shutil.which("systemctl") is None:
            return False
        if not self.own:
            return _RUNS.is_dir() and _shares_network()
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

    def start_once(self, unit: str) -> None:
        """Start it now, if it does not run. Raises CryprqError."""
        self._do("start", unit)

    def enable(self, unit: str) -> None:
        """Start it at each boot from now on. Raises CryprqError."""
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
            said = done.stderr.strip().splitlines()
            why = one_line(said[0].removesuffix(".")) if said else "no reason given"
            see = "journalctl --user -u" if self.own else "journalctl -u"
            more = f"; `{see} {unit}` says more" if len(words) > 1 else ""
            raise CryprqError(f"`{self.control} {' '.join(words)}` failed: {why}{more}")

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return call([*self.control.split(), *words])


def _shares_network() -> bool:
    try:
        ours, first = (os.stat(f"/proc/{process}/ns/net") for process in ("self", "1"))
    except OSError:
        return False
    return os.path.samestat(ours, first)


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


def write(file: Path, text: str) -> None:
    """A file that all may read, in one step. Raises OSError."""
    handle = replace_file(file, text.encode())
    try:
        os.fchmod(handle, _MODE)
    finally:
        os.close(handle)
