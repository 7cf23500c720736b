"""GNOME's proxy settings, used by Chromium, Firefox and all GLib programs; see kept.py.

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
from collections.abc import Iterable, Mapping
from typing import Final

from ...address import Destination
from ...base.log import one_line
from ...base.program import to_run
from ...errors import CryprqError, reason_of

SCHEMA: Final = "org.gnome.system.proxy"
MODE: Final = f"{SCHEMA} mode"
TIMEOUT: Final = 20.0
"""Seconds for one call of gsettings; it asks a daemon over the session's bus."""


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


class Gsettings:
    """The program `gsettings`; settings have the names "SCHEMA KEY" and its values. Raises CryprqError."""

    def __init__(self) -> None:
        program = shutil.which("gsettings")
        if program is None:
            raise CryprqError(
                "gsettings was not found: this command is for GNOME and desktops that share its settings;"
                f" elsewhere set the proxy in the desktop's settings, or use `{to_run('env')}`"
            )
        self._program = program

    def manual(self, proxy: Destination) -> dict[str, str]:
        return manual(proxy)

    def automatic(self, url: str) -> dict[str, str]:
        return automatic(url)

    def restored_first(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: name != MODE)

    def may_name(self, name: str) -> bool:
        return name.startswith(SCHEMA) and name.count(" ") == 1

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
