"""System-wide mode as the client's process sees it: tun/tunnel.py, or NO_TUN for a client that is only a proxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

from ..carriers.dial.tcp import by_system
from ..client.exits import Exits
from ..client.packet_ports import ClientNetwork, NoNetwork
from ..errors import CryprqError
from ..process.lifecycle import Stop
from ..rules.engine import RuleSet
from ..status import TunStatus

_log = logging.getLogger(__name__)


class TunMode(ClientNetwork, Protocol):
    """The defaults are those of a client that routes nothing.

    `close` is like an __aexit__: after a failure, `fail_closed` says whether the kill switch stays.
    """

    fail_closed: bool = False

    @property
    def confirmed(self) -> asyncio.Event:
        raise CryprqError("it does not run with --tun, so there is nothing to pause or confirm")

    async def resolve(self, name: str) -> Sequence[str]:
        return await by_system(name)

    async def run(self, client: Exits) -> None:
        return

    async def lost(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def pause(self, seconds: int) -> None:
        self.confirmed  # noqa: B018 - raises

    async def apply_rules(self, rules: RuleSet) -> None:
        return

    async def status(self) -> TunStatus | None:
        return None

    async def close(self, *failure: Any) -> None:
        return


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


async def keep_if_confirmed(tun: TunMode, seconds: float, stop: Stop, link: asyncio.Task[None]) -> None:
    """Wait until a person says that all is well, if `seconds` are set for that; returns as well when a stop is asked
    for. From then on a failure leaves the kill switch. Raises CryprqError when the time is over."""
    if seconds:
        _log.warning("everything is undone in %g s unless you call: cryprq-proxy confirm", seconds)
        try:
            async with asyncio.timeout(seconds):
                await stop.until(tun.confirmed.wait(), link)
        except TimeoutError:
            tun.fail_closed = False
            raise CryprqError("it was not confirmed in time, so everything is undone") from None
    tun.fail_closed = True
