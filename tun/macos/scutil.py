"""What scutil(8) reads and says: commands on its input, and a dictionary of the dynamic store as text.

    <dictionary> {
      DomainName : home.example
      ServerAddresses : <array> {
        0 : 192.168.1.1
      }
    }

It says failures on its output and exits with 0 all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from cryprq_proxy.base.macos_marks import NO_KEY

from .programs import Command, ProgramError, Run, ask, change

type StoredValue = str | list[str] | dict[str, StoredValue]

MAX_LINES: Final = 4096
"""Of one answer."""
MAX_DEPTH: Final = 8
_SHOWN: Final = 80
_ENTRY: Final = re.compile(r"(.+?) :(?: (.*))?")
_DICTIONARY: Final = "<dictionary> {"
_ARRAY: Final = "<array> {"


def show(run: Run, key: str) -> dict[str, StoredValue] | None:
    """The dictionary under `key`, None where there is none; blocks. Raises ProgramError, also for an answer that is
    not understood."""
    said = ask(run, "scutil", stdin=f"show {key}\nquit\n").strip()
    return None if said == NO_KEY else parse(said)


def set_key(run: Run, key: str, values: Mapping[str, Sequence[str]]) -> None:
    """Put this dictionary under `key`; each value is one of d.add's, types included. Blocks. Raises ProgramError."""
    added = [f"d.add {name} {' '.join(words)}" for name, words in values.items()]
    _change(run, "\n".join(["d.init", *added, f"set {key}", "quit", ""]))


def remove(run: Run, key: str) -> None:
    """Remove `key`, if it is there; blocks. Raises ProgramError."""
    _change(run, f"remove {key}\nquit\n")


def _change(run: Run, stdin: str) -> None:
    said = change(run, Command(("scutil",), stdin)).out.strip()
    if said and said != NO_KEY:
        raise ProgramError(f"scutil refuses the change: {said.splitlines()[0][:_SHOWN]}")


def parse(text: str) -> dict[str, StoredValue]:
    """The dictionary that scutil shows as `text`. Raises ProgramError for anything else."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines or lines[0] != _DICTIONARY or len(lines) > MAX_LINES:
        raise _unknown(lines[0] if lines else "")
    top: dict[str, StoredValue] = {}
    open_: list[dict[str, StoredValue] | list[str]] = [top]
    for line in lines[1:]:
        if not open_:
            raise _unknown(line)
        if line == "}":
            open_.pop()
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is None or len(open_) > MAX_DEPTH:
            raise _unknown(line)
        inner = _add(open_[-1], entry[1], entry[2] or "")
        if inner is not None:
            open_.append(inner)
    if open_:
        raise _unknown(lines[-1])
    return top


def _add(
    into: dict[str, StoredValue] | list[str], name: str, value: str
) -> dict[str, StoredValue] | list[str] | None:
    """Returns what the next lines are of, if `value` opens something."""
    opened: dict[str, StoredValue] | list[str] | None = None
    if value == _DICTIONARY:
        opened = {}
    elif value == _ARRAY:
        opened = []
    if isinstance(into, dict):
        into[name] = value if opened is None else opened
    elif opened is None:
        into.append(value)
    # What stands in an array of dictionaries is read, and left out.
    return opened


def _unknown(line: str) -> ProgramError:
    return ProgramError(f"scutil answers what this program does not understand: {line[:_SHOWN]!r}")


_NAMESERVER: Final = re.compile(r"\s*nameserver\[\d+\] : (\S+)")


def nameservers(run: Run) -> list[str]:
    """The servers of all resolvers, as `scutil --dns` lists them; blocks. Raises ProgramError."""
    return [
        found[1] for line in ask(run, "scutil", "--dns").splitlines() if (found := _NAMESERVER.match(line))
    ]
