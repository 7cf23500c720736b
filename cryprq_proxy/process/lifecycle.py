"""The process around a role: its event loop, its signals, its limits and its end.

    limits -> event loop -> role starts -> settle -> ... -> signal -> role stops -> threads end

The first SIGINT or SIGTERM asks the role to stop in good order, the second one asks it to stop at once, and a third one
gets the system's default handler. SIGHUP asks for a reload, or means that the terminal is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from ..base.core_dumps import forbid_core_dumps
from ..base.log import flush
from ..base.tasks import spawn
from ..errors import CryprqError, reason_of
from .sd_notify import Notifier

_log = logging.getLogger(__name__)

THREADS_END: Final = 0.5
"""Seconds for the threads to end after the role has stopped."""
LOOKUP_THREADS: Final = 4
OPEN_MAX: Final = 10_240
"""Of macOS (sys/syslimits.h)."""
LOOP_DESCRIPTORS: Final = 3
"""Descriptors of an event loop: its selector and the two sockets that wake it."""


class Stop:
    """What the signals ask for: `asked` in good order, `urgent` at once. `notifier` tells the service manager."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self.asked = asyncio.Event()
        self.urgent = asyncio.Event()
        self.notifier = notifier or Notifier()
        self.reload: Callable[[], object] = self._end_unless_kept
        """What SIGHUP does while the terminal is there."""
        self._reload_later = False
        self._terminal = has_terminal()
        self._kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def listen(self) -> None:
        """Take the signals from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        """SIGHUP means that the terminal is closed, which ends this process without nohup(1), or asks for a reload."""
        if self._terminal and not self._kept and not has_terminal():
            self._signal()
        else:
            self.reload()

    def hold_reload(self) -> None:
        """For a role that can reload, but not yet: a SIGHUP from now on waits for `reload_by`."""
        self.reload = self._remember

    def _remember(self) -> None:
        self._reload_later = True

    def reload_by(self, reload: Callable[[], object]) -> None:
        """Reload by that from now on, and at once if a SIGHUP waits for it."""
        self.reload = reload
        if self._reload_later:
            reload()

    def _end_unless_kept(self) -> None:
        if not self._kept:
            self._signal()

    def _signal(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
            self.notifier.stopping()
            return
        self.urgent.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def wait(self, work: asyncio.Task[Any]) -> None:
        """Return when a stop is asked for. If the endless `work` ends first, raises its CryprqError or a new one."""
        asked = spawn(self.asked.wait(), "signals")
        try:
            await asyncio.wait({asked, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if self.asked.is_set():
            return
        if not work.cancelled() and isinstance(error := work.exception(), CryprqError):
            raise error
        raise CryprqError(f"the task {work.get_name()!r} ended unexpectedly; the log has the reason")

    async def until[T](self, goal: Coroutine[Any, Any, T], work: asyncio.Task[Any]) -> bool:
        """Run `goal`; False if a stop is asked for first. Raises the error of `goal`, or as `wait` about `work`."""
        task, waiting = spawn(goal, "start"), spawn(self.wait(work), "stop")
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            waiting.result()
            return False
        finally:
            for running in (task, waiting):
                running.cancel()
            await asyncio.wait({task, waiting})

    async def hurry(self, stopping: Coroutine[Any, Any, None]) -> bool:
        """Run `stopping`, and cancel it when a second signal comes. Returns whether it was complete.

        Raises the error of `stopping`.
        """
        task, urgent = spawn(stopping, "stop"), spawn(self.urgent.wait(), "second signal")
        try:
            await asyncio.wait({task, urgent}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            urgent.cancel()
            task.cancel()
            await asyncio.wait({task})


def run(role: Callable[[Stop], Coroutine[Any, Any, None]]) -> None:
    """Run `role` in an event loop until it returns, as its `Stop` asks it to. Raises the error of `role`."""
    raise_file_limit()
    forbid_core_dumps()
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_run(role))


def make_loop() -> asyncio.AbstractEventLoop:
    """A new event loop. Raises CryprqError if there are too few free descriptors for it: asyncio would leave a half of
    the loop behind, whose end fails too and is logged."""
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(LOOP_DESCRIPTORS):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise CryprqError(
            f"the event loop cannot be made: {reason_of(error)}; ulimit -n or LimitNOFILE= allows more"
        ) from None
    return asyncio.new_event_loop()


async def _run(role: Callable[[Stop], Coroutine[Any, Any, None]]) -> None:
    # The loop looks up names on these threads. Held here, so that the end need not wait for them.
    lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="lookup")
    asyncio.get_running_loop().set_default_executor(lookups)
    stop = Stop(Notifier.from_environment())
    stop.listen()
    try:
        await role(stop)
    finally:
        stop.notifier.close()
    lookups.shutdown(wait=False, cancel_futures=True)
    _end_with_threads()


def _end_with_threads() -> None:
    """End the process here, with success, if a thread does not end.

    getaddrinfo() cannot be interrupted and may take half a minute. The interpreter and the event loop would both wait
    for its thread. All clean-up is complete by now, so nothing is lost.
    """
    deadline = time.monotonic() + THREADS_END
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.debug("not waiting for the thread %r", thread.name)
                flush()
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    sys.stdout.flush()
                os._exit(0)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def raise_file_limit() -> None:
    """Raise the soft limit of open files: every connection takes one, and 1024 is for select(2) only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS begins with 256 of no end, and refuses to be asked for more than OPEN_MAX (setrlimit(2)).
    wanted = min(hard, OPEN_MAX) if sys.platform == "darwin" else hard
    if soft < wanted or (soft != wanted == hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
