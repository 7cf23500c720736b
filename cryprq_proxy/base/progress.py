"""Progress of slow work: a bar on standard error if that is a terminal.

    with bar("reading lists") as report:
        load_rules(rules, default, progress=report)

Pipes, logs and the journal get nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

type Report = Callable[[int, int], None]
"""Called with how much is done, and the total; total 0 means unknown."""
type Progress = AbstractContextManager[Report]


def unseen(_: str) -> Progress:
    """An invisible bar."""
    return _nothing()


@contextmanager
def _nothing() -> Iterator[Report]:
    yield lambda done, total: None


def bar(what: str) -> Progress:
    """A bar that counts bytes, with the label `what`; it disappears at the end."""
    return _shown(what) if sys.stderr.isatty() else _nothing()


@contextmanager
def _shown(what: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)
