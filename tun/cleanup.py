"""`cryprq-proxy cleanup`: undo what killed processes have left, of both roles.

The journals name the changes, and each undoer checks its entry before it acts. Filter tables and routing rules bear
names and numbers of ours: they are found and removed even where a journal is lost.
"""

from __future__ import annotations

from pathlib import Path

from cryprq_proxy.errors import CryprqError

from . import exit_network
from .firewall import nft
from .firewall.nft import CLIENT, EXIT
from .journal import Journal, undo
from .routing import routes
from .routing.route_rules import FIRST, LAST, TABLE
from .settings import CLIENT_JOURNAL, EXIT_JOURNAL
from .tunnel import undoers


def clean(state: Path) -> list[str]:
    """Undo everything, and return in words what it was.

    Raises CryprqError for what could not be undone, and ConfigError while a role runs.
    """
    done: list[str] = []
    failed: list[str] = []
    undoing = {CLIENT_JOURNAL: undoers(state), EXIT_JOURNAL: exit_network.UNDO}
    for name, how in undoing.items():
        if not (state / name).exists():
            continue
        with Journal(state / name) as journal:
            kinds = list(dict.fromkeys(entry["kind"] for entry in reversed(journal.entries())))
            try:
                undo(journal, how)
            except CryprqError as error:
                failed.append(str(error))
            done += kinds
    try:
        routes.undo_routing({"table": TABLE, "first": FIRST, "last": LAST})
    except CryprqError as error:
        failed.append(str(error))
    try:
        for table in (CLIENT, EXIT):
            if nft.exists(table):
                nft.remove(table)
                done.append(f"table {table}")
    except CryprqError as error:
        failed.append(str(error))
    if failed:
        raise CryprqError("; ".join(failed))
    return done
