"""How a service is installed: all that can be refused first, then user, configuration, unit, manager."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ...base import paths, systemd
from ...base.deputy import act_as_owner
from ...base.file_access import exists
from ...base.log import one_line
from ...base.owners import ROOT, user_name
from ...base.paths import Role, callers_file, default_control_socket
from ...base.program import to_run, to_run_as_root
from ...base.systemd import Systemd, write
from ...config.exit import load_exit
from ...errors import ConfigError, CryprqError, reason_of
from . import units
from .manager import owner_for, prepare
from .move import NAMES, Carry, carry, gather, has_role, plan
from .ownership import NewOwner, check_givable, give
from .rehearsal import rehearse
from .state import StateOf
from .units import SERVICES, Kind, Service, Start, check_ours, program, unit_text

type Ask = Callable[[str], bool]
"""Asks the person; raises ConfigError where nobody can answer."""

_ACCEPTS: Final = 1 << 16
"""The flag __SO_ACCEPTCON of a socket that listens."""


class Done(NamedTuple):
    """What a person is told: what was done, and the one next line."""

    lines: list[str]
    next: str


# --- of the system ---


class Planned(NamedTuple):
    """An installation of which nothing is to be refused any more."""

    kind: Kind
    user: str
    packets: bool
    carried: Carry | None
    flights: StateOf
    ready: bool
    """Whether the role can start."""
    called: Path
    hidden: list[Path]

    @property
    def service(self) -> Service:
        return SERVICES[self.kind]

    @property
    def unit(self) -> Path:
        return systemd.UNIT_DIRECTORY / self.service.file


def install_system(kind: Kind | None, source: Path | None, packets: bool, ask: Ask) -> Done:
    """Raises CryprqError; then nothing is lost, and a second call goes on."""
    if os.geteuid() != 0:
        raise ConfigError(
            f"a service of the system is root's: {to_run_as_root(f'service install {kind or "exit"}')}; a proxy for "
            f"yourself alone needs no root: {to_run('service install proxy --user')}"
        )
    manager = Systemd()
    planned = _plan(kind or _guess(source or paths.ROOTS_CONFIG), source, packets, manager, ask)
    _ask_before_tunnel(planned, ask)
    owner = owner_for(planned.user)
    lines = _hand_over(planned, owner)
    lines += _begin(planned, _place_units(planned), owner, manager)
    lines += [
        f"note: the service runs what is in {part}, which {user_name(part.stat().st_uid)} can change"
        for part in planned.hidden
        if part.stat().st_uid != 0
    ]
    return Done(lines, next_line(planned.kind, planned.ready))


def _plan(kind: Kind, source: Path | None, packets: bool, manager: Systemd, ask: Ask) -> Planned:
    """All that can be refused is refused here, and nothing is changed. Raises ConfigError."""
    service, target = SERVICES[kind], paths.ROOTS_CONFIG
    if packets and kind != "exit":
        raise ConfigError("--tun belongs to an exit; the client of system-wide mode is: service install tun")
    unit = systemd.UNIT_DIRECTORY / service.file
    check_ours(unit)
    packets = check_ours(drop_in_of(unit)) or packets
    _check_directory(systemd.UNIT_DIRECTORY)
    what = _to_carry(service.role, source, target, ask)
    packets = packets or _wants_packets(service.role, what, target)
    user = "root" if packets else service.user
    _check_neighbours(kind, user)
    called = program()
    hidden = units.hidden_parts(called)
    if manager.runs() or user != "root":
        # Only a manager shows a service what lies below a closed directory, and takes root's right to pass by that.
        units.check_readable(called, hidden if manager.runs() else [], user)
    refuse_running(service, what, manager)
    for directory in (target, paths.ROOTS_STATE):
        check_givable(directory, _uids("cryprq") | {ROOT})
    flights = StateOf(what.source if what is not None and service.role == "exit" else None)
    ready = service.role == "exit" or what is not None or has_role(target, service.role)
    return Planned(kind, user, packets, what, flights, ready, called, hidden)


def _ask_before_tunnel(planned: Planned, ask: Ask) -> None:
    """Raise CryprqError unless the person agrees that this machine's traffic goes through the exit from now on."""
    if (
        planned.kind == "tun"
        and planned.ready
        and not ask(
            "from the start of this service on all traffic of this machine goes through the exit, and connections from "
            "outside end, as by ssh, if `inbound` in the configuration does not keep them. Start it?"
        )
    ):
        raise CryprqError("nothing was changed")


