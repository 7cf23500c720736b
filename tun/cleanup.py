"""`cryprq-proxy cleanup`: undo what killed processes have left, of both roles.

    neither role lives  ->  the journals, last change first  ->  what bears our marks, though no journal names it

The journals name the changes, and each undoer checks its entry before it acts. Where a journal is lost, damaged or not
to be believed, the rest is found by its marks: the header of resolv.conf, the protocol number of rules and routes, the
names of the filter's tables. Kernel settings have no mark, and what they were before is lost with the journal: where
there are other marks, those that stand as we set them are named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from cryprq_proxy.base import leftovers
from cryprq_proxy.errors import ConfigError, CryprqError

from . import exit_network
from .journal import Journal, JournalInUse, Undoer, undo
from .linux import sysctl
from .linux.firewall import nft
from .linux.firewall.lockdown import Lockdown, forget_mark
from .linux.firewall.nft import CLIENT, EXIT
from .linux.resolver.recovery import recover
from .linux.routing.pool_routes import delete_pool_routes
from .linux.routing.routes import delete_ours
from .settings import CLIENT_JOURNAL, EXIT_JOURNAL
from .tunnel import undoers


def clean(state: Path, *, lift: bool = False) -> list[str]:
    """Undo everything, and return in words what it was. Where lockdown is on, its filter stands afterwards, unless it
    is to `lift`.

    Raises CryprqError for what could not be undone, when all else is undone, and ConfigError while a role runs.
    """
    if state.exists() and not state.is_dir():
        raise ConfigError(f"{state}, which should be the state directory, is no directory")
    work = CleaningUp()
    with leftovers.cleaning_up():
        if lift:
            work.try_to(partial(_lift, state))
        known = {
            CLIENT: _undo_journal(work, state / CLIENT_JOURNAL, undoers(state)),
            EXIT: _undo_journal(work, state / EXIT_JOURNAL, exit_network.UNDO),
        }
        by_mark: dict[str, list[Callable[[], str]]] = {
            CLIENT: [partial(_resolver, state), _routing, partial(_client_table, Lockdown(state))],
            EXIT: [_pool_routes, partial(_table, EXIT)],
        }
        for table, steps in by_mark.items():
            found = [work.try_to(step) for step in steps]
            if table == CLIENT:
                # It stays where nothing can be put in its place.
                found.append(leftovers.has_header())
            if any(found) and (left := sysctl.lost_settings(table, known[table])):
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


def _undo_journal(work: CleaningUp, path: Path, how: Mapping[str, Undoer]) -> Collection[str]:
    """Undo what it records. Returns the kernel settings among that, also those that could not be undone.

    Raises JournalInUse.
    """
    if not path.exists():
        return ()
    try:
        with Journal(path) as journal:
            before = journal.entries()
            try:
                undo(journal, how)
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
    return [str(entry.get("name")) for entry in before if entry["kind"] == sysctl.KIND]


def _resolver(state: Path) -> str:
    source = recover(state)
    return f"resolv.conf (from {source})" if source else ""


def _routing() -> str:
    return "routing" if delete_ours() else ""


def _pool_routes() -> str:
    return "routes to clients" if delete_pool_routes() else ""


def _client_table(lockdown: Lockdown) -> str:
    if lockdown.on:
        lockdown.stand()
        return ""
    if leftovers.lockdown():
        # Its file is elsewhere, or somebody has removed it by hand.
        raise ConfigError(
            f"lockdown is on, so the packet filter stands, but {lockdown.file} is not there: name its directory with "
            "--state-dir, or lift the block with --all"
        )
    return _table(CLIENT)


def _lift(state: Path) -> str:
    marked = leftovers.lockdown()
    was_on = Lockdown(state).turn_off()
    if marked:
        forget_mark()
    return "lockdown" if was_on or marked else ""


def _table(table: str) -> str:
    if not nft.exists(table):
        return ""
    nft.remove(table)
    return f"table {table}"
