"""Waiting for what this process does to itself: no sleep is long enough, so none is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def settle(turns: int = 20) -> None:
    """Let the loop notice whatever is readable or writable by now, and what follows from that."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(happened: Callable[[], object]) -> None:
    """Return when `happened` says so; pytest-timeout ends a test in which it never does."""
    while not happened():
        await asyncio.sleep(0.001)
