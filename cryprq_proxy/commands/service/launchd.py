"""Services of a whole Mac: LaunchDaemons, which launchd starts with the machine (launchd.plist(5), launchctl(1)).

    exit          as the person who called sudo, with the keys that this person has tried; with --tun as root
    tun           the client of system-wide mode, as root

Nothing is carried: what is root's is in /etc/cryprq, and the person's own stays where it is. The proxy of a person is a
LaunchAgent (own.py).
"""

from __future__ import annotations

import contextlib
import os
import plistlib
import pwd
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...base import paths
from ...base.log import one_line
from ...base.owners import user_name
from ...base.program import to_run, to_run_as_root
from ...base.systemd import call
from ...config.client import ClientConfig, load_client
from ...config.exit import ExitConfig, load_exit
from ...errors import ConfigError, CryprqError, reason_of
from .install import Done, next_line, place
from .move import has_role
from .units import Kind, check_open, check_ours, program

DAEMONS: Path = Path("/Library/LaunchDaemons")
LABELS: Final[dict[Kind, str]] = {"exit": "org.cryprq.exit", "tun": "org.cryprq.tun"}
FILES: Final = 10_240
"""Open files: launchd gives 256, which is too few for an exit."""
END_SECONDS: Final = 60
"""From SIGTERM to SIGKILL: streams finish, and system-wide mode is undone."""
_MARGIN: Final = 5
_POLL: Final = 0.1
"""Seconds between two looks at a job that ends: launchd tells nobody."""
_NO_SESSION: Final = (112, 125)
"""What launchctl answers of a session that is not there: no such domain, or one that starts nothing."""
_STATE: Final = re.compile(r"^\s+(state|pid|last exit code) = (.+)$", re.MULTILINE)


class Daemon(NamedTuple):
    """What launchd is told of one: `user` runs it, at home in `home`."""

    label: str
    arguments: list[str]
    user: str
    home: Path
    log: Path


def daemon_of(kind: Kind, called: Path, user: str, home: Path, packets: bool) -> Daemon:
    arguments = ["--tun"] if kind == "tun" else ["exit", *(["--tun"] if packets else [])]
    label = LABELS[kind]
    logs = Path("/var/log") if user == "root" else home / "Library" / "Logs"
    return Daemon(
        label, [str(called), *arguments], user, home, logs / f"{label.replace('org.cryprq.', 'cryprq-')}.log"
    )


