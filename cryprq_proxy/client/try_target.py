"""Connect a target as an application would, to see whether that works; nothing is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from ..address import Destination, parse_host_port
from ..base.clock import clock
from ..errors import StreamBlocked, StreamReason, StreamRefused, words_of
from ..outbound.bytestream import ByteStream
from ..status import TriedTarget
from .dispatcher import Dispatcher

TRY: Final = "try"
"""The command of the control socket."""
TRY_SECONDS: Final = 25.0
"""Longer than an application waits for the link, and then an exit for a target, by default."""


async def try_target(
    opening: Callable[[Destination], Awaitable[ByteStream]], destination: Destination, by: str = "tunnel"
) -> TriedTarget:
    """What becomes of it; `opening` gives the stream."""
    began, problem, rule = clock(), "", ""
    try:
        async with asyncio.timeout(TRY_SECONDS):
            (await opening(destination)).abort()
    except StreamBlocked as blocked:
        problem, rule = words_of(blocked.reason), blocked.rule
    except StreamRefused as refusal:
        problem = words_of(refusal.reason)
    except TimeoutError:
        problem = words_of(StreamReason.TIMED_OUT)
    return TriedTarget(by=by, problem=problem, rule=rule, seconds=round(clock() - began, 3))


async def try_by_rules(dispatcher: Dispatcher, argument: str) -> TriedTarget:
    """The command TRY of a running client, whose argument is HOST:PORT. Raises AddressError."""
    destination = parse_host_port(argument)
    return await try_target(dispatcher.open, destination, str(dispatcher.decide(destination).action))
