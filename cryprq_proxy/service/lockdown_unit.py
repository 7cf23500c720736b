"""The systemd unit that loads lockdown's filter before the network comes: written, enabled and removed again.

The unit does nothing while the filter's file is not there. So it is written before the file and removed after it, and a
boot between finds no half of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..base import package_data, systemd
from ..base.linux_marks import LOCKDOWN_UNIT
from ..base.systemd import Systemd, write
from ..errors import ConfigError, reason_of

SAMPLE_FILE: Final = "/var/lib/cryprq-proxy/lockdown.nft"
SAMPLE_NFT: Final = "/usr/sbin/nft"


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
    """Write and enable the unit; False where no manager would load it. Raises CryprqError."""
    manager = Systemd()
    if not manager.runs():
        return False
    path = systemd.UNIT_DIRECTORY / LOCKDOWN_UNIT
    try:
        write(path, unit(file, nft))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {reason_of(error)}") from None
    manager.read_again()
    manager.enable(LOCKDOWN_UNIT)
    return True


def start() -> None:
    """Let it count as running, once the filter's file is there: nftables.service takes along only a unit that runs when
    it is started anew or reloaded. A filter that stands is left as it is. Raises CryprqError."""
    Systemd().start_once(LOCKDOWN_UNIT)


def remove() -> None:
    """End, disable and remove the unit, if it is there. Raises CryprqError."""
    manager, path = Systemd(), systemd.UNIT_DIRECTORY / LOCKDOWN_UNIT
    if not manager.runs() or not os.path.lexists(path):
        return
    manager.stop(LOCKDOWN_UNIT)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {reason_of(error)}") from None
    manager.read_again()
