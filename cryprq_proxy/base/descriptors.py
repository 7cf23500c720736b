"""The file descriptors of this process: how many it may have, what streams may take, and the times without a free one.

At an exit one half is for strangers and handshakes, the other for streams, but for RESERVE: links, the control socket,
listeners, files and netlink. Every part of the program goes on without a free descriptor: the attempt fails, and is
tried again later. SHORTAGE says so once a minute for all of them together.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable
from typing import Final

from ..errors import reason_of
from .clock import clock

_log = logging.getLogger(__name__)

RESERVE: Final = 128
LOG_SECONDS: Final = 60.0
"""Between two lines in the log."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when this process, or the machine, has no descriptor or no memory left."""
_UNLIMITED: Final = 1 << 20
_LEAST: Final = 16


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)


def one_is_free() -> bool:
    """Whether there is a free descriptor now; a shortage is noted."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in EXHAUSTED:
            SHORTAGE.note(error)
            return False
    return True


def for_streams() -> int:
    """How many descriptors the streams of all peers may hold at an exit."""
    return max(_LEAST, limit() // 2 - RESERVE)


def for_applications() -> int:
    """How many applications may be connected to the proxy: each may need a second descriptor, for a direct connection
    or for UDP."""
    return max(_LEAST, (limit() - for_direct() - RESERVE) // 2)


def for_direct() -> int:
    """How many descriptors direct connections may hold together beyond the second one of each application."""
    return max(_LEAST, limit() // 8)


class Shortage:
    """Counts failures for want of a descriptor, and logs the first one and then at most one line in LOG_SECONDS."""

    def __init__(self, clock: Callable[[], float] = clock) -> None:
        self._clock = clock
        self._logged_at = -LOG_SECONDS
        self._unlogged = 0

    def note(self, error: OSError) -> None:
        now = self._clock()
        self._unlogged += 1
        if now - self._logged_at < LOG_SECONDS:
            return
        others, self._unlogged, self._logged_at = self._unlogged - 1, 0, now
        _log.warning(
            "connections wait or fail: %s (this process may open %d; ulimit -n or LimitNOFILE= allows more)%s",
            reason_of(error),
            limit(),
            f"; {others} other failures were not logged" if others else "",
        )


SHORTAGE: Final = Shortage()
"""That of this process."""


class SpareDescriptor:
    """One descriptor that is kept for a moment without a free one."""

    def __init__(self) -> None:
        self._held = -1
        self.keep()

    def keep(self) -> None:
        """Take a descriptor, if there is one and none is kept already."""
        if self._held < 0:
            try:
                self._held = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    _log.debug("no descriptor can be kept: %s", reason_of(error))

    def release(self) -> None:
        """Let the next call that needs a descriptor have this one."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
