"""This process, or another one, without a free file descriptor for a while."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Iterator

LIMIT = 512


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, LIMIT), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(1))
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lasting_files(pid: int) -> set[int]:
    """Its descriptors, once the same ones have been open for a while: what it has answered is then closed."""
    looks: list[set[int]] = []
    while len(looks) < 5 or any(look != looks[-1] for look in looks[-5:]):
        looks.append(set(map(int, os.listdir(f"/proc/{pid}/fd"))))
        time.sleep(0.02)
    return looks[-1]


@contextlib.contextmanager
def no_free_files(pid: int) -> Iterator[None]:
    """It can open no further descriptor meanwhile, but in the place of one that it closes."""
    used = lasting_files(pid)
    lowest = next(number for number in itertools.count() if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
