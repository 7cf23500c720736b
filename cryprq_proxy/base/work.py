"""What a part of the program has done and whether something waits for it: what the watchdog looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Work(NamedTuple):
    """A look at one part. `done` grows with each piece of work. `seconds`: how long work that waits may stand still."""

    name: str
    done: int
    waits: bool
    seconds: float


type LookAtWork = Callable[[], Iterable[Work]]


def no_work() -> Iterable[Work]:
    """Of a program that has no parts to look at."""
    return ()