def _hand_over(planned: Planned, owner: NewOwner) -> list[str]:
    """Give configuration and state to the service's user, with what somebody has tried. Raises CryprqError."""
    what, before = planned.carried, _uids("cryprq")
    # The first flights come before the keys: no exit has the keys and not them.
    planned.flights.place(owner, before)
    kept = None if what is None else carry(what, owner)
    give(paths.ROOTS_CONFIG, owner, before)
    if what is not None and len(what.removed) == len(what.files):
        planned.flights.remove()
    return _moved(what, kept)


def _place_units(planned: Planned) -> Start:
    """Write unit and drop-in. Returns how they start the program. Raises CryprqError."""
    texts = [unit_text(planned.service, planned.called, planned.hidden)]
    place(planned.unit, texts[0])
    if planned.packets:
        texts.append(units.exit_tun_text(planned.called))
        place(drop_in_of(planned.unit), texts[1])
    return Start.of(*texts)


def _begin(planned: Planned, start: Start, owner: NewOwner, manager: Systemd) -> list[str]:
    """Start the service, or say how without a manager. Raises CryprqError."""
    name = planned.service.unit
    if not manager.runs():
        prepare(start, owner)
        return [
            f"{planned.unit} is written, but no service manager runs here. Start it by hand, as root, with:",
            f"  {start.by_hand()}",
        ]
    manager.read_again()
    if planned.ready:
        manager.start(name)
        return [f"the service {name} runs, and starts with this machine"]
    manager.enable(name)
    return [f"the service {name} is installed, and starts once this machine has joined an exit"]


def _guess(directory: Path) -> Kind:
    """By the one role that has files there, or in the directory of the person who called sudo."""
    roles: tuple[Role, Role] = ("exit", "client")
    found = [role for role in roles if has_role(directory, role)]
    found = found or [role for role in roles if callers_file(*NAMES[role])]
    if len(found) != 1:
        raise ConfigError(f"say which service: {to_run('service install exit')}, proxy or tun")
    return "exit" if found[0] == "exit" else "proxy"


def drop_in_of(unit: Path) -> Path:
    """What lets the exit carry packets; of other units there is none."""
    return unit.with_name(f"{unit.name}.d") / "cryprq-tun.conf"


def _check_directory(directory: Path) -> None:
    if not os.access(directory, os.W_OK):
        what = "cannot be written" if directory.is_dir() else "does not exist"
        raise ConfigError(
            f"{directory}, where units are, {what}: this system takes its services from elsewhere"
        )


def _to_carry(role: Role, source: Path | None, target: Path, ask: Ask) -> Carry | None:
    """What comes from `source`, or without one from the person who called sudo if root has nothing yet."""
    if source is None:
        if has_role(target, role) or os.path.lexists(target / "identity"):
            _check_valid(target, role)
            return None
        found = callers_file(*NAMES[role])
        if found is None and role == "exit" and not callers_file("client.toml"):
            # It was tried without inviting anybody.
            found = callers_file("identity")
        return None if found is None else _rehearsed(plan(found.parent, target, role), role)
    source = Path(os.path.abspath(source))
    if not source.is_dir():
        raise ConfigError(
            f"{source} is no directory: --from names that of a configuration, like ~/.config/cryprq"
        )
    if os.path.realpath(source) == os.path.realpath(target):
        raise ConfigError(f"{target} is where services look already: call it without --from")
    _check_callers(source)
    what = _rehearsed(plan(source, target, role), role)
    if target.is_dir() and any(target.iterdir()):
        if used := [service.unit for service, _ in installed() if service.role != role]:
            raise ConfigError(
                f"{target} holds the keys of the service {used[0]}: {to_run('service uninstall')} first, or let this "
                "one have keys of its own there and join anew"
            )
        if not ask(
            f"{target} has a configuration already, which would be kept beside it. Replace it by {source}?"
        ):
            raise CryprqError("nothing was changed")
    return what


