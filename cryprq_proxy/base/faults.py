"""Faults of this program in what the event loop calls.

asyncio logs what a callback raises, and goes on. A socket whose reader has raised is still readable, so the loop calls
the reader again at once, for ever; a timer that has raised is not set again; and who waits for the callback's word
waits in vain. So each such callback catches at its edge, reports the fault here, and gives up the one thing that it was
busy with:

    try:
        self._read()
    except Exception as error:  # noqa: BLE001  a fault: see base/faults.py
        report_fault("ends a connection", error)
        self.close()

Where something ends in several steps, each step runs although another one failed: `with contained("..."):`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CryprqError, LocalError

_log = logging.getLogger(__name__)


def report_fault(effect: str, error: Exception) -> None:
    """Log an unexpected exception with its traceback. `effect` says in the present tense what is given up for it."""
    _log.error("a fault in this program %s", effect, exc_info=error)


@contextmanager
def contained(effect: str) -> Iterator[None]:
    """One step of several: report what it raises, and let the next one run."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  see the head of the file
        report_fault(effect, error)


def is_fault(error: BaseException) -> bool:
    """Whether it is a fault of this program, and not an answer to what a peer or a person did."""
    return isinstance(error, Exception) and (
        isinstance(error, LocalError) or not isinstance(error, CryprqError)
    )


class Faults:
    """The faults of a callback that goes on after them: the first one is logged, all are counted."""

    __slots__ = ("_effect", "count")

    def __init__(self, effect: str) -> None:
        self._effect = effect
        self.count = 0

    def report(self, error: Exception) -> None:
        self.count += 1
        if self.count == 1:
            report_fault(self._effect, error)
