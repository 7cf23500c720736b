"""The proxy of the desktop, and what was set before.

    on    keep the present settings in a file, then set this proxy
    off   restore the kept settings

`off` does not change a setting that another program has changed meanwhile. So nothing is lost if `on` is called twice
or is killed, or if a person sets another proxy. Whose settings they are, a DesktopSettings knows: gsettings.py,
networksetup.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from ...address import Destination
from ...base.files import SharedFile
from ...base.paths import read_text, state_dir
from ...errors import ConfigError, CryprqError

type Settings = Mapping[str, str]
"""Values by the names of settings, both as the desktop has them."""
type MakeSettings = Callable[[], DesktopSettings]


class DesktopSettings(Protocol):
    """The settings of one kind of desktop. All raise CryprqError."""

    def manual(self, proxy: Destination) -> dict[str, str]:
        """The settings that name the proxy for all protocols, in the order in which they are to be set."""

    def automatic(self, url: str) -> dict[str, str]:
        """The settings that name a PAC file."""

    def read(self) -> dict[str, str]:
        """All settings as they are."""

    def defaults(self) -> dict[str, str]:
        """The desktop's own values, where they are told apart from what was set."""

    def write(self, values: Mapping[str, str | None]) -> None:
        """Set the values that differ, in this order, and read them back; None is the desktop's default."""

    def restored_first(self, names: Iterable[str]) -> list[str]:
        """The order in which settings are restored, so that no program sees half of another proxy."""

    def may_name(self, name: str) -> bool:
        """Whether a record can name such a setting."""


class Kept(msgspec.Struct):
    """The content of the state file."""

    before: dict[str, str | None]
    """The earlier values; None for the desktop's default."""
    applied: dict[str, str]
    """The values that replaced them."""


def state_file() -> Path:
    """Raises ConfigError without a home."""
    return state_dir() / "system-proxy.json"


def turn_on(make: MakeSettings, wanted: Settings, file: Path) -> None:
    """Set `wanted` and keep the earlier values in `file`. Raises ConfigError, CryprqError."""
    settings = make()
    state = SharedFile(file, "the record of the old proxy settings")
    with state.locked():
        current, own = settings.read(), settings.defaults()
        if lacking := wanted.keys() - current.keys():
            raise CryprqError(f"this desktop's settings have no {min(lacking)}, so its proxy cannot be set")
        kept = _load(file, settings) or Kept({}, {})
        for name in wanted:
            if name not in kept.applied or current[name] != kept.applied[name]:
                kept.before[name] = None if current[name] == own.get(name) else current[name]
        kept.applied.update(wanted)
        # First the record, then the settings: all changed values are kept, also after a kill in between.
        state.replace(msgspec.json.format(msgspec.json.encode(kept)).decode() + "\n")
        settings.write(wanted)


def turn_off(make: MakeSettings, file: Path) -> list[str] | None:
    """Restore the earlier values. Returns the keys that others have changed since, which stay as they are.

    None if there is nothing to restore. Raises ConfigError, CryprqError.
    """
    if not file.exists():
        return None
    settings = make()
    with SharedFile(file, "the record of the old proxy settings").locked():
        kept = _load(file, settings)
        if kept is None:
            return None
        current, own = settings.read(), settings.defaults()
        ours = [name for name, value in kept.applied.items() if current.get(name) == value]
        settings.write({name: kept.before[name] for name in settings.restored_first(ours)})
        file.unlink()
    wanted = {name: own.get(name) if value is None else value for name, value in kept.before.items()}
    return sorted(name for name in wanted.keys() - set(ours) if current.get(name) != wanted[name])


def _load(file: Path, settings: DesktopSettings) -> Kept | None:
    """Read the record of `turn_on`. Raises ConfigError for an invalid one."""
    if not file.exists():
        return None
    text, _ = read_text(file, "the record of the old proxy settings")
    try:
        kept = msgspec.json.decode(text.encode(), type=Kept)
        good = kept.before.keys() == kept.applied.keys() and all(
            settings.may_name(name) for name in kept.before
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        good = False
    if not good:
        raise ConfigError(
            f"{file} is not what this program wrote there: delete it, and set the proxy in the desktop's settings"
        )
    return kept
