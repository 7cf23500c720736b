"""`cryprq-proxy cleanup`: undo what killed processes have left, of both roles.

    neither role lives  ->  the journals, last change first  ->  what bears our marks, though no journal names it

The journals name the changes, and each undoer checks its entry before it acts. Where a journal is lost, damaged or not
to be believed, the rest is found by its marks: the header of resolv.conf, the protocol number of rules and routes, the
names of the filter's tables. Only kernel settings have no mark; what they were before is lost with the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.paths import ROLES
from cryprq_proxy.errors import CryprqError

from . import exit_network, sysctl
from .exit_kernel import FORWARD4
from .firewall import nft
from .firewall.nft import CLIENT, EXIT
from .journal import Journal, JournalInUse, undo
from .resolver.recovery import recover
from .routing.routes import delete_ours
from .settings import CLIENT_JOURNAL, EXIT_JOURNAL
from .tunnel import undoers


def clean(state: Path) -> list[str]:
    """Undo everything, and return in words what it was.

    Raises CryprqError for what could not be undone, when all else is undone, and ConfigError while a role runs.
    """
    undoing = {CLIENT_JOURNAL: undoers(state), EXIT_JOURNAL: exit_network.UNDO}
    work = CleaningUp()
    with ExitStack() as stack:
        for role in ROLES:
            stack.enter_context(leftovers.claimed(role))
        for name, how in undoing.items():
            if not (state / name).exists():
                continue
            try:
                with Journal(state / name) as journal:
                    kinds = dict.fromkeys(entry["kind"] for entry in reversed(journal.entries()))
                    work.try_to(partial(undo, journal, how))
                    left = {entry["kind"] for entry in journal.entries()}
                    work.undone += [kind for kind in kinds if kind not in left]
            except JournalInUse:
                raise
            except CryprqError as error:
                work.failed.append(str(error))
        work.try_to(partial(_resolver, state))
        work.try_to(_routing)
        for table in (CLIENT, EXIT):
            work.try_to(partial(_table, table))
    if work.failed:
        done = f" (undone: {', '.join(work.undone)})" if work.undone else ""
        raise CryprqError("; ".join(work.failed) + done)
    return work.undone


class CleaningUp:
    """What was undone, and what could not be."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.failed: list[str] = []

    def try_to(self, step: Callable[[], str | None]) -> None:
        """`step` returns what it has undone, in words."""
        try:
            if done := step():
                self.undone.append(done)
        except CryprqError as error:
            self.failed.append(str(error))


def _resolver(state: Path) -> str:
    source = recover(state)
    return f"resolv.conf (from {source})" if source else ""


def _routing() -> str:
    return "routing" if delete_ours() else ""


def _table(table: str) -> str:
    if not nft.exists(table):
        return ""
    nft.remove(table)
    if table == EXIT and sysctl.is_on(FORWARD4):
        raise CryprqError(
            "the exit's table is removed, but its journal is gone, so nobody knows whether this machine forwarded "
            f"packets before: if it is no router, call: sysctl -w {FORWARD4}=0"
        )
    return f"table {table}"
