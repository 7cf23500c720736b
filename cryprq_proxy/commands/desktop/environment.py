"""The proxy variables for programs in a terminal, in the syntax of several shells.

    HTTP_PROXY, HTTPS_PROXY   http://127.0.0.1:1080      for nearly all programs
    ALL_PROXY                 socks5h://127.0.0.1:1080   for other protocols; with the "h" the proxy resolves names
    NO_PROXY                  localhost and the addresses that mean this machine

Each is set in upper and lower case: curl and wget read http_proxy only in lower case, others only in upper case.
HTTPS_PROXY begins with http://, the protocol of the proxy itself. Direct rules are not in NO_PROXY, which has no order,
no ports and no patterns; the proxy applies them.

Passwords are left out unless a person asks for them: every started program gets the variables, and bug reports show
them.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import quote

from ...address import Destination, reachable
from ...base.paths import read_text
from ...errors import ConfigError

if TYPE_CHECKING:
    from ..running import Found

type Shell = Literal["sh", "fish", "csh", "file"]

SHELLS: Final[tuple[str, ...]] = get_args(Shell.__value__)
"""sh is bash, zsh, dash and ksh too; file is NAME=VALUE, as Docker and systemd read it."""

NO_PROXY: Final = "localhost,127.0.0.1,127.0.0.0/8,::1,[::1]"
"""Some programs read networks, others only words; some see IPv6 addresses with brackets."""

NAMES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


def read_login(about: Found) -> str:
    """The NAME:PASSWORD that the proxy asks for, "" if it asks for none. Raises ConfigError.

    A configuration keeps only digests, so this reads the files again.
    """
    about.act()
    config = about.client()
    if config.user_file is not None:
        text, _ = read_text(config.user_file, "the user file", private=True)
        return text.removesuffix("\n").removesuffix("\r")
    if config.user is None:
        return ""
    if "user" in about.flags:
        return str(about.flags["user"])
    text, _ = read_text(about.file, "the configuration", private=True)
    return str(tomllib.loads(text)["user"])


def asks_for_password(about: Found) -> bool:
    """Whether the proxy asks applications who they are, as far as its files can be read. Raises ConfigError where no
    proxy runs, and so nothing but they can tell."""
    try:
        about.act()
        return about.client().credentials() is not None
    except ConfigError:
        if about.socket is None:
            raise
        return False


def variables(listen: Destination, login: str = "", *, socks: bool = True) -> dict[str, str]:
    """Name to value, for a proxy that listens on `listen`. `login` is NAME:PASSWORD; without `socks` no ALL_PROXY."""
    name, colon, password = login.partition(":")
    before = f"{quote(name, safe='')}:{quote(password, safe='')}@" if colon else ""
    place = f"{before}{reachable(listen)}"
    values = {
        "ALL_PROXY": f"socks5h://{place}",
        "HTTPS_PROXY": f"http://{place}",
        "HTTP_PROXY": f"http://{place}",
        "NO_PROXY": NO_PROXY,
    }
    if not socks:
        del values["ALL_PROXY"]
    return {spelled: value for name, value in values.items() for spelled in (name, name.lower())}


def exports(values: Mapping[str, str], shell: Shell) -> str:
    """Lines that set these variables."""
    return "".join(_EXPORT[shell](name, value) for name, value in values.items())


def unsets(shell: Shell) -> str:
    """Lines that unset all of them."""
    names: Iterable[str] = (spelled for name in NAMES for spelled in (name, name.lower()))
    return "".join(_UNSET[shell].format(name) for name in names)


def _sh(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}\n"


def _fish(name: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{quoted}'\n"


def _csh(name: str, value: str) -> str:
    # csh expands its history even between quotes.
    return f"setenv {name} {shlex.quote(value)}\n".replace("!", "\\!")


def _file(name: str, value: str) -> str:
    return f"{name}={value}\n"


_EXPORT: Final = {"sh": _sh, "fish": _fish, "csh": _csh, "file": _file}
_UNSET: Final = {"sh": "unset {}\n", "fish": "set -e {}\n", "csh": "unsetenv {}\n", "file": "{}=\n"}


def shell_of(program: str) -> Shell:
    """The family of a shell by its path, as $SHELL has it."""
    name = program.rpartition("/")[2]
    return "fish" if name == "fish" else "csh" if name in ("csh", "tcsh") else "sh"
