"""The proxy of the desktop: GNOME's settings, used by Chromium, Firefox and all GLib programs.

    on    keep the present settings in a file, then set this proxy
    off   restore the kept settings

`off` does not change a key that another program has changed meanwhile. So nothing is lost if `on` is called twice or is
killed, or if a person sets another proxy.

There are two modes. "manual" names the proxy for every protocol: nothing passes without the proxy, which applies the
rules. "auto" names the PAC file: direct connections do not pass the proxy. But a browser that cannot load the file,
since the client does not run yet, goes past the proxy without a warning. So "manual" is the default.

The program `gsettings` reads and writes the settings. Without a session it stores nothing and still ends with 0, so all
values are read back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from ...address import Destination
from ...base.files import SharedFile
from ...base.log import one_line
from ...base.paths import read_text, state_dir
from ...base.program import to_run
from ...errors import ConfigError, CryprqError, reason_of

SCHEMA: Final = "org.gnome.system.proxy"
MODE: Final = f"{SCHEMA} mode"
TIMEOUT: Final = 20.0
"""Seconds for one call of gsettings; it asks a daemon over the session's bus."""

type Settings = Mapping[str, str]
"""GNOME's values, as gsettings writes them, by "SCHEMA KEY"."""


class Kept(msgspec.Struct):
    """The content of the state file."""

    before: dict[str, str | None]
    """The earlier values; None for the desktop's default."""
    applied: dict[str, str]
    """The values that replaced them."""


def state_file() -> Path:
    """Raises ConfigError without a home."""
    return state_dir() / "system-proxy.json"


def manual(proxy: Destination) -> dict[str, str]:
    """The settings that name the proxy for all protocols; the mode comes last."""
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    settings = {}
    for kind in ("http", "https", "socks"):
        settings[f"{SCHEMA}.{kind} host"] = _text(host)
        settings[f"{SCHEMA}.{kind} port"] = str(proxy.port)
    # Clear settings of another proxy: its password must not come here, and FTP must not go there.
    settings[f"{SCHEMA}.http use-authentication"] = "false"
    settings[f"{SCHEMA}.ftp host"] = _text("")
    settings[f"{SCHEMA}.ftp port"] = "0"
    settings[MODE] = _text("manual")
    return settings


def automatic(url: str) -> dict[str, str]:
    """The settings that name a PAC file."""
    return {f"{SCHEMA} autoconfig-url": _text(url), MODE: _text("auto")}


def _text(value: str) -> str:
    """A string in the form of GVariant. Our hosts and URLs need no escapes."""
    return f"'{value}'"


def turn_on(wanted: Settings, file: Path) -> None:
    """Set `wanted` and keep the earlier values in `file`. Raises ConfigError, CryprqError."""
    gsettings = _Gsettings()
    state = SharedFile(file, "the record of the old proxy settings")
    with state.locked():
        current, own = gsettings.read(), gsettings.defaults()
        if lacking := wanted.keys() - current.keys():
            raise CryprqError(f"this desktop's settings have no {min(lacking)}, so its proxy cannot be set")
        kept = _load(file) or Kept({}, {})
        for name in wanted:
            if name not in kept.applied or current[name] != kept.applied[name]:
                kept.before[name] = None if current[name] == own.get(name) else current[name]
        kept.applied.update(wanted)
        # First the record, then the settings: all changed values are kept, also after a kill in between.
        state.replace(msgspec.json.format(msgspec.json.encode(kept)).decode() + "\n")
        gsettings.write(wanted)


def turn_off(file: Path) -> list[str] | None:
    """Restore the earlier values. Returns the keys that others have changed since, which stay as they are.

    None if there is nothing to restore. Raises ConfigError, CryprqError.
    """
    if not file.exists():
        return None
    gsettings = _Gsettings()
    with SharedFile(file, "the record of the old proxy settings").locked():
        kept = _load(file)
        if kept is None:
            return None
        current, own = gsettings.read(), gsettings.defaults()
        ours = [name for name, value in kept.applied.items() if current.get(name) == value]
        # The mode first: no program may see half of another proxy.
        gsettings.write({name: kept.before[name] for name in sorted(ours, key=lambda name: name != MODE)})
        file.unlink()
    wanted = {name: own.get(name) if value is None else value for name, value in kept.before.items()}
    return sorted(name for name in wanted.keys() - set(ours) if current.get(name) != wanted[name])


def _load(file: Path) -> Kept | None:
    """Read the record of `turn_on`. Raises ConfigError for an invalid one."""
    if not file.exists():
        return None
    text, _ = read_text(file, "the record of the old proxy settings")
    try:
        kept = msgspec.json.decode(text.encode(), type=Kept)
        good = kept.before.keys() == kept.applied.keys() and all(
            name.startswith(SCHEMA) and name.count(" ") == 1 for name in kept.before
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        good = False
    if not good:
        raise ConfigError(
            f"{file} is not what this program wrote there: delete it, and set the proxy in the desktop's settings"
        )
    return kept


class _Gsettings:
    """The program `gsettings`. Raises CryprqError."""

    def __init__(self) -> None:
        program = shutil.which("gsettings")
        if program is None:
            raise CryprqError(
                "gsettings was not found: this command is for GNOME and desktops that share its settings;"
                f" elsewhere set the proxy in the desktop's settings, or use `{to_run('env')}`"
            )
        self._program = program

    def read(self, **environment: str) -> dict[str, str]:
        """The values of all keys: as set, else the desktop's defaults."""
        lines = self._run("list-recursively", SCHEMA, **environment).splitlines()
        found = {}
        for line in lines:
            schema, _, rest = line.partition(" ")
            key, _, value = rest.partition(" ")
            found[f"{schema} {key}"] = value
        return found

    def defaults(self) -> dict[str, str]:
        """The desktop's defaults: the values in an empty store."""
        return self.read(GSETTINGS_BACKEND="memory")

    def write(self, values: Mapping[str, str | None]) -> None:
        """Set the values that differ, in this order, and read them back; None is the desktop's default."""
        own, before = self.defaults(), self.read()
        wanted = {name: own.get(name) if value is None else value for name, value in values.items()}
        for name, value in values.items():
            where = name.split(" ")
            if value is None:
                self._run("reset", *where)
            elif value != before.get(name):
                self._run("set", *where, value)
        now = self.read()
        for name in wanted:
            if now.get(name) != wanted[name]:
                raise CryprqError(
                    f"the desktop did not take the setting {name}: run this in a terminal of the desktop session,"
                    " as the user whose session it is"
                )

    def _run(self, *arguments: str, **environment: str) -> str:
        try:
            done = subprocess.run(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                env={**os.environ, **environment},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CryprqError(
                f"gsettings gave no answer within {TIMEOUT:g} s; is the desktop session running?"
            ) from None
        except OSError as error:
            raise CryprqError(f"gsettings cannot be run: {reason_of(error)}") from None
        if done.returncode == 0:
            return done.stdout
        said = one_line((done.stderr.strip() or "no reason given").splitlines()[-1])[:200]
        raise CryprqError(f"the desktop's proxy settings cannot be used, because gsettings says: {said}")
