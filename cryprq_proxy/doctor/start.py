"""The first checks of both roles: configuration, keys, clock, disk, and whether a role runs already."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

from ..base.kept_clock import clock_is_kept
from ..base.paths import config_dir
from ..base.program import to_run
from ..base.text import counted, duration
from ..config.client import load_client
from ..config.exit import authorized_file, load_exit
from ..config.foreign import only_harmless
from ..config.keys import load_identity
from ..config.secret_files import read_psk
from ..crypto.primitives import select_provider
from ..errors import ConfigError, CryprqError, reason_of
from ..pairing.invitation import refuse_lost_identity
from ..process.control import NotRunning, query_status
from ..status import ClientStatus, ExitStatus
from .checks import CheckVerdict, Context, fail, ok, skip, warn

BUILT: Final = 1_760_000_000.0
"""October 2025, in seconds since 1970: no correct clock shows an earlier time."""
FAR: Final = 4_000_000_000.0
"""The year 2096."""


async def client_configuration(context: Context) -> CheckVerdict:
    file = context.file or config_dir() / "client.toml"
    try:
        config = context.client = only_harmless(load_client(context.file, context.flags))
        exits = config.exits()
    except ConfigError as error:
        return fail(
            str(error),
            f"change {file} as it says; `{to_run('join URI')}` writes one for you"
            if file.exists()
            else f"ask for an invite (`cryprq-proxy invite NAME` at the exit), then: {to_run('join URI')}",
        )
    named = ", ".join(exit.name for exit in exits)
    return ok(f"{_read(context, file)} is valid and names {counted(len(exits), 'exit')}: {named}")


async def exit_configuration(context: Context) -> CheckVerdict:
    file = context.file or config_dir() / "exit.toml"
    try:
        context.exit = only_harmless(load_exit(context.file, context.flags))
    except ConfigError as error:
        return fail(str(error), f"change {file} as it says; configs/exit.toml lists all keys")
    if file.exists() or context.flags:
        return ok(f"{_read(context, file)} is valid")
    return ok(f"there is no {file}, so all is as by default")


def _read(context: Context, file: Path) -> str:
    """What the configuration was read from."""
    if not context.flags_told:
        return str(file)
    return f"{file if file.exists() else 'the default'} with {context.flags_told} of what runs"


async def identity(context: Context) -> CheckVerdict:
    """The identity exists, only its owner can read it, and it is valid. The same holds for the pre-shared keys."""
    config = context.config
    file = config.identity
    provider = context.provider = select_provider(None if config.provider == "auto" else config.provider)
    if not os.path.lexists(file):
        if context.exit is not None:
            refuse_lost_identity(context.exit, authorized_file(context.file, context.exit))
        return fail(
            f"there are no keys in {file} yet",
            f"they are made at the first start; or make them now: {to_run('keygen')}",
        )
    try:
        found = context.identity = load_identity(provider, file)
    except ConfigError as error:
        return fail(str(error), _mend_identity(file))
    psk_files = [exit.psk_file for exit in context.client.exits()] if context.client else [config.psk_file]
    for psk in filter(None, psk_files):
        try:
            read_psk(psk)
        except ConfigError as error:
            return fail(str(error), "copy the same 64 digits to both sides, with mode 0600")
    return ok(f"{file} holds the keys of {found.peer_id}, and only its owner can read it")


def _mend_identity(file: Path) -> str:
    try:
        mode = file.stat().st_mode
    except OSError:
        return f"run this as the owner of {file}"
    if stat.S_ISREG(mode) and mode & 0o077:
        return f"chmod 600 {file}"
    return (
        f"restore {file} from a backup, or move it away and make new keys, which every exit must then let in"
    )


async def clock(context: Context) -> CheckVerdict:
    """Invites, certificates and logs need it; the link itself does not."""
    now = context.now()
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if not BUILT < now < FAR:
        return fail(
            f"the clock says {shown}, which is wrong: certificates and invites depend on it",
            "set it: timedatectl set-ntp true, or date -s",
        )
    kept = clock_is_kept()
    if kept is False:
        return warn(
            f"the clock says {shown}, and nothing keeps it in step",
            "timedatectl set-ntp true; a wrong clock spoils wss:// certificates and the end of invites",
        )
    return ok(f"the clock says {shown}" + (", and is kept in step" if kept else ""))


async def running(context: Context) -> CheckVerdict:
    """Does a role run with this configuration, and in which state?"""
    config = context.config
    path = config.control_socket
    if not os.path.lexists(path):
        return ok(f"nothing runs with this configuration (no control socket {path})")
    try:
        status = context.running = await asyncio.to_thread(query_status, path)
    except NotRunning:
        return ok(
            f"nothing runs with this configuration; {path} is a leftover of a killed process, and does no harm"
        )
    except CryprqError as error:
        return warn(str(error), "ask as the user that it runs as")
    role = "exit" if isinstance(status, ExitStatus) else "client"
    text = f"the {role} has been running for {duration(status.uptime)}, process {status.pid}"
    if not isinstance(status, ClientStatus):
        return ok(text)
    if status.link != "up":
        last = status.last_error or next((error.text for error in status.errors), "it is being made")
        return warn(f"{text}, but has no link: {last}", "the checks below say why")
    if status.rules is not None and status.rules.error:
        return warn(
            f"{text}, with old rules, since {status.rules.error}",
            "mend the file; it is read again by itself",
        )
    return ok(text)


async def disk(context: Context) -> CheckVerdict:
    """A full disk loses keys, journals and the lists of peers."""
    config = context.config
    try:
        free = shutil.disk_usage(config.identity.parent).free
    except OSError as error:
        return skip(f"{config.identity.parent} cannot be looked at: {reason_of(error)}")
    if free < 1 << 20:
        return fail(
            f"the disk of {config.identity.parent} is full", "make room: keys and lists cannot be written"
        )
    return ok(f"there is room in {config.identity.parent}")
