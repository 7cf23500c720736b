"""Which services there are, and the text of their units: the samples of configs/ with the path of this program.

The samples confine a service, and so hide home directories from it. Where the program is in one, the unit shows the
service what belongs to the program and nothing else of it.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ...base import package_data
from ...base.owners import user_name
from ...base.paths import Role, read_text
from ...base.program import PROGRAM
from ...errors import ConfigError

type Kind = Literal["exit", "proxy", "tun"]

MARK: Final = (
    f"# Written by `{PROGRAM} service install`. What you change belongs into a drop-in: systemctl edit"
)
LABEL: Final = "org.cryprq.proxy"
"""What launchd calls the service."""
_LABELS: Final = "<string>org.cryprq."
_SAMPLE_PROGRAM: Final = "/opt/cryprq-proxy/.venv/bin/cryprq-proxy"
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome= hides (systemd.exec(5))."""
_ACCOUNTS: Final = Path("/Users")
_PRIVATE: Final = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents", "Library/CloudStorage")
"""What macOS shows to no program in the background, in a home directory; the last two are clouds."""
_FLEETING: Final = (Path("/tmp"), Path("/var/tmp"))
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:")


class Service(NamedTuple):
    """One kind of service. `user` is the one that it runs as, "" for the person whose own service it is."""

    unit: str
    sample: str
    role: Role
    user: str

    @property
    def file(self) -> str:
        return f"{self.unit}.service"


SERVICES: Final[dict[Kind, Service]] = {
    "exit": Service("cryprq-exit", "cryprq-exit.service", "exit", "cryprq"),
    "proxy": Service("cryprq-proxy", "cryprq-proxy.service", "client", "cryprq"),
    "tun": Service("cryprq-client-tun", "cryprq-client-tun.service", "client", "root"),
}
OWN_PROXY: Final = Service("cryprq-proxy", "cryprq-proxy-user.service", "client", "")
_EXIT_TUN: Final = "cryprq-exit-tun.conf"


# --- the program ---


def program() -> Path:
    """The absolute path by which a manager starts this program. Raises ConfigError."""
    called = Path(os.path.abspath(sys.argv[0]))
    if called.name != PROGRAM:
        called = Path(sys.executable).with_name(PROGRAM)
    if not os.access(called, os.X_OK):
        raise ConfigError(
            f"a service needs the program {PROGRAM} as a file, and {called} is none: install it first"
        )
    if not str(called).isprintable() or "$" in str(called):
        raise ConfigError(
            f"the path of the program, {str(called)!a}, holds characters that no unit takes: move it"
        )
    if hidden := [place for place in _FLEETING if called.is_relative_to(place)]:
        raise ConfigError(
            f"{called} is in {hidden[0]}, which services do not see: install the program elsewhere, as in /opt"
        )
    return called


def hidden_parts(called: Path) -> list[Path]:
    """What of the program lies in home directories."""
    hidden = sorted(part for part in _parts(called) if any(part.is_relative_to(home) for home in _HOMES))
    return [
        part for part in hidden if not any(part != other and part.is_relative_to(other) for other in hidden)
    ]


def _parts(called: Path) -> set[Path]:
    """Script, environment, interpreter and package."""
    package = Path(__file__).parents[3]
    parts = {
        called,
        called.resolve(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.base_prefix).resolve(),
    }
    if not package.is_relative_to(sys.prefix):
        parts.add(package)
    return parts


def check_open(called: Path) -> None:
    """Raise ConfigError if macOS lets no service of launchd read the program: documents of a person are open to what
    that person starts alone, so not to root's services either."""
    for part in sorted(_parts(called)):
        homes = {Path.home(), *(part.parents[-3:-2] if part.is_relative_to(_ACCOUNTS) else ())}
        for place in (home / name for home in homes for name in _PRIVATE):
            # File systems of macOS know no case.
            if Path(str(part).casefold()).is_relative_to(str(place).casefold()):
                raise ConfigError(
                    f"{part} is in {place}, which macOS shows to no service: move the program elsewhere, as to "
                    f"~/{PROGRAM}, and run make venv there"
                )


