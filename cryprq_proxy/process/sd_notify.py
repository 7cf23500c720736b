"""Messages to the service manager: sd_notify(3) in a few datagrams.

    READY=1                        when everything listens; a unit of Type=notify has started then
    STATUS=link up, 12 streams     after a change, checked every few seconds; `systemctl status` shows it
    WATCHDOG=1                     twice in the time that WatchdogSec= gives
    RELOADING=1, then READY=1      around a reload
    STOPPING=1                     once, when the stop begins

A timer of the event loop that moves the data sends the watchdog's message, unless a part of the program is stuck
(watchdog.py). If the loop or such a part is stuck, no message comes, and the manager restarts the process. Without a
manager (no NOTIFY_SOCKET) nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from ..base.log import describe, one_line
from ..base.text import counted
from ..status import ExitStatus, Status
from .watchdog import UNWATCHED, Watchdog

_log = logging.getLogger(__name__)

STATUS_SECONDS: Final = 5.0
"""Seconds between two checks of the status text."""
MAX_STATUS: Final = 300
"""Characters of the status text; the rest is cut off."""
SEND_SECONDS: Final = 1.0
"""How long a send may block if the manager does not read. Its queue has some hundred messages."""


class Notifier:
    """The messages of one process. `address` is a path, "@" and an abstract name, or "" without a manager.

    `watchdog` is the longest time between two messages that the manager accepts, in seconds; 0 for no watchdog.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        self._status: Callable[[], str] = _no_text
        self._told = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._failed = False
        self._watch = UNWATCHED
        self._stuck = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Read the manager's variables and remove them from the environment, so that no child process sends messages.

        WATCHDOG_USEC counts only where WATCHDOG_PID is this process, or is not set (sd_watchdog_enabled(3)).
        """
        variables = os.environ if environment is None else environment
        address, usec, pid = (
            variables.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if address[:1] not in ("/", "@") or len(address) < 2:
            # No manager, or an address family that is not supported, like "vsock:" in a virtual machine.
            return cls()
        meant = not pid or pid == str(os.getpid())
        micro = int(usec) if meant and usec.isascii() and usec.isdecimal() and len(usec) <= 18 else 0
        return cls(address, micro / 1e6)

    @property
    def listens(self) -> bool:
        """Whether there is a manager to tell."""
        return bool(self._address)

    def ready(self, status: Callable[[], str], watch: Watchdog = UNWATCHED) -> None:
        """Report the start. From now on call `status` for the status text, and send the watchdog's messages while
        `watch` finds nothing that is stuck.

        Call it in the event loop.
        """
        if not self.listens:
            return
        self._watch = watch
        self._status = status
        self._told = self._text()
        self._send("READY=1", f"STATUS={self._told}")
        self._repeat(STATUS_SECONDS, self._tell_status)
        if self.watchdog:
            self._send("WATCHDOG=1")
            self._repeat(self.watchdog / 2, self._feed_watchdog)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Put this around a reload; it reports the end also if the reload fails."""
        # The message needs CLOCK_MONOTONIC; time.monotonic_ns reads it on Linux.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """Report that the stop has begun. The watchdog's messages go on until `close`."""
        self._status = _no_text
        self._send("STOPPING=1", "STATUS=stopping")

    def close(self) -> None:
        """Send nothing any more."""
        self._address = ""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _repeat(self, seconds: float, work: Callable[[], None]) -> None:
        """Call `work` every `seconds` until `close`."""
        loop = asyncio.get_running_loop()
        place = len(self._timers)

        def again() -> None:
            self._timers[place] = loop.call_later(seconds, again)
            work()

        self._timers.append(loop.call_later(seconds, again))

    def _feed_watchdog(self) -> None:
        stuck, before = self._watch.stuck(), self._stuck
        self._stuck = stuck
        if not stuck:
            self._send("WATCHDOG=1")
        elif stuck != before:
            _log.error(
                "%s stands still although there is work: the service manager may start this program anew",
                stuck,
            )

    def _tell_status(self) -> None:
        text = self._text()
        if text and text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    def _text(self) -> str:
        return one_line(self._status())[:MAX_STATUS]

    def _send(self, *fields: str) -> None:
        """Send one datagram. A failure is logged once and has no other effect."""
        if not self.listens:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(SEND_SECONDS)
            self._socket.sendto("\n".join(fields).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError) as error:
            if not self._failed:
                self._failed = True
                _log.warning("cannot send to the service manager: %s", describe(error))


def _no_text() -> str:
    """The status text before the start and after the end: nothing is sent."""
    return ""


def exit_summary(sessions: int, targets: int) -> str:
    return f"{counted(sessions, 'session')}, {counted(targets, 'target')}"


def summary(status: Status) -> str:
    """A role's status as the status text: one short line."""
    if isinstance(status, ExitStatus):
        return exit_summary(len(status.sessions), status.targets)
    if status.link != "up":
        return f"no link to {status.exit.address}: {status.last_error or 'connecting'}"
    streams = 0 if status.session is None else status.session.streams
    return f"link up to {status.exit.address}, {counted(streams, 'stream')}"
