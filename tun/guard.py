"""Keeps what system-wide mode has set: one task for each fact that another program may change.

    kill switch       firewall/kill_switch.py     the table stands
    routes            routing/routes.py           rules and routes are there; the local networks and uplinks around
    system resolver   resolver/                   names are asked of the forwarder

Each fact has a `watch` of its own beside the code that sets it: look, compare with what is wanted, put back. The guard
starts and stops them, and passes on what one finds that another depends on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError

from .firewall.kill_switch import KillSwitch
from .resolver.choose import ResolverSetting
from .routing.lan import Lan
from .routing.routes import Routes

_log = logging.getLogger(__name__)


class TunnelGuard:
    """The tasks, from `__init__` to `stop`. `redial` is called when the uplink of this machine is another one."""

    def __init__(
        self, kill_switch: KillSwitch, routes: Routes, resolver: ResolverSetting, redial: Callable[[], None]
    ) -> None:
        self._kill_switch = kill_switch
        self._redial = redial
        watches: dict[str, Callable[[], Awaitable[None]]] = {
            "kill switch": kill_switch.watch,
            "routes": partial(routes.watch, self._follow_lan, self._follow_default),
            "system resolver": resolver.watch,
        }
        self._tasks = [spawn(reported(name, watch), name) for name, watch in watches.items()]

    async def stop(self) -> None:
        """Watch no longer; what is being restored is finished first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _follow_lan(self, lan: Lan) -> None:
        try:
            await self._kill_switch.follow_lan(lan)
        except CryprqError as error:
            _log.warning("the filter does not know the present local networks yet: %s", error)

    async def _follow_default(self, version: int) -> None:
        self._redial()


async def reported(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a task that is not awaited: log its CryprqError."""
    try:
        await work()
    except CryprqError as error:
        _log.error("%s: %s", name, error)
