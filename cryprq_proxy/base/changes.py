"""The kernel's messages about what has changed, which wake those that look.

The content of a message is not used: after an overflow of the socket the kernel drops messages. A message, or an
overflow, only means that it is time to look. Which socket tells, the system says: netlink_watch.py, route_socket.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Final, Self

from ..errors import reason_of

_log = logging.getLogger(__name__)

LEAST_PAUSE: Final = 0.05
MOST_PAUSE: Final = 0.5
"""Seconds between two looks. What another program removes must be back within a second."""
LOST_SECONDS: Final = 1.0
"""Seconds between two looks where nothing can be read from the kernel any more."""
_READS: Final = 64
"""Messages taken in one wake-up; the loop calls again for the rest."""


def pause(took: float) -> float:
    """Seconds to wait after a look of `took` seconds, so that looks take at most a fifth of the time.

    The first change after a quiet time is handled at once. Many routes, or another program that keeps removing ours,
    slow this down to at most half a second.
    """
    return min(MOST_PAUSE, max(LEAST_PAUSE, 4 * took))


class Changes:
    """What the kernel tells by `sock`, which this owns and reads. A context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self._event = asyncio.Event()
        self._lost = False
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        try:
            sock.setblocking(False)
            self._loop.add_reader(sock, self._readable)
        except BaseException:
            sock.close()
            raise

    def _readable(self) -> None:
        for _ in range(_READS):
            try:
                # The rest of a datagram is dropped.
                self._socket.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._lose(error)
                    return
            self._event.set()

    def _lose(self, error: OSError) -> None:
        """Nothing more can be read; the socket would stay readable for ever."""
        _log.warning("the kernel tells no more changes (%s), so each second is looked", reason_of(error))
        self._loop.remove_reader(self._socket)
        self._lost = True
        self._event.set()

    async def wait(self) -> None:
        """Return after a change since the last return, or since the start; where the kernel tells none any more, after
        a second."""
        if self._lost:
            await asyncio.sleep(LOST_SECONDS)
            return
        await self._event.wait()
        self._event.clear()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoChanges(Changes):
    """Where the kernel tells none: `wait` never returns."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._lost = False

    def close(self) -> None:
        return
