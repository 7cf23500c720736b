"""No core dumps: a dump holds identities, keys and plaintext, and stays on the disk when the process is gone."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> None:
    """Let no crash of this process write its memory anywhere, and no other process of the same user look into it.

    The limit alone does not hold for a dump that the kernel pipes to a program (core(5)); the flag does. The flag also
    closes ptrace(2) and /proc/PID/mem to all but root, so a debugger attaches as root. Programs that this one starts
    can be dumped again.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
