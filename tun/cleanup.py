"""`cryprq-proxy cleanup`: undo what killed processes have left, of both roles.

    neither role lives  ->  the journals, last change first  ->  what bears our marks, though no journal names it

The journals name the changes, and each undoer checks its entry before it acts. Where a journal is lost, damaged or not
to be believed, the rest is found by its marks (Undo.by_mark in system.py). Kernel settings have no mark, and what they
were before is lost with the journal: where there are other marks, those that stand as we set them are named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import ConfigError, CryprqError

from .journal import Journal, JournalInUse, undo
from .settings import CLIENT_JOURNAL, EXIT_JOURNAL
from .system import System, Undo

_JOURNALS: Final[tuple[tuple[Role, str], ...]] = (("client", CLIENT_JOURNAL), ("exit", EXIT_JOURNAL))


def clean(system: System, state: Path, *, lift: Callable[[], str] | None = None) -> list[str]:
    """Undo everything, and return in words what it was. Where lockdown is on, its filter stands afterwards, unless
    `lift` ends it, which returns what it has lifted.

    Raises CryprqError for what could not be undone, when all else is undone, and ConfigError while a role runs.
    """
    if state.exists() and not state.is_dir():
        raise ConfigError(f"{state}, which should be the state directory, is no directory")
    work = CleaningUp()
    with leftovers.cleaning_up():
        if lift is not None:
            work.try_to(lift)
        how = {role: system.undo(role, state) for role, _ in _JOURNALS}
        known = {role: _undo_journal(work, state / file, how[role]) for role, file in _JOURNALS}
        for role, _ in _JOURNALS:
            found = [work.try_to(step) for step in how[role].by_mark]
            if (any(found) or how[role].stands()) and (left := how[role].lost(known[role])):
                work.failed.append(left)
    if work.failed:
        done = f" (undone: {', '.join(work.undone)})" if work.undone else ""
        raise CryprqError("; ".join(work.failed) + done)
    return work.undone


class CleaningUp:
    """What was undone, and what could not be."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.failed: list[str] = []

    def try_to(self, step: Callable[[], str]) -> bool:
        """`step` returns what it has undone, in words. Returns whether that is anything."""
        try:
            done = step()
        except CryprqError as error:
            self.failed.append(str(error))
            return False
        if done:
            self.undone.append(done)
        return bool(done)


def _undo_journal(work: CleaningUp, path: Path, how: Undo) -> Collection[str]:
    """Undo what it records. Returns the kernel settings among that, also those that could not be undone.

    Raises JournalInUse.
    """
    if not path.exists():
        return ()
    try:
        with Journal(path) as journal:
            before = journal.entries()
            try:
                undo(journal, how.undoers)
            except CryprqError as error:
                work.failed.append(str(error))
            left = {entry["kind"] for entry in journal.entries()}
    except JournalInUse:
        raise
    except CryprqError as error:
        work.failed.append(str(error))
        return ()
    work.undone += [
        kind for kind in dict.fromkeys(entry["kind"] for entry in reversed(before)) if kind not in left
    ]
    return [str(entry.get("name")) for entry in before if entry["kind"] == how.settings]
