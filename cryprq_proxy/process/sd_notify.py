"""What the service manager hears of this process: sd_notify(3), written down in a few datagrams.

    READY=1                        when everything listens; a unit of Type=notify counts as started from then on
    STATUS=link up, 12 streams     when that has changed, looked at every few seconds; `systemctl status` shows it
    WATCHDOG=1                     twice in the time that WatchdogSec= gives
    RELOADING=1, then READY=1      around a reload
    STOPPING=1                     once, when the end has begun

The watchdog's message is sent by a timer of the event loop that also moves the data: if that loop is stuck, the
message does not come, and the manager starts the process again. Without a manager (no NOTIFY_SOCKET) nothing is sent.
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
from ..status import ExitStatus, Status

_log = logging.getLogger(__name__)

STATUS_SECONDS: Final = 5.0
"""How often the status text is looked at."""
MAX_STATUS: Final = 300
"""Characters of it; the rest is cut off."""
SEND_SECONDS: Final = 1.0
"""How long a manager that does not read may hold us up. Its queue is of some hundred messages."""


class Notifier:
    """The messages of one process. `address` is a path, "@" and an abstract name, or "" for nobody to tell.

    `watchdog` is the time within which the manager wants to hear of us, in seconds; 0 for no watchdog.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        self._status: Callable[[], str] | None = None
        self._told = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._failed = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """What the manager has put into the environment; taken out of it, so that no child speaks for us.

        WATCHDOG_USEC counts only where WATCHDOG_PID is this process, or is not set (sd_watchdog_enabled(3)).
        """
        variables = os.environ if environment is None else environment
        address, usec, pid = (
            variables.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if address[:1] not in ("/", "@") or len(address) < 2:
            # Nothing, or a family that we do not speak, like "vsock:" of a virtual machine's manager.
            return cls()
        meant = not pid or pid == str(os.getpid())
        micro = int(usec) if meant and usec.isascii() and usec.isdecimal() and len(usec) <= 18 else 0
        return cls(address, micro / 1e6)

    @property
    def listens(self) -> bool:
        """Whether there is a manager to tell."""
        return bool(self._address)

    def ready(self, status: Callable[[], str]) -> None:
        """The start is done. From now on `status` is asked for the status text, and the watchdog is fed.

        Call in the event loop.
        """
        if not self.listens:
            return
        self._status = status
        self._told = self._text()
        self._send("READY=1", f"STATUS={self._told}")
        self._repeat(STATUS_SECONDS, self._tell_status)
        if self.watchdog:
            self._send("WATCHDOG=1")
            self._repeat(self.watchdog / 2, lambda: self._send("WATCHDOG=1"))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload, whether it succeeds or not."""
        # The clock of the message is CLOCK_MONOTONIC, which is what time.monotonic_ns reads on Linux.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun; the watchdog is fed until it is reached."""
        self._status = None
        self._send("STOPPING=1", "STATUS=stopping")

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _repeat(self, seconds: float, work: Callable[[], None]) -> None:
        """Call `work` every so many seconds until `close`."""
        loop = asyncio.get_running_loop()
        place = len(self._timers)

        def again() -> None:
            self._timers[place] = loop.call_later(seconds, again)
            work()

        self._timers.append(loop.call_later(seconds, again))

    def _tell_status(self) -> None:
        text = self._text()
        if text and text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    def _text(self) -> str:
        return "" if self._status is None else one_line(self._status())[:MAX_STATUS]

    def _send(self, *fields: str) -> None:
        """One datagram. That the manager does not take it is said once, and changes nothing else."""
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
                _log.warning("the service manager does not take our messages: %s", describe(error))


def summary(status: Status) -> str:
    """A role's status as the status text: one short line."""
    if isinstance(status, ExitStatus):
        return f"{_count(len(status.sessions), 'session')}, {_count(status.targets, 'target')}"
    if status.link != "up":
        return f"no link to {status.exit.address}: {status.last_error or 'connecting'}"
    streams = 0 if status.session is None else status.session.streams
    return f"link up to {status.exit.address}, {_count(streams, 'stream')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
