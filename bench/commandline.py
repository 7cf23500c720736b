"""What the benchmarks' command lines have in common: values that are checked before anything starts, and the end.

Each `type=` of argparse here refuses a value with a sentence. What was measured is told also where a contender fails
later: rows of an hour are not lost with the last one.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.lab.net import LabError

ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """The benchmark cannot go on; str() is one sentence for the person who runs it."""


FAILURES = (BenchError, LabError, subprocess.TimeoutExpired)
"""What a contender or its host can do wrong."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


# --- values ---


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def positive(text: str) -> float:
    return _number(text, "above 0", lambda value: value > 0)


def not_negative(text: str) -> float:
    return _number(text, "at least 0", lambda value: value >= 0)


def chance(text: str) -> float:
    return _number(text, "from 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, wanted: str, good: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not good(value):
        raise argparse.ArgumentTypeError(f"must be a number {wanted}, not {text}")
    return value


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """Names with commas between them."""

    def chosen(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in names]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {', '.join(names)}")
        return found

    return chosen


def new_file(text: str) -> Path:
    """One that can be written at the end."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written: it must be a file in a directory that is there"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: permission is missing")
    return path


def checkout(text: str) -> Path:
    """The directory of another version of this program."""
    path = Path(text).resolve()
    if not (path / "cryprq_proxy").is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of this program")
    return path


# --- the end ---


@contextmanager
def told_at_end(rows: Sized, tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` when what is inside has ended, or has failed after the first row was there."""
    try:
        yield
    except FAILURES:
        if len(rows):
            tell()
        raise
    tell()


def run_to_end(run: Callable[[], None]) -> int:
    """The exit code. A failure is a sentence, Ctrl-C is quiet, and SIGTERM unwinds like it, so that neither a process
    nor a namespace outlives this one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except FAILURES as error:
        print(f"Ended early: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
