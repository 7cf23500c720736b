"""The checks of this machine: the proxy's port, the PAC file, the proxy settings of programs, and the needs and
leftovers of system-wide mode."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..address import Destination, reachable
from ..base import forwarder_port
from ..base import leftovers as marks
from ..base.file_access import open_list
from ..base.paths import ROLES
from ..base.program import to_run, to_run_as_root
from ..config.both_roles import is_loopback
from ..config.client import ClientConfig, load_client
from ..config.exit import ExitConfig, load_exit
from ..config.foreign import only_harmless
from ..config.tun import STATE
from ..errors import ConfigError, reason_of
from ..rules.engine import load_rules
from ..rules.pac.script import PAC_TYPE
from . import on_macos
from .checks import CheckState, CheckVerdict, Context, fail, ok, output_of, skip, warn
from .direct_names import refused_names

SECONDS: Final = 3.0
VARIABLES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
SCHEMA: Final = "org.gnome.system.proxy"


# --- rules, port, PAC ---


async def rules(context: Context) -> CheckVerdict:
    """Read the lists as at a start, and look for direct names that the proxy refuses."""
    config = context.client_config
    given = config.rules()
    if not given:
        return ok(f"there are no rules: everything goes to {config.default}")
    with context.progress("reading lists") as report:
        loaded = await asyncio.to_thread(load_rules, given, config.default, progress=report, opener=open_list)
    text = f"{len(given)} rules, {len(loaded.listed)} names in lists"
    if loaded.listed.problems:
        return warn(
            f"{text}; some lines are left out, the first one is {loaded.listed.problems[0]}",
            "mend or delete these lines; the rest counts",
        )
    if refused := await refused_names(loaded):
        return warn(
            f"{text}; direct names that resolve to this machine are refused: {', '.join(refused)}",
            "if they may mean this machine, add these addresses to the cidrs of the rule for the name",
        )
    return ok(text)


async def port(context: Context) -> CheckVerdict:
    """Is the proxy's port ours, or free?"""
    listen = context.client_config.listen
    if context.running is not None:
        if await _accepts(reachable(listen)):
            return ok(f"the running proxy listens on {listen}")
        where = ", ".join(context.running.listen) or "somewhere else"
        return warn(
            f"nothing answers on {listen}, though the client runs: it listens on {where}",
            "restart it, so that it takes the configuration as it is now",
        )
    return bindable([listen])


