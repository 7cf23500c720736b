"""Asks a program of macOS that every user may run, from every part of the program. It changes nothing."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from typing import Final

SCUTIL: str = "/usr/sbin/scutil"
PFCTL: str = "/sbin/pfctl"
SYSCTL: str = "/usr/sbin/sysctl"
SECONDS: Final = 5.0
"""For one program."""
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


def said(argv: Sequence[str], stdin: str = "") -> str | None:
    """What a program says, without the space around; None where it cannot be run or does not end.

    Its exit code says nothing: pfctl may call an anchor without rules an error.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            env=_ENVIRONMENT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def boot_session() -> str:
    """The kernel's id of this boot; empty where it is not told."""
    try:
        return _boot_session()
    except _Untold:
        return ""


class _Untold(Exception):
    """Not kept by the cache: it is asked for again."""


@functools.cache
def _boot_session() -> str:
    # A process does not outlive its boot, so it asks once.
    if session := said([SYSCTL, "-n", "kern.bootsessionuuid"]):
        return session
    raise _Untold
