"""The programs of macOS that system-wide mode is made with, run by one function.

A command says whether it changes anything: what only asks is run by `--dry-run` too. Programs are called by their full
paths, in the C locale, for a limited time, and only the first bytes of what they say are read.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from cryprq_proxy.errors import CryprqError, reason_of

_log = logging.getLogger(__name__)

PATHS: Final[Mapping[str, str]] = {
    "dscacheutil": "/usr/bin/dscacheutil",
    "ifconfig": "/sbin/ifconfig",
    "killall": "/usr/bin/killall",
    "netstat": "/usr/sbin/netstat",
    "pfctl": "/sbin/pfctl",
    "route": "/sbin/route",
    "scutil": "/usr/sbin/scutil",
    "sysctl": "/usr/sbin/sysctl",
}
SECONDS: Final = 10.0
"""For one program."""
MAX_OUTPUT: Final = 4 << 20
"""Bytes of either output that are read; a table of some ten thousand routes fits."""
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
_COMPLAINT: Final = 200
"""Characters of a program's complaint that are told."""


class Command(NamedTuple):
    """What is run: a name of PATHS with its arguments, and the input."""

    argv: tuple[str, ...]
    stdin: str = ""
    changes: bool = True
    """Whether it changes anything."""

    def __str__(self) -> str:
        return " ".join(self.argv)


class ProgramAnswer(NamedTuple):
    """What a program has said, and its exit code."""

    out: str
    err: str = ""
    code: int = 0


type Run = Callable[[Command], ProgramAnswer]
"""Runs a command; raises ProgramError where it cannot be run. A code other than 0 is the caller's."""


class ProgramError(CryprqError):
    """A program is missing, does not end, or refuses what it is to do."""


def asking(*argv: str, stdin: str = "") -> Command:
    """A command that changes nothing."""
    return Command(argv, stdin, changes=False)


def run(command: Command, paths: Mapping[str, str] | None = None) -> ProgramAnswer:
    """Run a program of this machine, from `paths` in place of PATHS; blocks. Raises ProgramError."""
    name, *arguments = command.argv
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                [(paths or PATHS)[name], *arguments],
                input=command.stdin.encode(),
                stdout=out,
                stderr=err,
                timeout=SECONDS,
                check=False,
                env=_ENVIRONMENT,
            )
        except subprocess.TimeoutExpired:
            raise ProgramError(f"`{command}` does not end within {SECONDS:g} s") from None
        except OSError as error:
            raise ProgramError(f"{name} cannot be run: {reason_of(error)}") from error
        texts = []
        for file in (out, err):
            file.seek(0)
            content = file.read(MAX_OUTPUT + 1)
            if len(content) > MAX_OUTPUT:
                raise ProgramError(f"`{command}` says more than {MAX_OUTPUT >> 20} MiB, which is not read")
            texts.append(content.decode("utf-8", "replace"))
    _log.debug("%s: %d", command, done.returncode)
    return ProgramAnswer(texts[0], texts[1], done.returncode)


def ask(run: Run, *argv: str, stdin: str = "") -> str:
    """What a program says that changes nothing; blocks. Raises ProgramError, also where it fails."""
    command = asking(*argv, stdin=stdin)
    answer = run(command)
    if answer.code:
        raise ProgramError(complaint(command, answer))
    return answer.out


def change(run: Run, command: Command) -> ProgramAnswer:
    """Let a program make a change; blocks. Raises ProgramError, also where it fails."""
    answer = run(command)
    if answer.code:
        raise ProgramError(complaint(command, answer))
    return answer


def complaint(command: Command, answer: ProgramAnswer) -> str:
    """One sentence: what failed, and the program's own first line."""
    said = next((line.strip() for line in f"{answer.err}\n{answer.out}".splitlines() if line.strip()), "")
    return f"`{command}` failed: {said[:_COMPLAINT] or f'exit code {answer.code}'}"
