"""A network's state as text: what the program may change, and must have put back in the end.

Counters, lifetimes and ages are left out, so that two snapshots of the same state are the same text.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_VOLATILE = re.compile(r" (?:expires|valid_lft|preferred_lft|age) -?\w+")
_COMMANDS = (
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "-o", "addr"),
    ("nft", "-s", "list", "ruleset"),
    ("sh", "-c", "stat -c '%N: %F, %a, %u:%g' /etc/resolv.conf; cat /etc/resolv.conf || :"),
)


def snapshot(run: Callable[[Sequence[str]], str]) -> str:
    """Rules, routes, addresses, filter, resolver and sysctls of the namespace of `run` and of this thread, as text."""
    parts = [f"## {shlex.join(command)}\n{_VOLATILE.sub('', run(command))}" for command in _COMMANDS]
    return "\n".join([*parts, "## sysctl", *_sysctls()])


def _sysctls() -> Iterator[str]:
    for root in ("ipv4", "ipv6", "core"):
        for path in sorted(Path("/proc/sys/net", root).rglob("*")):
            with contextlib.suppress(OSError):  # some are only written, some have no value yet
                if path.is_file():
                    yield f"{path.relative_to('/proc/sys')} = {path.read_text().strip()}"
