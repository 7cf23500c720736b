"""The proxy as a service of one person, without root: by systemd, or by launchd on macOS. Its files stay.

And what a `join` does where the service was installed before there was an exit to go to.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...base import paths, systemd
from ...base.owners import user_name
from ...base.systemd import Systemd
from ...config.client import load_client
from ...errors import ConfigError, CryprqError, reason_of
from . import units
from .install import Done, installed, next_line, place, refuse_running
from .launchd import begin_job, end_job
from .move import has_role
from .units import OWN_PROXY, SERVICES, Service, Start, check_open, check_ours, program, unit_text


def own_unit() -> Path:
    """Where systemd of this person looks."""
    return paths.config_dir().parent / "systemd" / "user" / OWN_PROXY.file


def install_own() -> Done:
    """The proxy of this person, without root: its configuration stays where it is. Raises CryprqError."""
    if os.geteuid() == 0:
        raise ConfigError("--user makes a service of your own: call it without sudo, or leave --user out")
    _check_home()
    unit = own_unit()
    check_ours(unit)
    ready = has_role(paths.config_dir(), "client")
    if ready:
        load_client()
    manager = Systemd(own=True)
    refuse_running(OWN_PROXY, None, manager)
    text = unit_text(OWN_PROXY, program())
    try:
        unit.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CryprqError(f"{unit.parent} cannot be made: {reason_of(error)}") from None
    place(unit, text)
    if not manager.runs():
        lines = [f"{unit} is written, but no service manager of yours runs. Start it by hand with:"]
        return Done([*lines, f"  {Start.of(text).by_hand()}"], next_line("proxy", ready))
    manager.read_again()
    if ready:
        manager.start(OWN_PROXY.unit)
    else:
        manager.enable(OWN_PROXY.unit)
    lines = [f"the service {OWN_PROXY.unit} {'runs' if ready else 'is installed'}, while you are logged in"]
    return Done(
        [*lines, "it also runs while you are not, after: loginctl enable-linger"], next_line("proxy", ready)
    )


def _check_home() -> None:
    home = Path.home()
    try:
        owner = home.stat().st_uid
    except OSError as error:
        raise ConfigError(f"the home directory {home} cannot be used: {reason_of(error)}") from None
    if owner != os.geteuid():
        raise ConfigError(
            f"the home directory {home} belongs to the user {user_name(owner)}: log in as yourself"
        )


def plist() -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"{units.LABEL}.plist"


def own_job() -> str:
    """What launchctl calls the proxy of this person."""
    return f"gui/{os.getuid()}/{units.LABEL}"


def install_macos() -> Done:
    """The proxy of this person, by launchd. Raises CryprqError."""
    if os.geteuid() == 0:
        raise ConfigError("on macOS the proxy is a service of your own: call it without sudo")
    _check_home()
    file = plist()
    known = check_ours(file)
    refuse_running(OWN_PROXY, None, Systemd(own=True))
    ready = has_role(paths.config_dir(), "client")
    called = program()
    check_open(called)
    place(file, units.plist_text(called, Path.home() / "Library" / "Logs" / "cryprq-proxy.log"))
    if ready:
        if known:
            end_job(own_job())
        begin_job(f"gui/{os.getuid()}", file)
    return Done([f"{file} is written, and launchd starts it at the login"], next_line("proxy", ready))


# --- after a join ---


def after_join() -> list[str]:
    """Start the proxy that was installed before there was an exit to go to. Returns what to tell the person, nothing
    without such a service. Raises CryprqError."""
    if os.geteuid() != 0:
        return _begin(Systemd(own=True), OWN_PROXY, own_unit())
    if paths.config_dir() != paths.ROOTS_CONFIG:
        return []
    told = []
    for service, _ in installed():
        if service.role == "client":
            unit = systemd.UNIT_DIRECTORY / service.file
            told += _begin(Systemd(), service, unit)
    return told


def _begin(manager: Systemd, service: Service, unit: Path) -> list[str]:
    try:
        if not check_ours(unit):
            return []
    except ConfigError:
        return []
    if not manager.runs():
        return ["start the service by hand with:", f"  {Start.of(unit.read_text()).by_hand()}"]
    if manager.is_active(service.unit):
        return [f"the service {service.unit} runs and uses it"]
    if service == SERVICES["tun"]:
        return [
            "start the service, from which on all goes through the exit:",
            f"  systemctl start {service.unit}",
        ]
    manager.start(service.unit)
    return [f"the service {service.unit} runs now"]
