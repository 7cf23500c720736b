"""Many sockets as one descriptor of the event loop: those to one peer's targets, or those of applications.

A peer chooses its targets, so it can make thousands of sockets ready at the same moment. The loop would call all of
them in one turn. A bound on the number in each turn would not help others: their sockets would wait for as many turns
as it takes to serve all. So the sockets of a peer have an epoll of their own (kqueue on macOS and the BSDs), and the
loop watches that one.

    loop -> the group's epoll is readable -> BATCH sockets at a time, while the peer's TurnBudget lasts -> next turn

The first few are watched by the loop itself, and wait in the same TurnBudget.

The client has such a group too, because it is cheap: to begin and end watching a socket takes 4.3 us, where asyncio
takes 9.7, and to name another callback for one that is watched 0.1 us instead of 4.2 (bench/sockets.py).

The kernel puts a socket that it has reported behind all others that are ready, so each has its turn. A callback
returns how many bytes it has moved: bytes are work too, and those that have just been reported wait when it is done.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from ..base.descriptors import EXHAUSTED, SHORTAGE
from ..session.turns import BYTES_PER_UNIT, EVENT_WORK, TurnBudget

BATCH: Final = 16
"""Sockets that the kernel is asked for at once."""
DIRECT: Final = 8
"""Callbacks of a group that the loop has itself: for so few, a second epoll costs more than it saves."""
_READ, _WRITE = 1, 2

type Serve = Callable[[], int | None]
"""Called when a socket is ready. Returns the bytes that it has moved, if it counts them."""


class Timer(Protocol):
    def cancel(self) -> object: ...


class SocketLoop(Protocol):
    """What sockets need of an event loop: asyncio's loops have it, and so has a SocketGroup."""

    def add_reader(self, fd: int, callback: Serve, /) -> object: ...
    def remove_reader(self, fd: int, /) -> object: ...
    def add_writer(self, fd: int, callback: Serve, /) -> object: ...
    def remove_writer(self, fd: int, /) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...
    def time(self) -> float: ...


if sys.platform == "linux":

    class _Epoll:
        """`ready` gives descriptors with what they are ready for, at most `count`, at once."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close

        def change(self, fd: int, before: int, after: int) -> None:
            mask = (select.EPOLLIN if after & _READ else 0) | (select.EPOLLOUT if after & _WRITE else 0)
            if not before:
                self._epoll.register(fd, mask)
            elif after:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.unregister(fd)

        def ready(self, count: int) -> list[tuple[int, int]]:
            # An error or a hang-up is for both.
            return [
                (
                    fd,
                    (_READ if mask & ~select.EPOLLOUT else 0) | (_WRITE if mask & ~select.EPOLLIN else 0),
                )
                for fd, mask in self._epoll.poll(0, count)
            ]

    _Queue = _Epoll

else:

    class _Kqueue:
        """As on Linux."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close

        def change(self, fd: int, before: int, after: int) -> None:
            self._kqueue.control(
                [
                    select.kevent(fd, kind, select.KQ_EV_ADD if after & bit else select.KQ_EV_DELETE)
                    for bit, kind in ((_READ, select.KQ_FILTER_READ), (_WRITE, select.KQ_FILTER_WRITE))
                    if (before ^ after) & bit
                ],
                0,
            )

        def ready(self, count: int) -> list[tuple[int, int]]:
            return [
                (event.ident, _READ if event.filter == select.KQ_FILTER_READ else _WRITE)
                for event in self._kqueue.control(None, count, 0)
            ]

    _Queue = _Kqueue


