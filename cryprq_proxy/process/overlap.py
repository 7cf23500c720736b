"""A process beside its successor, under a service manager that starts one as soon as the main process has ended.

    manager -- SIGTERM --> parent -- SIGTERM --> child: releases what one process alone can have
    manager <--- ends ---- parent <- released -- child: finishes what is open, then ends
    manager -- starts the successor

The main process is a small parent that passes signals on, and the program is its child. Until the release the two stand
for one process: the parent ends as its child does, and the child is told to stop when its parent is gone.

`begin` comes before threads, and before modules that take long to load.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import sys
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from ..errors import ConfigError

PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT)
ABORT_SECONDS: Final = 1.0
"""How long the child lives after SIGABRT, by which a manager ends a program that is stuck."""
OVERTIME: Final = 15
"""Seconds that a child may take beyond its time to finish. Nobody watches it then: the kernel ends it."""

_PR_SET_PDEATHSIG: Final = 1
_MANAGERS_PIDS: Final = ("LISTEN_PID", "WATCHDOG_PID")
"""Variables by which a manager says which process it means."""


class Parent:
    """What the child knows of its parent. `released` is the pipe to it."""

    def __init__(self, released: int) -> None:
        self._released = released

    def release(self, seconds: float) -> None:
        """Let the parent end, and with it the unit's main process. What is open has `seconds` to finish; a little
        later this process is killed (OVERTIME). Call it once."""
        _signal_at_parents_end(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(seconds) + OVERTIME)
        with suppress(BrokenPipeError):
            os.write(self._released, b"released")
        os.close(self._released)


def begin() -> Parent:
    """Fork, and return in the child. In the parent, raise SystemExit when its time is over.

    Raises ConfigError where the kernel cannot tell the child of its parent's end.
    """
    if sys.platform != "linux":
        raise ConfigError("--overlap needs Linux")
    parent = os.getpid()
    # A signal that comes meanwhile waits until it can be passed on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    released, tell = os.pipe()
    if child := os.fork():
        os.close(tell)
        _end_as(attend(child, released, _signals()))
    os.close(released)
    # Ctrl-C reaches a terminal's foreground group: the parent alone, which passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    _signal_at_parents_end(signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
    readdress(os.environ, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Parent(tell)


def attend(child: int, released: int, signals: int) -> int:
    """Pass on the signals whose numbers come out of `signals`, until `child` has ended or says on `released` that the
    parent can. Returns the exit code, -N for the end by signal N (os.waitstatus_to_exitcode)."""
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(released, select.POLLIN)
    kill_at = math.inf
    while True:
        left = kill_at - time.monotonic()
        ready = {file for file, _ in poll.poll(None if left == math.inf else max(0.0, left) * 1000)}
        if signals in ready:
            for number in os.read(signals, 64):
                if number != signal.SIGCHLD:
                    os.kill(child, number)
                if number == signal.SIGABRT:
                    kill_at = min(kill_at, time.monotonic() + ABORT_SECONDS)
        # How the child has ended says more than that it had released everything before.
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if released in ready:
            if os.read(released, 64):
                return 0
            poll.unregister(released)
        if time.monotonic() >= kill_at:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def readdress(environment: MutableMapping[str, str], parent: int) -> None:
    """Let what the manager says to `parent` be meant for this process."""
    for name in _MANAGERS_PIDS:
        if environment.get(name) == str(parent):
            environment[name] = str(os.getpid())


def _signals() -> int:
    """A descriptor out of which come the numbers of the signals that this process gets, as bytes."""
    numbers, arrived = os.pipe()
    os.set_blocking(arrived, False)
    signal.set_wakeup_fd(arrived)
    watched = {*PASSED_ON, signal.SIGCHLD}
    for number in watched:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
    return numbers


def _end_as(code: int) -> None:
    """End this process with an exit code, or as one that was ended by a signal."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler to take back
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


def _signal_at_parents_end(number: int) -> None:
    """Let the kernel send this process signal `number` when its parent ends; 0: none (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
