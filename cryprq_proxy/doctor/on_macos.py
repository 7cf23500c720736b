"""The checks of this machine where macOS has other places and programs than Linux."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final

from ..address import Destination
from ..base import macos_programs
from ..base.program import to_run
from ..base.text import size
from .checks import CheckVerdict, Context, fail, ok, skip, warn

PROGRAMS: Final = (
    "sbin/ifconfig",
    "sbin/pfctl",
    "sbin/route",
    "usr/sbin/netstat",
    "usr/sbin/scutil",
    "usr/sbin/sysctl",
)
"""What --tun runs; all of them belong to macOS."""
OWN_RULES: Final = 'anchor "com.apple/*"'
"""How the rules of macOS call those of others, ours among them."""
LOAD_OWN_RULES: Final = (
    "sudo pfctl -f /etc/pf.conf loads the system's own rules, if that file has not been changed"
)
SET_CLOCK: Final = "sudo sntp -sS time.apple.com"
MORE_FILES: Final = (
    "NumberOfFiles in SoftResourceLimits of its property list (launchd.plist), or ulimit -n before it starts; then "
    "restart it"
)
NO_FILTER: Final = (
    "the packet filter and the application firewall of macOS are not looked at: `sudo pfctl -s rules` and the system "
    "settings show what they keep out"
)
LOCAL_NETWORK: Final = (
    "since macOS 15 a program in the background may be kept from the local network: allow Python in the system "
    "settings (Privacy & Security, Local Network), or run the client in Terminal"
)
_WIDEST: Final = "kern.ipc.maxsockbuf"


def here() -> bool:
    return sys.platform == "darwin"


def who_listens(port: int) -> str:
    return f"lsof -nP -iTCP:{port} -sTCP:LISTEN"


def keeps_from_the_local_network(problem: str | None) -> bool:
    """Whether this may be why a running client does not reach what this process reaches: what a terminal starts is
    allowed to."""
    return here() and problem is not None and "no route to host" in problem.lower()


# --- system-wide mode ---


async def tun(context: Context) -> CheckVerdict:
    """The needs of --tun, for either role."""
    config = context.config
    asked = config.tun.enabled
    lacks = [
        (f"there is no /{path}", "it belongs to macOS: mend the system")
        for path in PROGRAMS
        if not (context.root / path).exists()
    ]
    if not lacks and not context.euid:
        rules = await asyncio.to_thread(macos_programs.said, [macos_programs.PFCTL, "-s", "rules"])
        if rules is not None and OWN_RULES not in rules:
            lacks.append(
                (f"the packet filter does not ask {OWN_RULES}, where the rules of --tun are", LOAD_OWN_RULES)
            )
    if asked and not config.tun.experimental:
        lacks.append(("--tun has not been proved on macOS yet", "start it with --experimental to try it"))
    if asked and context.euid:
        lacks.append(("this is not root", "run it with sudo, or by launchd"))
    if not lacks:
        return ok("what --tun needs is there")
    text, remedy = "; ".join(lack for lack, _ in lacks), "; ".join(mend for _, mend in lacks)
    return fail(text, remedy) if asked else skip(f"--tun is not in use, and would not work here: {text}")


# --- what programs use ---


async def browsers(
    ours: Destination, admin: Destination | None, same: Callable[[Destination, Destination], bool]
) -> CheckVerdict:
    """The proxy of the network service in use, which most programs follow. `same`: whether two are one proxy."""
    said = await asyncio.to_thread(macos_programs.said, [macos_programs.SCUTIL, "--proxy"])
    values = _values(said or "")
    if not values:
        return skip("the system's proxy settings cannot be read from here")
    if values.get("ProxyAutoConfigEnable") == "1":
        url = values.get("ProxyAutoConfigURLString", "")
        if admin is not None and url.startswith(f"http://{admin}/"):
            return ok(f"the system uses this proxy's PAC file, {url}")
        return warn(f"the system uses another PAC file, {url or 'without a URL'}", to_run("system-proxy on"))
    if values.get("SOCKSEnable") != "1":
        return warn(
            "browsers that follow the system use no SOCKS proxy",
            f"{to_run('system-proxy on')}; or set the proxy in the browser itself",
        )
    number = values.get("SOCKSPort", "0")
    set_to = Destination(
        values.get("SOCKSProxy") or "?", int(number) if number.isdecimal() and len(number) < 6 else 0
    )
    if not same(set_to, ours):
        return warn(f"the system uses another proxy, {set_to}", to_run("system-proxy on"))
    return ok(f"the system uses this proxy, {ours}")


def _values(said: str) -> dict[str, str]:
    """The values of a dictionary that scutil shows, but for what is inside of others."""
    found = {}
    for line in said.splitlines():
        name, colon, value = line.partition(" : ")
        if colon and line.startswith("  ") and not line.startswith("    "):
            found[name.strip()] = value.strip()
    return found


# --- what the system gives an exit ---


async def buffers(wanted: int) -> CheckVerdict:
    """The largest buffer that a socket may have, of root too."""
    said = await asyncio.to_thread(macos_programs.said, [macos_programs.SYSCTL, "-n", _WIDEST])
    if not said or not said.isdecimal():
        return skip("this system does not tell how large the buffers of a socket may be")
    if int(said) >= wanted:
        return ok(f"the lane's sockets may have buffers of {size(wanted)}")
    return warn(
        f"a fast link loses datagrams, since the lane's sockets get smaller buffers than they ask for: {_WIDEST} is "
        f"{said}",
        f"as root: sysctl -w {_WIDEST}={wanted}",
    )
