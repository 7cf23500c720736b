"""The systemd unit that loads lockdown's filter before the network comes: written, enabled and removed again.

The unit does nothing while the filter's file is not there. So it is written before the file and removed after it, and a
boot between finds no half of it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from ..base import package_data
from ..base.file_access import replace_file
from ..base.leftovers import LOCKDOWN_UNIT, UNIT_DIRECTORY
from ..errors import ConfigError, reason_of

SAMPLE_FILE: Final = "/var/lib/cryprq-proxy/lockdown.nft"
SAMPLE_NFT: Final = "/usr/sbin/nft"
MANAGER: Final = Path("/run/systemd/system")
"""There where systemd runs: sd_booted(3)."""
_SECONDS: Final = 60.0
_MODE: Final = 0o644


def managed() -> bool:
    """Whether systemd runs, and its units see this process's network: not in another network namespace."""
    try:
        ours, first = (os.stat(f"/proc/{process}/ns/net") for process in ("self", "1"))
    except OSError:
        return False
    return MANAGER.is_dir() and os.path.samestat(ours, first)


def unit(file: Path, nft: str) -> str:
    """The text of the unit for the filter in `file`, loaded by the program `nft`. Raises ConfigError for a path that a
    unit cannot name."""
    for path in (str(file), nft):
        if not path.isprintable() or any(character in path for character in " \"'\\%$"):
            raise ConfigError(
                f"no unit can name {path!r}: choose a state_dir without spaces and signs like % and $"
            )
    try:
        sample = package_data.read(LOCKDOWN_UNIT)
    except OSError as error:
        raise ConfigError(
            f"this installation has lost {LOCKDOWN_UNIT}: {reason_of(error)}; install it anew"
        ) from None
    mount = sample.replace(str(Path(SAMPLE_FILE).parent) + "\n", f"{file.parent}\n")
    return mount.replace(SAMPLE_FILE, str(file)).replace(SAMPLE_NFT, nft)


def install(file: Path, nft: str) -> bool:
    """Write and enable the unit; False where no manager would load it. Raises ConfigError."""
    if not managed():
        return False
    text = unit(file, nft)
    path = UNIT_DIRECTORY / LOCKDOWN_UNIT
    try:
        handle = replace_file(path, text.encode())
        os.fchmod(handle, _MODE)
        os.close(handle)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {reason_of(error)}") from None
    _systemctl("daemon-reload")
    _systemctl("enable", LOCKDOWN_UNIT)
    return True


def remove() -> None:
    """Disable and remove the unit, if it is there. Raises ConfigError."""
    path = UNIT_DIRECTORY / LOCKDOWN_UNIT
    if not managed() or not os.path.lexists(path):
        return
    _systemctl("disable", LOCKDOWN_UNIT)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {reason_of(error)}") from None
    _systemctl("daemon-reload")


def _systemctl(*words: str) -> None:
    command = ["systemctl", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{' '.join(command)} could not be run: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or "it gives no reason").splitlines()[-1]
        raise ConfigError(f"{' '.join(command)} failed: {said}")
