"""The proxy settings of macOS, as networksetup(8) reads and sets them: each network service has its own.

networksetup -listallnetworkservices     names, a disabled one with an asterisk
networksetup -getwebproxy SERVICE        Enabled, Server, Port, Authenticated Proxy Enabled
networksetup -getautoproxyurl SERVICE    URL, Enabled
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ..errors import CryprqError, reason_of
from .log import one_line

PROGRAM: str = "/usr/sbin/networksetup"
SECONDS: Final = 10.0
MAX_OUTPUT: Final = 1 << 16
MAX_SERVICES: Final = 64
"""Services that are looked at; a Mac has about five."""
KINDS: Final = ("web", "secureweb", "socksfirewall")
"""The proxies for HTTP, for HTTPS and for all that speaks SOCKS."""

type Run = Callable[[Sequence[str]], str]
"""Runs networksetup with these arguments. Returns what it says; raises CryprqError where it refuses."""


class ServiceProxy(NamedTuple):
    """One of a service's proxies, also while it is off; `host` is "" where none was ever set."""

    on: bool
    host: str
    port: int
    has_password: bool


class ServicePac(NamedTuple):
    on: bool
    url: str


def run(arguments: Sequence[str]) -> str:
    """Raises CryprqError."""
    try:
        done = subprocess.run(
            [PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CryprqError(f"networksetup gave no answer within {SECONDS:g} s") from None
    except OSError as error:
        raise CryprqError(f"{PROGRAM} cannot be run: {reason_of(error)}") from None
    # It complains on standard output, and some complaints end with 0.
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    wrong = next((line for line in said if line.startswith("** Error")), None)
    if done.returncode == 0 and wrong is None:
        return done.stdout[:MAX_OUTPUT]
    reason = wrong or (said[-1] if said else f"exit code {done.returncode}")
    raise CryprqError(f"networksetup says: {one_line(reason.removeprefix('** Error: '))[:200]}")


def services(run: Run = run) -> dict[str, bool]:
    """The network services in their order, each with whether it is enabled. Raises CryprqError."""
    lines = run(["-listallnetworkservices"]).splitlines()
    # The first line explains the asterisk.
    names = [line for line in lines[1:] if line.strip("*")][:MAX_SERVICES]
    return {name.removeprefix("*"): not name.startswith("*") for name in names}


def proxy_of(service: str, kind: str, run: Run = run) -> ServiceProxy:
    """Raises CryprqError."""
    told = _fields(run([f"-get{kind}proxy", service]), ("Enabled", "Server", "Port"))
    port = told["Port"]
    return ServiceProxy(
        told["Enabled"] == "Yes",
        "" if told["Server"] == "(null)" else told["Server"],
        int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0,
        told.get("Authenticated Proxy Enabled") == "1",
    )


def pac_of(service: str, run: Run = run) -> ServicePac:
    """Raises CryprqError."""
    told = _fields(run(["-getautoproxyurl", service]), ("URL", "Enabled"))
    return ServicePac(told["Enabled"] == "Yes", "" if told["URL"] == "(null)" else told["URL"])


def discovers(service: str, run: Run = run) -> bool:
    """Whether the service looks for a PAC file by itself. Raises CryprqError."""
    name = "Auto Proxy Discovery"
    return _fields(run(["-getproxyautodiscovery", service]), (name,))[name] == "On"


def _fields(text: str, needed: Sequence[str]) -> dict[str, str]:
    told = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            told[name.strip()] = value.strip()
    if lacking := [name for name in needed if name not in told]:
        raise CryprqError(f"networksetup answers otherwise than known: there is no {lacking[0]!r}")
    return told
