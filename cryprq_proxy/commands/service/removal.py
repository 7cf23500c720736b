"""How a service is removed, and how it is: what `service uninstall` and `service status` do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ...base import paths, systemd
from ...base.log import one_line
from ...base.program import to_run, to_run_as_root
from ...base.systemd import Systemd
from ...errors import ConfigError, CryprqError, reason_of
from .install import drop_in_of, installed
from .launchd import described_daemons, end_job, remove_daemons
from .manager import on_macos
from .own import own_job, own_unit, plist
from .units import OWN_PROXY, SERVICES, Kind, Service, Start, check_ours

FOREIGN: Final = "whoever has written it removes it"


def remove(kind: Kind | None, own: bool) -> list[str]:
    """Stop, disable and remove; what is left to say. Raises CryprqError."""
    if on_macos():
        lines = [] if own else remove_daemons(kind)
        if kind in (None, "proxy") and (own or not lines or plist().exists()):
            return lines + _remove_plist()
        if not lines:
            raise ConfigError(f"the service {kind} is not installed")
        return lines
    if own:
        return _remove(Systemd(own=True), OWN_PROXY, own_unit(), paths.config_dir())
    if os.geteuid() != 0:
        raise ConfigError(
            f"services of the system are root's: {to_run_as_root('service uninstall')}; your own proxy: "
            f"{to_run('service uninstall --user')}"
        )
    wanted = [SERVICES[kind]] if kind is not None else [service for service, _ in installed()]
    if not wanted:
        raise ConfigError("no service that this program has installed is there")
    lines = []
    for service in wanted:
        lines += _remove(Systemd(), service, systemd.UNIT_DIRECTORY / service.file, paths.ROOTS_CONFIG)
    return lines


def _remove(manager: Systemd, service: Service, unit: Path, configuration: Path) -> list[str]:
    if not check_ours(unit, FOREIGN):
        raise ConfigError(f"there is no {unit}: that service is not installed")
    drop_in = drop_in_of(unit)
    more = check_ours(drop_in, FOREIGN)
    if manager.runs():
        manager.stop(service.unit)
    try:
        if more:
            drop_in.unlink()
            # What somebody else has put there stays.
            with contextlib.suppress(OSError):
                drop_in.parent.rmdir()
        unit.unlink()
    except OSError as error:
        raise CryprqError(f"{unit} cannot be removed: {reason_of(error)}") from None
    lines = [
        f"the service {service.unit} is removed; its keys, configuration and lists stay in {configuration}"
    ]
    if manager.runs():
        manager.read_again()
    else:
        lines.append("no service manager runs here: if you have started it by hand, end it as well")
    return lines


def _remove_plist() -> list[str]:
    file = plist()
    if not check_ours(file, FOREIGN):
        raise ConfigError(f"there is no {file}: the service is not installed")
    end_job(own_job())
    file.unlink()
    return [f"the service is removed; its keys and configuration stay in {paths.config_dir()}"]


def described() -> list[str]:
    """A line for each service, or what to do if there is none."""
    found = [
        (Systemd(), service, systemd.UNIT_DIRECTORY / service.file, user) for service, user in installed()
    ]
    if os.geteuid() != 0:
        with contextlib.suppress(ConfigError):
            if check_ours(own_unit()):
                found.append((Systemd(own=True), OWN_PROXY, own_unit(), "you"))
    if on_macos():
        told = described_daemons()
        if plist().exists():
            told.append(f"{plist()} is there, for launchd; {to_run('status')} says how it is")
        if told:
            return told
    lines = []
    for manager, service, unit, user in found:
        state = manager.describe(service.unit) or "installed, but no service manager runs here"
        place = paths.config_dir() if manager.own else paths.ROOTS_CONFIG
        start = Start.of(unit.read_text())
        lines.append(f"{service.unit}: {state}")
        lines.append(f"  as {user}, {one_line(start.command[0])}, configuration in {one_line(str(place))}")
    return lines or [f"no service is installed; {to_run('service install --help')} says how"]
