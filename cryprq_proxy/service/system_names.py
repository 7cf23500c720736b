"""Do the programs of this machine find names in system-wide mode? It is tried, as they would: by the system's resolver.

The exit may find names while they do not: its own look-ups go another route than the forwarder's questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from ..carriers.dial.tcp import by_system
from ..errors import CryprqError
from ..exit.report import TRIAL_NAME
from ..status import DnsStatus

SECONDS: Final = 6.0
"""As long as the exit takes for the same name."""

type TellDns = Callable[[], Awaitable[DnsStatus | None]]


class TriedNames(NamedTuple):
    """`problem` is empty where a name was found; `all_fail`: no server that the forwarder asks serves."""

    problem: str = ""
    all_fail: bool = False


async def try_names(dns: TellDns) -> TriedNames:
    """`dns` tells of the forwarder after the trial, which may be answered from a cache."""
    problem = ""
    try:
        async with asyncio.timeout(SECONDS):
            await by_system(TRIAL_NAME)
    except TimeoutError:
        problem = f"the name {TRIAL_NAME} got no answer in {SECONDS:g} s"
    except CryprqError as error:
        problem = str(error)
    status = await dns()
    servers = () if status is None else status.upstreams
    if servers and not any(server.healthy for server in servers):
        return TriedNames("; ".join(f"{server.name}: {server.last_error}" for server in servers), True)
    return TriedNames(problem)
