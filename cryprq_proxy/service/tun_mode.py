"""System-wide mode as the client's process sees it: tun/tunnel.py, or NO_TUN for a client that is only a proxy."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from ..address import OWN_NAME, Destination
from ..base.program import to_run
from ..carriers.dial.tcp import by_system
from ..client.exits import Exits
from ..client.packet_ports import ClientNetwork, NoNetwork
from ..errors import CryprqError
from ..process.lifecycle import Stop
from ..rules.engine import RuleSet
from ..status import Traffic, TunStatus

_log = logging.getLogger(__name__)

_NOT_IN_USE: Final = "it does not run with --tun, so there is nothing to pause or confirm"


class TunMode(ClientNetwork, Protocol):
    """The defaults are those of a client that routes nothing.

    `close` is like an __aexit__: after a failure, `fail_closed` says whether the kill switch stays.
    """

    fail_closed: bool = False

    async def resolve(self, name: str) -> Sequence[str]:
        return await by_system(name)

    async def run(self, client: Exits) -> None:
        return

    async def lost(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def pause(self, seconds: int) -> None:
        raise CryprqError(_NOT_IN_USE)

    async def open_page(self, serve: Callable[[socket.socket, str], object]) -> int:
        """Let our own page be there for so many seconds as are returned; `serve` takes each connection to it."""
        raise CryprqError(
            f"it does not run with --tun: open http://{OWN_NAME}/ in a browser that uses the proxy, at any time"
        )

    async def apply_rules(self, rules: RuleSet) -> None:
        return

    async def follow_exits(self, exits: Sequence[Destination]) -> None:
        """Let links out to these places, and to no others."""
        return

    async def read_names(
        self, blocklists: Sequence[Path], block: Sequence[str], allow: Sequence[str]
    ) -> Callable[[], None]:
        """Read the names that are blocked; what is returned puts them in force."""
        return _nothing

    async def status(self) -> TunStatus | None:
        return None

    def traffic(self) -> Traffic:
        """Bytes of packets from and to this machine, since the start."""
        return Traffic()

    async def close(self, *failure: Any) -> None:
        return


def _nothing() -> None:
    """Where no forwarder answers."""


class TunModePlan(Protocol):
    """What has changed nothing yet. `mark` is the SO_MARK of the link's sockets."""

    @property
    def mark(self) -> int: ...
    async def start(self) -> TunMode: ...


class NoTun(NoNetwork, TunMode):
    """Routes nothing; it is its own plan."""

    mark = 0

    async def start(self) -> TunMode:
        return self


NO_TUN: Final = NoTun()


class Confirmation:
    """A person's word that all is well, for which `seconds` are set; 0: nothing has to be confirmed."""

    def __init__(self, tun: TunMode, seconds: float) -> None:
        self._tun = tun
        self._seconds = seconds
        self._awaited = False
        self._given = asyncio.Event()

    def give(self) -> None:
        """Raises CryprqError where nothing waits for it."""
        if self._tun is NO_TUN:
            raise CryprqError(_NOT_IN_USE)
        if not self._seconds:
            raise CryprqError("there is nothing to confirm: it was started without --confirm, so it stays")
        if self._given.is_set():
            raise CryprqError("there is nothing to confirm: it is confirmed already")
        if not self._awaited:
            raise CryprqError("there is nothing to confirm yet: system-wide mode is not up")
        self._given.set()

    async def wait(self, stop: Stop, link: asyncio.Task[None]) -> None:
        """Return at once where nothing has to be confirmed, and as well when a stop is asked for. From then on a
        failure leaves the kill switch. Raises CryprqError when the time is over."""
        if self._seconds:
            _log.warning("everything is undone in %g s unless you call: %s", self._seconds, to_run("confirm"))
            self._awaited = True
            try:
                async with asyncio.timeout(self._seconds):
                    await stop.until(self._given.wait(), link)
            except TimeoutError:
                self._tun.fail_closed = False
                raise CryprqError("it was not confirmed in time, so everything is undone") from None
            finally:
                self._awaited = False
        self._tun.fail_closed = True