def _rehearsed(what: Carry, role: Role) -> Carry:
    rehearse(what.files, what.source, what.target, role)
    return what


def _check_callers(source: Path) -> None:
    """Raise ConfigError for the directory of a third user: who calls sudo moves what is theirs or root's."""
    owner, caller = source.stat().st_uid, os.environ.get("SUDO_USER", "root")
    if caller != "root" and user_name(owner) not in (caller, "root"):
        raise ConfigError(
            f"{source} belongs to the user {user_name(owner)}, and {caller} calls: let that user do it"
        )


def _check_valid(target: Path, role: Role) -> None:
    """Raise ConfigError if what root has there is damaged."""
    act_as_owner(target, everywhere=False)
    if role == "exit" or exists(target / "client.toml", "the configuration"):
        rehearse(gather(target, target, role)[1], target, target, role)


def _wants_packets(role: Role, what: Carry | None, target: Path) -> bool:
    if role != "exit":
        return False
    file = (target if what is None else what.source) / "exit.toml"
    return file.exists() and load_exit(file).tun.enabled


def installed() -> Iterator[tuple[Service, str]]:
    """The services of the system that were installed by this program, and the user of each."""
    for service in SERVICES.values():
        file = systemd.UNIT_DIRECTORY / service.file
        try:
            ours = check_ours(file)
        except ConfigError:
            continue
        if ours:
            texts = [path.read_text() for path in (file, drop_in_of(file)) if path.exists()]
            yield service, Start.of(*texts).user


def _check_neighbours(kind: Kind, user: str) -> None:
    """Raise ConfigError if another service has the same directory as another user."""
    for service, other in installed():
        if service != SERVICES[kind] and other != user:
            raise ConfigError(
                f"the service {service.unit} runs as {other} and has its keys in {paths.ROOTS_CONFIG}, which this one "
                f"would have as {user}: one machine has one of the two; {to_run('service uninstall')} ends the other"
            )


def refuse_running(service: Service, what: Carry | None, manager: Systemd) -> None:
    """Raise ConfigError if the role runs by hand: its keys are not taken from under it, and both want the same port."""
    if manager.is_active(service.unit):
        return
    name = f"{service.role}.sock"
    sockets = [default_control_socket(service.role)]
    if what is not None:
        uid = what.source.stat().st_uid
        sockets += [what.source / name, Path(f"/run/user/{uid}/cryprq/{name}")]
    listening = _listening()
    for socket in sockets:
        if str(socket) in listening:
            raise ConfigError(f"the {service.role} runs by hand, with {socket}: end it first, as with Ctrl-C")


def _listening() -> set[str]:
    """The paths of all Unix sockets on which somebody listens (proc(5)). Root connects to none that a user has made."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    found = (line.split(maxsplit=7) for line in lines[1:])
    return {words[7] for words in found if len(words) == 8 and int(words[3], 16) & _ACCEPTS}


def _uids(user: str) -> frozenset[int]:
    try:
        return frozenset({pwd.getpwnam(user).pw_uid})
    except KeyError:
        return frozenset()


def place(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(mode=0o755, exist_ok=True)
        write(file, text)
    except OSError as error:
        raise CryprqError(f"{file} cannot be written: {reason_of(error)}") from None


def _moved(what: Carry | None, kept: Path | None) -> list[str]:
    if what is None:
        return []
    lines = [f"{one_line(what.names)}: carried from {one_line(str(what.source))} to {what.target}"]
    if len(what.removed) < len(what.files):
        lines.append(f"what the other role uses stays in {one_line(str(what.source))} as well")
    if kept is not None:
        lines.append(f"what was in {what.target} is in {kept}")
    return lines


def next_line(kind: Kind, ready: bool) -> str:
    run = to_run_as_root if os.environ.get("SUDO_USER") else to_run
    if kind == "exit":
        return run("invite laptop")
    if not ready:
        return run("join 'cryprq://...#...'")
    return to_run("check")