class SocketGroup:
    """A SocketLoop for the sockets of one peer, or of all applications, on `loop`. Its own descriptor is there from
    `open` until the last socket has gone after `retire`."""

    __slots__ = (
        "_behind",
        "_direct",
        "_late",
        "_loop",
        "_queue",
        "_readers",
        "_reported",
        "_retired",
        "_turn",
        "_writers",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: TurnBudget) -> None:
        self._loop = loop
        self._turn = turn
        self._direct: dict[tuple[int, int], Serve] = {}
        """Descriptors that the loop watches itself, each with what for; the others are in the next three."""
        self._late: set[tuple[int, int]] = set()
        """Those of them that wait for a later turn."""
        self._queue: _Queue | None = None
        self._readers: dict[int, Serve] = {}
        self._writers: dict[int, Serve] = {}
        self._reported: deque[tuple[int, Serve | None, Serve | None]] = deque()
        """Those that the kernel has reported and that are not yet served, with their callbacks of that moment."""
        self._behind = False
        """Whether sockets wait for a later turn."""
        self._retired = False

    def open(self) -> bool:
        """Take the group's own descriptor, if it has none yet. False if there is none left: then add no socket."""
        try:
            self._opened()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            SHORTAGE.note(error)
            return False
        return True

    @property
    def is_open(self) -> bool:
        return self._queue is not None

    def retire(self) -> None:
        """The peer has gone. Its last sockets go in their own time."""
        self._retired = True
        self._close_if_empty()

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        return self._loop.call_later(delay, callback)

    def time(self) -> float:
        return self._loop.time()

    def add_reader(self, fd: int, callback: Serve, /) -> None:
        if fd not in self._readers:
            watched = (fd, _READ)
            if watched in self._direct or len(self._direct) < DIRECT:
                if watched not in self._direct:
                    self._loop.add_reader(fd, self._on_one_ready, watched)
                self._direct[watched] = callback
                return
            self._change(fd, _READ)
        self._readers[fd] = callback

    def add_writer(self, fd: int, callback: Serve, /) -> None:
        if fd not in self._writers:
            watched = (fd, _WRITE)
            if watched in self._direct or len(self._direct) < DIRECT:
                if watched not in self._direct:
                    self._loop.add_writer(fd, self._on_one_ready, watched)
                self._direct[watched] = callback
                return
            self._change(fd, _WRITE)
        self._writers[fd] = callback

    def remove_reader(self, fd: int, /) -> None:
        if fd in self._readers:
            self._change(fd, _READ)
            del self._readers[fd]
            self._close_if_empty()
        elif (fd, _READ) in self._direct:
            del self._direct[fd, _READ]
            self._loop.remove_reader(fd)

    def remove_writer(self, fd: int, /) -> None:
        if fd in self._writers:
            self._change(fd, _WRITE)
            del self._writers[fd]
            self._close_if_empty()
        elif (fd, _WRITE) in self._direct:
            del self._direct[fd, _WRITE]
            self._loop.remove_writer(fd)

    def _change(self, fd: int, bit: int) -> None:
        """Watch `fd` for `bit` from now on, or no longer."""
        before = (_READ if fd in self._readers else 0) | (_WRITE if fd in self._writers else 0)
        self._opened().change(fd, before, before ^ bit)

    def _opened(self) -> _Queue:
        if self._queue is None:
            self._queue = _Queue()
            self._loop.add_reader(self._queue.fileno(), self._on_ready)
        return self._queue

    def _close_if_empty(self) -> None:
        if self._retired and self._queue is not None and not self._readers and not self._writers:
            self._loop.remove_reader(self._queue.fileno())
            self._queue.close()
            self._queue = None

    # --- serving ---------------------------------------------------------------------------------------------------

    def _on_one_ready(self, watched: tuple[int, int]) -> None:
        turn, callback = self._turn, self._direct[watched]
        if turn.left > 0:
            turn.spend(EVENT_WORK + (callback() or 0) // BYTES_PER_UNIT)
        elif watched not in self._late:
            self._late.add(watched)
            turn.wait(partial(self._serve_late, watched, callback))

    def _serve_late(self, watched: tuple[int, int], callback: Serve) -> None:
        self._late.remove(watched)
        if self._direct.get(watched) is callback:
            self._turn.spend(self._call(callback))

    def _on_ready(self) -> None:
        if not self._behind:
            self._serve()

    def _serve(self) -> None:
        turn, reported = self._turn, self._reported
        self._behind = False
        while turn.left > 0:
            all_known = False
            if not reported:
                if self._queue is None:
                    return
                self._report(self._queue)
                all_known = len(reported) < BATCH
            readers, writers = self._readers, self._writers
            while reported and turn.left > 0:
                fd, reader, writer = reported.popleft()
                if reader is not None and readers.get(fd) is reader:
                    turn.spend(self._call(reader))
                if writer is not None and writers.get(fd) is writer:
                    turn.spend(self._call(writer))
            if all_known and not reported:
                return
        self._behind = True
        turn.wait(self._serve)

    def _report(self, queue: _Queue) -> None:
        """Ask the kernel for no more than a few, so that it knows whose turn is next. Their callbacks are looked up
        before any is served: one of them may close a socket, and another one get its number."""
        readers, writers = self._readers, self._writers
        self._reported.extend(
            (fd, readers.get(fd) if mask & _READ else None, writers.get(fd) if mask & _WRITE else None)
            for fd, mask in queue.ready(BATCH)
        )

    def _call(self, callback: Serve) -> int:
        """As an event loop does: a fault in one socket's callback is not another one's. Returns the work."""
        try:
            return EVENT_WORK + (callback() or 0) // BYTES_PER_UNIT
        except Exception as error:  # noqa: BLE001
            self._loop.call_exception_handler(
                {"message": f"a fault in {callback!r}", "exception": error},
            )
            return EVENT_WORK