def daemon_text(daemon: Daemon) -> str:
    """The plist. It is started again when it fails, not after a stop on purpose."""
    told: dict[str, Any] = {
        "Label": daemon.label,
        "ProgramArguments": daemon.arguments,
        "UserName": daemon.user,
        "EnvironmentVariables": {"HOME": str(daemon.home)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ExitTimeOut": END_SECONDS,
        "SoftResourceLimits": {"NumberOfFiles": FILES},
        "HardResourceLimits": {"NumberOfFiles": FILES},
        "StandardOutPath": str(daemon.log),
        "StandardErrorPath": str(daemon.log),
        "Umask": 0o077,
    }
    return plistlib.dumps(told, sort_keys=False).decode()


def install_daemon(kind: Kind, packets: bool) -> Done:
    """Raises CryprqError."""
    if os.geteuid() != 0:
        raise ConfigError(
            f"a service of the whole Mac is root's: {to_run_as_root(f'service install {kind}')}"
        )
    as_root = packets or kind == "tun"
    owner = _owner("root" if as_root else os.environ.get("SUDO_USER", "root"))
    file = DAEMONS / f"{LABELS[kind]}.plist"
    known = check_ours(file)
    directory = paths.ROOTS_CONFIG if owner.pw_uid == 0 else Path(owner.pw_dir) / ".config" / "cryprq"
    if kind == "tun" and not has_role(directory, "client"):
        raise ConfigError(f"there is no client.toml in {directory}: {to_run_as_root('join')} makes it first")
    if as_root:
        _need_consent(kind, directory)
    called = program()
    check_open(called)
    daemon = daemon_of(kind, called, owner.pw_name, Path(owner.pw_dir), packets)
    place(file, daemon_text(daemon))
    if known:
        end_job(f"system/{daemon.label}")
    begin_job("system", file)
    lines = [f"{file} is written, and launchd runs it as {daemon.user}; its log is {daemon.log}"]
    if called.resolve().stat().st_uid not in (0, owner.pw_uid):
        lines.append(
            f"note: the service runs {called}, which {user_name(called.resolve().stat().st_uid)} can change"
        )
    return Done(lines, next_line(kind, ready=True))


def _need_consent(kind: Kind, directory: Path) -> None:
    """Raises ConfigError unless the configuration says that system-wide mode is to be tried here, and where it is
    damaged: a service starts it at every boot."""
    file = directory / ("client.toml" if kind == "tun" else "exit.toml")
    load: Callable[[Path], ClientConfig | ExitConfig] = load_client if kind == "tun" else load_exit
    if not (file.exists() and load(file).tun.experimental):
        raise ConfigError(
            "system-wide mode has not been proved on macOS yet: read docs/macos.md, and write experimental = true into "
            f"[tun] of {file} if a service is to start it at every boot"
        )


def begin_job(domain: str, file: Path) -> None:
    """Let launchd load the plist, into "system" or the session of a person. Raises CryprqError."""
    command = ["launchctl", "bootstrap", domain, str(file)]
    done = call(command)
    if done.returncode == 0:
        return
    said = f"`{shlex.join(command)}` failed: {one_line(done.stderr.strip())[:200]}"
    if domain != "system" and done.returncode in _NO_SESSION:
        said += (
            "; you are not logged in at the screen of this Mac, as by ssh alone: log in there, and launchd starts the "
            f"service, or run the proxy in a terminal: {to_run('').strip()}"
        )
    raise CryprqError(said)


def end_job(target: str) -> None:
    """Let launchd forget a job, and wait until it has ended: before, launchd takes no other one of that name. Raises
    CryprqError for one that does not end."""
    # One that is not loaded is as good as one that has ended.
    call(["launchctl", "bootout", target])
    give_up = time.monotonic() + END_SECONDS + _MARGIN
    while call(["launchctl", "print", target]).returncode == 0:
        if time.monotonic() >= give_up:
            raise CryprqError(
                f"{target} does not end: look at it with launchctl print {target}, and try again"
            )
        time.sleep(_POLL)


def _owner(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no user {name}") from None


def installed_daemons() -> Iterator[tuple[Kind, Path]]:
    for kind, label in LABELS.items():
        file = DAEMONS / f"{label}.plist"
        with contextlib.suppress(ConfigError):
            if check_ours(file):
                yield kind, file


def remove_daemons(kind: Kind | None) -> list[str]:
    """Stop and remove; what is left to say. Raises CryprqError."""
    wanted = [(each, file) for each, file in installed_daemons() if kind in (None, each)]
    if wanted and os.geteuid() != 0:
        raise ConfigError(f"a service of the whole Mac is root's: {to_run_as_root('service uninstall')}")
    lines = []
    for each, file in wanted:
        end_job(f"system/{LABELS[each]}")
        try:
            file.unlink()
        except OSError as error:
            raise CryprqError(f"{file} cannot be removed: {reason_of(error)}") from None
        lines.append(f"the service {LABELS[each]} is removed; its keys and configuration stay")
    return lines


def described_daemons() -> list[str]:
    """A line for each: what launchd says of it."""
    return [f"{LABELS[kind]}: {_state_of(LABELS[kind])}" for kind, _ in installed_daemons()]


def _state_of(label: str) -> str:
    done = call(["launchctl", "print", f"system/{label}"])
    if done.returncode != 0:
        return "installed, but launchd has not loaded it"
    told = dict(_STATE.findall(done.stdout))
    return one_line(
        ", ".join(f"{name} {told[name]}" for name in ("state", "pid", "last exit code") if name in told)
    )
