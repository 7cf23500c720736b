"""What a Unix socket at a path is on Linux, and on other systems."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

ASKED_AGAIN: Final = 6
ASK_SECONDS: Final = 0.1
"""More in all than a full queue of the control socket takes until it has room (control.CROWDED_TIMEOUT)."""


def bind_closed(listener: socket.socket, path: str) -> None:
    """Bind with the mode 0600, so that the file is never open to others. Raises OSError."""
    if sys.platform == "linux":
        # The file has the mode of the socket.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        return
    # A socket has no mode. What another thread makes meanwhile is closed to others too.
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)


def may_be_full(ask: Callable[[], None]) -> bool:
    """Whether a process may listen at a socket that has refused a connection: only Linux tells a full queue from a
    socket of nobody. `ask` connects once more, or raises OSError."""
    if sys.platform == "linux":
        return False
    for _ in range(ASKED_AGAIN):
        time.sleep(ASK_SECONDS)
        try:
            ask()
        except ConnectionRefusedError:
            continue
        except FileNotFoundError:
            return False
        return True
    return False