def check_readable(called: Path, hidden: Sequence[Path], user: str) -> None:
    """Raise ConfigError if `user`, of a service without the right to pass by permissions, cannot run the program. A
    part that is hidden is shown to the service under its own name, so what lies above it does not count."""
    for part in {called.resolve(), Path(sys.prefix).resolve(), Path(__file__).parents[2]}:
        tops = [top for top in hidden if part.is_relative_to(top.resolve())]
        for step in (part, *part.parents):
            if tops and not any(step.is_relative_to(top.resolve()) for top in tops):
                break
            status, wanted = step.stat(), stat.S_IXOTH | (stat.S_IROTH if step == part else 0)
            mode = status.st_mode >> 6 if user_name(status.st_uid) == user else status.st_mode
            if mode & wanted != wanted:
                raise ConfigError(
                    f"the user of the service cannot use the program, as {step} is closed to others: "
                    f"run: chmod o+rX {shlex.quote(str(step))}"
                )


# --- the text ---


def unit_text(service: Service, called: Path, hidden: Sequence[Path] = ()) -> str:
    return _with_program(package_data.read(service.sample), called, hidden)


def exit_tun_text(called: Path) -> str:
    """The drop-in by which the exit carries packets."""
    return _with_program(package_data.read(_EXIT_TUN), called, ())


def _with_program(sample: str, called: Path, hidden: Sequence[Path]) -> str:
    """The sample without its head, which tells how to place it by hand."""
    _, _, body = sample.partition("\n\n")
    body = body.replace(f"={_SAMPLE_PROGRAM}", f"={quoted(str(called))}")
    if hidden:
        shown = "\n".join(f"BindReadOnlyPaths={quoted(str(part))}" for part in hidden)
        body = body.replace(
            "ProtectHome=yes",
            f"# The program is there, and nothing else is shown.\nProtectHome=tmpfs\n{shown}",
        )
    return f"{MARK}\n\n{body}"


def quoted(word: str) -> str:
    """One word of a unit (systemd.syntax(7)); the percent sign would begin a specifier."""
    word = word.replace("%", "%%")
    if set(word) <= _PLAIN | {"%"}:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def plist_text(called: Path, log: Path) -> str:
    """For launchd of macOS: the proxy of one user, started at the login and again when it fails."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [str(called)],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": 10_240},
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
            "Umask": 0o077,
        }
    ).decode()


# --- the files ---


def check_ours(file: Path, remedy: str = "move it away first") -> bool:
    """Whether there is a unit of ours at `file`. Raises ConfigError if there is another one; `remedy` says what a
    person may do about it."""
    if not os.path.lexists(file):
        return False
    if file.is_symlink() and os.readlink(file) == os.devnull:
        raise ConfigError(f"{file.name} is masked; run: systemctl unmask {file.name}")
    text, _ = read_text(file, "the unit")
    if not text.startswith(MARK) and _LABELS not in text:
        raise ConfigError(
            f"{file} was not written by `{PROGRAM} service install`, so it is left alone: {remedy}"
        )
    return True


class Start(NamedTuple):
    """How a unit starts its program: what somebody needs who starts it without a manager."""

    command: list[str]
    environment: list[str]
    user: str
    directories: list[Path]

    @classmethod
    def of(cls, *texts: str) -> Start:
        """Of a unit with its drop-ins; the last value counts, and an empty one takes back those before."""
        found: dict[str, list[str]] = {}
        for line in "\n".join(texts).splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found[key] = [] if not value else [*found.get(key, []), value]
        words = [word.replace("%%", "%") for word in shlex.split(found["ExecStart"][-1])]
        places = {"RuntimeDirectory": Path("/run"), "StateDirectory": Path("/var/lib")}
        return cls(
            words,
            [pair for value in found.get("Environment", []) for pair in shlex.split(value)],
            found.get("User", ["root"])[-1],
            [
                base / name
                for key, base in places.items()
                for value in found.get(key, [])
                for name in value.split()
            ],
        )

    def by_hand(self) -> str:
        """One command line for a shell of root, or of the person whose own service it is."""
        words = [*(("env", *self.environment) if self.environment else ()), *self.command]
        line = shlex.join(words)
        return (
            line
            if self.user == "root"
            else f"setpriv --reuid={self.user} --regid={self.user} --init-groups {line}"
        )