def bindable(addresses: list[Destination]) -> CheckVerdict:
    """Whether a listener can be bound to each address now."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address.host, address.port))
                probe.listen(1)
        except OSError as error:
            return fail(
                f"{address} cannot be listened on: {reason_of(error)}",
                f"find who has it ({_who_listens(address.port)}), or choose another `listen`",
            )
    return ok(f"{', '.join(map(str, addresses))} {'is' if len(addresses) == 1 else 'are'} free to listen on")


def _who_listens(port: int) -> str:
    return on_macos.who_listens(port) if on_macos.here() else f"ss -ltnp 'sport = :{port}'"


async def _accepts(address: Destination) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(SECONDS):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.close()
            return True
    return False


async def pac(context: Context) -> CheckVerdict:
    admin = context.client_config.admin
    if admin is None:
        return skip("the dashboard is off (admin), and with it the PAC file")
    if context.running is None:
        return skip("the PAC file is there when the client runs")
    url = f"http://{reachable(admin)}/proxy.pac"
    try:
        kind = await asyncio.to_thread(_content_type, url)
    except (OSError, ValueError) as error:
        # urllib keeps the error of the connection in its own.
        inner = getattr(error, "reason", error)
        return warn(
            f"{url} does not answer: {reason_of(inner) if isinstance(inner, OSError) else inner}",
            "another program may have that port: see the client's log, or set another `admin`",
        )
    except HTTPException:
        kind = "something else than HTTP"
    if kind != PAC_TYPE:
        return fail(
            f"{url} answers with {kind!a}, which is no PAC file: something else listens there",
            "set another `admin` in the configuration, and restart",
        )
    return ok(f"{url} is served")


def _content_type(url: str) -> str:
    # The environment may name a proxy; it is not used here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=SECONDS) as answer:
        return str(answer.headers.get_content_type())


# --- where programs look for a proxy ---


async def variables(context: Context) -> CheckVerdict:
    """For each variable that names a proxy: is it ours, and does it answer?"""
    ours = reachable(context.client_config.listen)
    spellings = [spelling for name in VARIABLES for spelling in (name, name.lower())]
    found = {name: value for name in spellings if (value := context.environment.get(name))}
    if not found:
        return ok(
            "no variable names a proxy: programs in a terminal go past it unless they are told "
            f"({to_run('env')})"
        )
    dead, others = [], []
    for variable, value in found.items():
        address = _address(value)
        if address is None:
            dead.append(f"{variable} is no address of a proxy")
        elif not await _accepts(address):
            dead.append(f"{variable} names {address}, where nothing answers")
        elif not _same(address, ours):
            others.append(f"{variable} names {address}, which is not this proxy")
    if dead:
        return fail("; ".join(dead), "start the proxy there, or: unset " + " ".join(found))
    if others:
        return warn("; ".join(others), f'eval "$({to_run("env")})" sets them to this proxy')
    return ok(f"{', '.join(found)} name this proxy")


def _address(value: str) -> Destination | None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        if parts.hostname:
            return Destination(parts.hostname, parts.port or 1080)
    except ValueError:
        pass
    return None


def _same(one: Destination, other: Destination) -> bool:
    """Whether both are one address, or the same port of this machine."""
    return one == other or (one.port == other.port and is_loopback(one) and is_loopback(other))


_SESSION: Final = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_CURRENT_DESKTOP")
"""A program of a desktop has one of them."""


async def desktop(context: Context) -> CheckVerdict:
    """The system's settings, used by most browsers: on Linux, GNOME's."""
    if on_macos.here():
        return await _of_macos(context)
    if not any(context.environment.get(name) for name in _SESSION):
        return skip("there is no desktop here whose settings browsers would follow")
    if _is_tun(context):
        return skip("system-wide mode carries what browsers send, with and without a proxy")
    program = context.which("gsettings")
    if program is None:
        return skip("there is no gsettings here: look into the settings of the desktop or the browser")
    mode = await asyncio.to_thread(_gsetting, program, SCHEMA, "mode")
    if mode is None:
        return skip("the desktop's proxy settings cannot be read from here")
    ours = reachable(context.client_config.listen)
    if mode == "none":
        return warn(
            "browsers that follow the desktop use no proxy",
            f"{to_run('system-proxy on')}; or set the proxy in the browser itself",
        )
    if mode == "auto":
        url = await asyncio.to_thread(_gsetting, program, SCHEMA, "autoconfig-url") or ""
        admin = context.client_config.admin
        if admin is not None and url.startswith(f"http://{reachable(admin)}/"):
            return ok(f"the desktop uses this proxy's PAC file, {url}")
        return warn(f"the desktop uses another PAC file, {url or 'without a URL'}", to_run("system-proxy on"))
    host = await asyncio.to_thread(_gsetting, program, f"{SCHEMA}.socks", "host") or ""
    number = await asyncio.to_thread(_gsetting, program, f"{SCHEMA}.socks", "port") or "0"
    set_to = Destination(host or "?", int(number) if number.isdecimal() and len(number) < 6 else 0)
    if not _same(set_to, ours):
        return warn(f"the desktop uses another proxy, {set_to}", to_run("system-proxy on"))
    if not await _accepts(ours):
        return fail(f"the desktop uses this proxy, {ours}, but nothing answers there", "start cryprq-proxy")
    return ok(f"the desktop uses this proxy, {ours}")


async def _of_macos(context: Context) -> CheckVerdict:
    if _is_tun(context):
        return skip("system-wide mode carries what browsers send, with and without a proxy")
    config = context.client_config
    ours, admin = reachable(config.listen), config.admin
    verdict = await on_macos.browsers(ours, None if admin is None else reachable(admin), _same)
    if verdict.state is CheckState.OK and not await _accepts(ours):
        return fail(f"{verdict.text}, but nothing answers there", "start cryprq-proxy")
    return verdict


def _gsetting(program: str, schema: str, key: str) -> str | None:
    found = output_of(program, "get", schema, key, seconds=SECONDS)
    return None if found is None else found.strip().strip("'")


# --- system-wide mode ---


async def tun(context: Context) -> CheckVerdict:
    """What a running --tun cannot keep as it set it, else the needs of --tun, for either role. Without --tun a missing
    one is no fault."""
    if troubles := _troubles(context):
        return warn("; ".join(troubles), "tell that other program to leave it alone, or stop it")
    if on_macos.here():
        return await on_macos.tun(context)
    config = context.config
    asked = config.tun.enabled
    lacks = []
    if not (context.root / "dev/net/tun").exists():
        lacks.append(("there is no /dev/net/tun", "modprobe tun; in a container, give it that device"))
    if context.which("nft") is None and not os.path.exists("/usr/sbin/nft"):
        lacks.append(("nft is not installed", "apt install nftables"))
    if asked and context.euid:
        lacks.append(("this is not root", "run it with sudo, or by its systemd unit"))
    if not lacks and _is_tun(context) and (why := forwarder_port.open_to_all(context.root)):
        return warn(why, f"keep it for root: {forwarder_port.PROTECT}")
    ipv6 = (context.root / "proc/sys/net/ipv6").exists()
    note = "" if ipv6 else "; this kernel has no IPv6, so only IPv4 is carried"
    if not lacks:
        return ok(f"what --tun needs is there{note}")
    text, remedy = "; ".join(lack for lack, _ in lacks) + note, "; ".join(mend for _, mend in lacks)
    return fail(text, remedy) if asked else skip(f"--tun is not in use, and would not work here: {text}")


def _is_tun(context: Context) -> bool:
    """Whether this is a client that runs with --tun, or is to."""
    running = context.running_client
    return (running is not None and running.tun is not None) or (
        context.client is not None and context.client.tun.enabled
    )


def _troubles(context: Context) -> list[str]:
    client, exit = context.running_client, context.running_exit
    network = client.tun if client else exit.network if exit else None
    return [
        f"{repair.name}: {repair.trouble}"
        for repair in (network.repairs if network else ())
        if repair.trouble
    ]


async def leftovers(context: Context) -> CheckVerdict:
    """Look for what a killed --tun has left. Needs no configuration, and explains what fails after it."""
    dead = [role for role in ROLES if marks.holder(role) is None]
    left = [mark for role in dead for mark in marks.marks(role)]
    for directory in _state_directories(context.file):
        for journal in (directory / f"{role}.journal" for role in dead):
            with contextlib.suppress(OSError):
                if journal.stat().st_size:
                    left.append(f"the journal {journal}")
    if "client" in dead and marks.lockdown():
        more = f"; {marks.has_left(left)}" if left else ""
        return fail(f"{marks.said_of_lockdown()}{more}", marks.LOCKDOWN_LIFTS)
    if left:
        stands = f"{marks.KILL_SWITCH_STANDS} (it has left {', '.join(left)})"
        return fail(stands if marks.kill_switch_in(left) else marks.has_left(left), to_run_as_root("cleanup"))
    if len(dead) < len(ROLES):
        return ok("system-wide mode runs; what it has changed is undone when it ends")
    return ok(
        "nothing is left of system-wide mode"
        + (", as far as can be seen without root" if context.euid else "")
    )


def _state_directories(file: Path | None) -> Iterable[Path]:
    """Where a --tun may have its journal: the usual directory, and those of the configurations that are valid."""
    found = {STATE: None}
    loaders: tuple[Callable[[Path | None], ClientConfig | ExitConfig], ...] = (load_client, load_exit)
    for load in loaders:
        with contextlib.suppress(ConfigError):
            found[only_harmless(load(file)).tun.state_dir] = None
    return found
